/* One rule by itself, for an instance that runs: the stages of config_load() over
 * the resolved configuration, with this rule in place of the file's. */
#include "lib/config/config.h"

#include <errno.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/config/schema.h"

static const char rule_file[] = "rule"; /* stands where a file's name would */

static const struct schema_object *rule_object(void)
{
	return schema_find(&schema_root, "portForwards")->object;
}

/* "rule:1:2: portForwards[0].guestPort: 0 is not …" → "guestPort: 0 is not …" */
static const char *without_place(const char *line)
{
	const char *path = strstr(line, "portForwards[0]");

	if (!path)
		return line;
	path += strlen("portForwards[0]");
	return *path == '.' ? path + 1 : *path == ':' ? path + 2 : path;
}

/* @text as the only item of a list. */
static int parse_rule(struct resolve *r, const char *text, size_t len, struct node **ret,
		      struct error *err)
{
	struct node *list = node_new(r->pool, NODE_LIST), *rule;

	if (node_parse(r->pool, rule_file, text, len, &rule, err) < 0)
		return err->code;
	if (rule->kind != NODE_MAP)
		return error_set(err, -EINVAL, "a rule is a map of keys and values, such as "
					       "{guestPort: 80, hostPort: 8080}");
	node_add(r->pool, list, NULL, rule);
	*ret = list;
	return 0;
}

/* The whole configuration with @rules for its own. Its values were checked when
 * it was loaded. */
static int resolve_with(struct resolve *r, const struct config *c, struct node *rules,
			struct error *err)
{
	if (node_parse(r->pool, "json", buf_str(&c->json), c->json.len, &r->root,
		       err) < 0)
		return err->code;
	node_add(r->pool, r->root, "portForwards", rules);
	r->own = node_new(r->pool, NODE_MAP);
	schema_typecheck(r, r->root);
	schema_fill_user(r);
	schema_expand(r);
	schema_fill(r);
	schema_validate(r);
	return 0;
}

/* A word that nobody knows is a warning in a file, which may be from the future. */
static const char *unknown_key(const struct config_problems *p)
{
	const char *line;

	strv_foreach (line, &p->warnings)
		if (strncmp(line, rule_file, strlen(rule_file)) == 0 && strstr(line, "unknown key"))
			return line;
	return NULL;
}

static int check(const struct resolve *r, const struct node *rule, struct error *err)
{
	const struct config_problems *p = r->problems.list;
	const char *unknown = unknown_key(p);

	if (r->problems.n_errors)
		return error_set(err, -EINVAL, "%s", without_place(p->errors.items[0]));
	if (unknown)
		return error_set(err, -EINVAL, "%s", without_place(unknown));
	if (node_get_true(r->root, "plain") && !node_get_true(rule, "static"))
		return error_set(err, -EINVAL,
				 "static: plain mode has no agent that sees ports; only rules with "
				 "static: true work");
	return 0;
}

int config_rule_parse(const struct config_context *ctx, const struct config *c, const char *text,
		      size_t len, struct config_port_forward **ret, struct error *err)
{
	scoped_node_pool struct node_pool *pool = node_pool_new();
	struct config_problems problems = { 0 };
	struct resolve r = {
		.ctx = ctx,
		.pool = pool,
		.problems = { .list = &problems, .main_file = rule_file },
	};
	struct node *list = NULL;	/* gcc 13 cannot see that rc == 0 sets it */
	int rc = parse_rule(&r, text, len, &list, err);

	if (rc == 0)
		rc = resolve_with(&r, c, list, err);
	if (rc == 0)
		rc = check(&r, list->items[0], err);
	if (rc == 0) {
		*ret = xnew(struct config_port_forward);
		schema_decode_one(rule_object(), list->items[0], *ret);
	}
	expr_vars_done(&r.guest);
	expr_vars_done(&r.host);
	expr_vars_done(&r.message);
	strv_done(&r.used_params);
	config_problems_done(&problems);
	return rc;
}

void config_rule_free(struct config_port_forward *rule)
{
	if (!rule)
		return;
	schema_release_one(rule_object(), rule);
	free(rule);
}
