/* Third stage: {{…}} in the values whose rows allow it. */
#include "lib/config/schema.h"

#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/host.h"

static void expand_value(struct resolve *r, const struct expr_vars *vars, struct node *n)
{
	scoped_free char *out = NULL, *missing = NULL;
	struct error err = ERROR_NONE;

	if (n->kind != NODE_STRING)
		return;
	if (expr_expand(n->text, vars, &out, &missing, &err) < 0) {
		problem_warn(&r->problems, n, "{{…}} is left as it is: %s", err.msg);
		return;
	}
	if (missing)
		problem_warn(&r->problems, n, "{{.%s}} is not in param: it stands for nothing",
			     missing);
	if (out) {
		n->text_len = strlen(out);
		n->text = node_pool_strn(r->pool, out, n->text_len);
	}
}

static void expand_object(struct resolve *r, const struct schema_object *obj, struct node *map)
{
	for (size_t i = 0; i < map->n_items; i++) {
		struct node *n = map->items[i];
		const struct schema_key *k = schema_find(obj, n->key);

		if (!k || n->kind == NODE_BAD)
			continue;
		if (k->flags & (KEY_GUEST_EXPR | KEY_HOST_EXPR))
			expand_value(r, k->flags & KEY_GUEST_EXPR ? &r->guest : &r->host, n);
		if (k->type == TYPE_OBJECT && n->kind == NODE_MAP)
			expand_object(r, k->object, n);
		for (size_t j = 0; k->type == TYPE_LIST && j < n->n_items; j++)
			if (n->items[j]->kind == NODE_MAP)
				expand_object(r, k->object, n->items[j]);
	}
}

static void add_params(struct resolve *r, struct expr_vars *vars)
{
	const struct node *param = node_get(r->root, "param");

	for (size_t i = 0; param && i < param->n_items; i++)
		expr_vars_add(vars, node_pool_printf(r->pool, "Param.%s", param->items[i]->key),
			      param->items[i]->text);
}

static const char *hostname_of(struct resolve *r)
{
	char *s = node_pool_printf(r->pool, "lima-%s", r->ctx->instance);

	for (char *p = s; *p; p++)
		if (*p == '.' || *p == '_')
			*p = '-';
	return s;
}

static void set_host_vars(struct resolve *r, struct expr_vars *v)
{
	const struct host_facts *f = host_facts();

	expr_vars_add(v, "Dir", r->ctx->instance_dir);
	expr_vars_add(v, "Name", r->ctx->instance);
	expr_vars_add(v, "Instance", r->ctx->instance);		/* old names of Lima */
	expr_vars_add(v, "LimaHome", r->ctx->lima_home);
	expr_vars_add(v, "UID", node_pool_printf(r->pool, "%u", f->uid));
	expr_vars_add(v, "User", f->user);
	expr_vars_add(v, "Home", f->home);
	expr_vars_add(v, "GlobalTempDir", "/tmp");
	expr_vars_add(v, "TempDir", f->temp_dir);
	add_params(r, v);
}

static const char *user_text(const struct resolve *r, const char *key)
{
	const struct node *n = node_at(r->root, "user", key, NULL);

	return n && n->kind != NODE_BAD ? n->text : "";
}

static void set_guest_vars(struct resolve *r, struct expr_vars *v)
{
	const struct node *home = node_at(r->root, "user", "home", NULL);

	expr_vars_add(v, "Name", r->ctx->instance);
	expr_vars_add(v, "Hostname", hostname_of(r));
	expr_vars_add(v, "UID", user_text(r, "uid"));
	expr_vars_add(v, "User", user_text(r, "name"));
	add_params(r, v);
	if (home) {	/* may itself use the variables above */
		expand_value(r, v, (struct node *)home);
		expr_vars_add(v, "Home", home->text);
	}
}

static const char *root_text(const struct resolve *r, const char *key)
{
	const struct node *n = node_get(r->root, key);

	return n && n->kind != NODE_BAD ? n->text : "";
}

static void set_message_vars(struct resolve *r, struct expr_vars *v)
{
	const struct { const char *name, *value; } fields[] = {
		{ "Name", r->ctx->instance },
		{ "Hostname", hostname_of(r) },
		{ "Dir", r->ctx->instance_dir },
		{ "SSHConfigFile", node_pool_printf(r->pool, "%s/ssh.config", r->ctx->instance_dir) },
		{ "LimaHome", r->ctx->lima_home },
		{ "VMType", root_text(r, "vmType") },
		{ "Arch", root_text(r, "arch") },
		{ "CPUs", root_text(r, "cpus") },
		{ "Memory", root_text(r, "memory") },
		{ "Disk", root_text(r, "disk") },
	};
	static const char *const user_keys[][2] = {
		{ "Name", "name" }, { "Home", "home" }, { "UID", "uid" }, { "Shell", "shell" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		expr_vars_add(v, fields[i].name, fields[i].value);
		expr_vars_add(v, node_pool_printf(r->pool, "Instance.%s", fields[i].name),
			      fields[i].value);
	}
	for (size_t i = 0; i < ARRAY_SIZE(user_keys); i++)
		expr_vars_add(v, node_pool_printf(r->pool, "Instance.Config.User.%s",
						  user_keys[i][0]),
			      user_text(r, user_keys[i][1]));
	add_params(r, v);
}

void schema_expand(struct resolve *r)
{
	set_guest_vars(r, &r->guest);
	set_host_vars(r, &r->host);
	expand_object(r, &schema_root, r->root);
}

void schema_expand_message(struct resolve *r)
{
	struct node *message = node_get(r->root, "message");

	set_message_vars(r, &r->message);
	expand_value(r, &r->message, message);
}
