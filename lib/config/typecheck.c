/* First stage: every value of one file has the type its row says. */
#include "lib/config/schema.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/near.h"
#include "lib/config/size.h"

typedef void (*type_fn)(struct resolve *r, const struct schema_key *k, struct node *n);

static void refuse(struct resolve *r, struct node *n, const char *what)
{
	problem_error(&r->problems, n, "%s %s", problem_value(r->pool, n), what);
	n->kind = NODE_BAD;
}

static bool is_scalar(const struct node *n)
{
	return n->kind == NODE_STRING || n->kind == NODE_BOOL || n->kind == NODE_INT ||
	       n->kind == NODE_FLOAT;
}

static void type_bool(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind == NODE_STRING && (streq(n->text, "true") || streq(n->text, "false"))) {
		n->kind = NODE_BOOL;
		n->num = streq(n->text, "true");
	}
	if (n->kind != NODE_BOOL)
		refuse(r, n, "is neither true nor false");
}

/* A number, also in quotes (limactl --port-forward writes ports so). */
static bool to_int(struct node *n)
{
	if (n->kind == NODE_STRING && n->text_len && strspn(n->text, "0123456789") == n->text_len) {
		errno = 0;
		n->num = strtoll(n->text, NULL, 10);
		if (errno == 0)
			n->kind = NODE_INT;
	}
	return n->kind == NODE_INT;
}

static void type_int(struct resolve *r, const struct schema_key *k, struct node *n)
{
	int64_t max = k->max ? k->max : UINT32_MAX;

	if (!to_int(n))
		refuse(r, n, "is not a whole number");
	else if (n->num < k->min || n->num > max)
		refuse(r, n, node_pool_printf(r->pool, "is out of range (%lld–%lld)",
					      (long long)k->min, (long long)max));
}

static void type_port(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (!to_int(n) || n->num < k->min || n->num > 65535)
		refuse(r, n, k->min ? "is not a port (1–65535)" :
				      "is not a port (1–65535, or 0 for any free one)");
	else if (k->min && n->num == 22)
		refuse(r, n, "is the port of ssh and cannot be forwarded");
}

static void type_port_or_auto(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind == NODE_STRING && streq(n->text, "auto"))
		return;
	if (n->kind == NODE_STRING && n->text_len && !to_int(n))
		refuse(r, n, "is neither a port (1–65535) nor auto");
	else
		type_port(r, k, n);
}

static void type_port_range(struct resolve *r, const struct schema_key *k, struct node *n)
{
	const struct schema_key port = { .min = 1 };

	if (n->kind != NODE_LIST || n->n_items != 2) {
		refuse(r, n, "is not a range of ports, [FIRST, LAST]");
		return;
	}
	for (size_t i = 0; i < 2; i++) {
		type_port(r, &port, n->items[i]);
		if (n->items[i]->kind == NODE_BAD)
			n->kind = NODE_BAD;
	}
	if (n->kind == NODE_LIST && n->items[0]->num > n->items[1]->num) {
		problem_error(&r->problems, n, "the first port, %lld, is above the last, %lld",
			      (long long)n->items[0]->num, (long long)n->items[1]->num);
		n->kind = NODE_BAD;
	}
}

static void type_size(struct resolve *r, const struct schema_key *k, struct node *n)
{
	uint64_t bytes = 0;

	if (!is_scalar(n) || n->kind == NODE_BOOL || !size_parse(n->text, &bytes)) {
		refuse(r, n, "is not a size such as 4GiB or 512MiB");
		return;
	}
	n->kind = NODE_STRING;
	n->num = (int64_t)bytes;
}

static void type_string(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (is_scalar(n))
		n->kind = NODE_STRING;	/* `permissions: 644`, `x: true`: as written */
	else
		refuse(r, n, "is not text");
}

static void type_word(struct resolve *r, const struct schema_key *k, struct node *n)
{
	scoped_buf struct buf all = { 0 };
	struct near near = { .wanted = n->text };

	if (!is_scalar(n)) {
		refuse(r, n, "is not text");
		return;
	}
	n->kind = NODE_STRING;
	for (const char *const *w = k->words; *w; w++) {
		if (streq(*w, n->text))
			return;
		near_offer(&near, *w);
		buf_addf(&all, "%s%s", all.len ? ", " : "", *w);
	}
	if (near.best)
		refuse(r, n, node_pool_printf(r->pool, "is unknown; did you mean %s?", near.best));
	else
		refuse(r, n, node_pool_printf(r->pool, "is none of: %s", buf_str(&all)));
}

static void type_ip(struct resolve *r, const struct schema_key *k, struct node *n)
{
	struct in6_addr ip;

	if (n->kind != NODE_STRING || (inet_pton(AF_INET, n->text, &ip) != 1 &&
				       inet_pton(AF_INET6, n->text, &ip) != 1))
		refuse(r, n, "is not an IP address");
}

static void type_map(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind != NODE_MAP) {
		refuse(r, n, "is not a map of keys and values");
		return;
	}
	for (size_t i = 0; i < n->n_items; i++) {
		if (n->items[i]->kind == NODE_NULL) {	/* `KEY:` is the empty text */
			n->items[i]->kind = NODE_STRING;
			n->items[i]->text = "";
			n->items[i]->text_len = 0;
		}
		type_string(r, k, n->items[i]);
		if (n->items[i]->kind == NODE_BAD)
			node_remove(n, i--);
	}
}

static void type_strings(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind != NODE_LIST) {
		refuse(r, n, "is not a list");
		return;
	}
	for (size_t i = 0; i < n->n_items; i++) {
		type_string(r, k, n->items[i]);
		if (n->items[i]->kind == NODE_BAD)
			node_remove(n, i--);
	}
}

static void check_keys(struct resolve *r, const struct schema_object *obj, struct node *map);

/* X where {short_key: X} is meant. */
static struct node *unfold(struct resolve *r, const struct schema_key *k, struct node *n)
{
	struct node *map;

	if (!k->short_key || n->kind != NODE_STRING)
		return n;
	map = node_pool_alloc(r->pool, sizeof(*map));
	*map = *n;
	map->kind = NODE_MAP;
	map->items = NULL;
	map->n_items = map->cap = 0;
	n->parent = NULL;
	node_add(r->pool, map, k->short_key, n);
	return map;
}

static void type_object(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind != NODE_MAP)
		refuse(r, n, "is not a map of keys and values");
	else
		check_keys(r, k->object, n);
}

static void type_list(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (n->kind == NODE_STRING && k->short_key) {	/* `base: X` for `base: [X]` */
		struct node *item = node_shallow_copy(r->pool, n);

		item->key = NULL;
		item->parent = NULL;
		n->kind = NODE_LIST;
		node_add(r->pool, n, NULL, item);
	}
	if (n->kind != NODE_LIST) {
		refuse(r, n, "is not a list");
		return;
	}
	for (size_t i = 0; i < n->n_items; i++) {
		struct node *item = unfold(r, k, n->items[i]);

		n->items[i] = item;
		type_object(r, k, item);
	}
}

static void type_any(struct resolve *r, const struct schema_key *k, struct node *n)
{
}

static const type_fn types[TYPE_COUNT] = {
	[TYPE_BOOL] = type_bool,
	[TYPE_INT] = type_int,
	[TYPE_PORT] = type_port,
	[TYPE_PORT_OR_AUTO] = type_port_or_auto,
	[TYPE_PORT_RANGE] = type_port_range,
	[TYPE_SIZE] = type_size,
	[TYPE_STRING] = type_string,
	[TYPE_ENUM] = type_word,
	[TYPE_WORD] = type_word,
	[TYPE_IP] = type_ip,
	[TYPE_MAP] = type_map,
	[TYPE_STRINGS] = type_strings,
	[TYPE_OBJECT] = type_object,
	[TYPE_LIST] = type_list,
	[TYPE_ANY] = type_any,
};

static bool is_unset(const struct schema_key *k, const struct node *n)
{
	if (n->kind == NODE_NULL)
		return true;
	if ((k->flags & KEY_DEFAULT_UNSET) && streq(n->text, "default"))
		return true;
	return (k->flags & KEY_EMPTY_UNSET) &&
	       ((n->kind == NODE_STRING && !n->text_len) || (n->kind == NODE_INT && n->num == 0));
}

static void warn_unknown(struct resolve *r, const struct schema_object *obj, const struct node *n)
{
	struct near near = { .wanted = n->key };

	for (size_t i = 0; i < obj->n_keys; i++)
		near_offer(&near, obj->keys[i].name);
	if (near.best)
		problem_warn(&r->problems, n, "unknown key, ignored; did you mean %s?", near.best);
	else
		problem_warn(&r->problems, n, "unknown key, ignored");
}

/* What the user asked for and will not get. */
static void warn_no_effect(struct resolve *r, const struct schema_key *k, const struct node *n)
{
	bool empty = (n->kind == NODE_LIST || n->kind == NODE_MAP) && !n->n_items;
	bool inert = k->def && (n->kind == NODE_BOOL ? n->num == streq(k->def, "true") :
						       streq(n->text, k->def));

	if (k->flags & KEY_OBSOLETE)
		problem_warn(&r->problems, n, "is obsolete; use %s", k->instead);
	if ((k->flags & KEY_NO_EFFECT) && !empty && !inert && n->kind != NODE_BAD)
		problem_warn(&r->problems, n, "has no effect yet%s%s", k->instead ? ": " : "",
			     k->instead ? k->instead : "");
}

static void check_keys(struct resolve *r, const struct schema_object *obj, struct node *map)
{
	for (size_t i = 0; i < map->n_items; i++) {
		struct node *n = map->items[i];
		const struct schema_key *k = schema_find(obj, n->key);

		if (!k) {
			warn_unknown(r, obj, n);
		} else if (!is_unset(k, n)) {
			if (k->type == TYPE_OBJECT)
				n = map->items[i] = unfold(r, k, n);
			types[k->type](r, k, n);
			warn_no_effect(r, k, n);
			continue;
		}
		node_remove(map, i--);
	}
}

void schema_typecheck(struct resolve *r, struct node *root)
{
	if (root->kind == NODE_NULL)
		root->kind = NODE_MAP;	/* empty file */
	if (root->kind != NODE_MAP)
		refuse(r, root, "is not a map of keys and values");
	else
		check_keys(r, &schema_root, root);
}
