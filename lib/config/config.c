#include "lib/config/config.h"

#include <errno.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/schema.h"

static const char *const arch_names[ARCH_COUNT] = {
	[ARCH_X86_64] = "x86_64",   [ARCH_AARCH64] = "aarch64", [ARCH_ARMV7L] = "armv7l",
	[ARCH_PPC64LE] = "ppc64le", [ARCH_RISCV64] = "riscv64", [ARCH_S390X] = "s390x",
};

const char *arch_name(enum arch arch)
{
	return arch_names[arch];
}

bool arch_parse(const char *name, enum arch *ret)
{
	for (int i = 0; i < ARCH_COUNT; i++) {
		if (streq(arch_names[i], name)) {
			*ret = (enum arch)i;
			return true;
		}
	}
	return false;
}

/* What this program was built for; a foreign one runs nothing here anyway. */
enum arch arch_host(void)
{
#if defined(__x86_64__)
	return ARCH_X86_64;
#elif defined(__aarch64__)
	return ARCH_AARCH64;
#elif defined(__arm__)
	return ARCH_ARMV7L;
#elif defined(__powerpc64__)
	return ARCH_PPC64LE;
#elif defined(__riscv)
	return ARCH_RISCV64;
#elif defined(__s390x__)
	return ARCH_S390X;
#else
#error "unknown host architecture"
#endif
}

const char *config_map_get(const struct config_map *m, const char *key)
{
	for (size_t i = 0; i < m->len; i++)
		if (streq(m->items[i].key, key))
			return m->items[i].value;
	return NULL;
}

void config_free(struct config *c)
{
	if (!c)
		return;
	schema_release(c);
	buf_done(&c->json);
	free(c);
}

/* One of the three texts; a failure is a problem like any other. */
static struct node *parse(struct resolve *r, const char *name, const char *text, size_t len)
{
	struct error err = ERROR_NONE;
	struct node *n = NULL;

	if (node_parse(r->pool, name, text, len, &n, &err) < 0) {
		r->problems.n_errors++;
		strv_take(&r->problems.list->errors, log_escape(err.msg, ERROR_MSG_SIZE));
		return NULL;
	}
	schema_typecheck(r, n);
	return n;
}

/* _config/NAME below LIMA_HOME; NULL when there is none. */
static struct node *parse_shared(struct resolve *r, const char *name)
{
	scoped_free char *path = xasprintf("%s/_config/%s", r->ctx->lima_home, name);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;
	int rc = path_read_file(path, NODE_MAX_TEXT, &b, &err);

	if (rc == -ENOENT || rc == -ENOTDIR)
		return NULL;
	if (rc < 0) {
		r->problems.n_errors++;
		strv_add(&r->problems.list->errors, err.msg);
		return NULL;
	}
	/* nodes point into the text */
	return parse(r, path, node_pool_strn(r->pool, buf_str(&b), b.len), b.len);
}

static void set_plain(struct resolve *r, struct node *map, const char *key, enum node_kind kind,
		      const char *text)
{
	node_add(r->pool, map, key, node_new_text(r->pool, kind, text));
}

void schema_apply_plain(struct resolve *r)
{
	struct node *rules = node_get(r->root, "portForwards");
	struct node *containerd = node_get(r->root, "containerd");

	if (!node_get_true(r->root, "plain"))
		return;
	for (size_t i = 0; i < rules->n_items; i++)
		if (!node_get_true(rules->items[i], "static"))
			node_remove(rules, i--);
	node_get(r->root, "mounts")->n_items = 0;
	set_plain(r, containerd, "user", NODE_BOOL, "false");
	set_plain(r, containerd, "system", NODE_BOOL, "false");
	set_plain(r, r->root, "timezone", NODE_STRING, "");
	set_plain(r, node_get(r->root, "ssh"), "forwardAgent", NODE_BOOL, "false");
}

/* The stages in order; each reports into r->problems and goes on. */
static void resolve(struct resolve *r, const char *path, const char *text, size_t len)
{
	struct node *own = parse(r, path, text, len);
	struct node *dflt, *over;

	if (!own)
		return;		/* without it every other message would mislead */
	dflt = parse_shared(r, "default.yaml");
	over = parse_shared(r, "override.yaml");
	r->own = own;
	if (own->kind == NODE_BAD || (dflt && dflt->kind == NODE_BAD) ||
	    (over && over->kind == NODE_BAD))
		return;
	r->root = schema_merge(r, dflt, own, over);
	schema_note_used_params(r);
	schema_fill_user(r);
	schema_expand(r);
	schema_collapse(r);
	schema_fill(r);
	schema_expand_message(r);
	schema_validate(r);
}

static int by_position(const void *a, const void *b)
{
	return strverscmp(*(char *const *)a, *(char *const *)b);	/* x:9:1 before x:14:5 */
}

/* In the order of the file, whatever stage found them. */
static void sort_lines(struct strv *v)
{
	if (v->len)
		qsort(v->items, v->len, sizeof(*v->items), by_position);
}

static int report(const struct problem_sink *s, struct error *err)
{
	const char *first = s->list->errors.len ? s->list->errors.items[0] : "cannot be read";

	if (s->n_errors > 1)
		return error_set(err, -EINVAL, "%s (and %zu more)", first, s->n_errors - 1);
	return error_set(err, -EINVAL, "%s", first);
}

int config_load(const struct config_context *ctx, const char *path, const char *text, size_t len,
		struct config_problems *problems, struct config **ret, struct error *err)
{
	scoped_node_pool struct node_pool *pool = node_pool_new();
	struct config_problems own = { 0 };
	struct resolve r = {
		.ctx = ctx,
		.pool = pool,
		.problems = { .list = problems ? problems : &own, .main_file = path },
	};
	struct config *c = NULL;
	int rc = 0;

	resolve(&r, path, text, len);
	sort_lines(&r.problems.list->errors);
	sort_lines(&r.problems.list->warnings);
	if (r.problems.n_errors) {
		rc = report(&r.problems, err);
	} else {
		schema_apply_plain(&r);
		c = xnew(struct config);
		schema_decode(r.root, c);
		schema_json(r.root, &c->json);
		*ret = c;
	}
	expr_vars_done(&r.guest);
	expr_vars_done(&r.host);
	expr_vars_done(&r.message);
	strv_done(&r.used_params);
	config_problems_done(&own);
	return rc;
}
