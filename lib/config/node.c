#include "lib/config/node.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "lib/base/mem.h"

/* --- pool -------------------------------------------------------------------- */

enum { CHUNK_SIZE = 32 << 10 };

struct chunk {
	struct chunk *next;
	size_t used, size;
	max_align_t data[];
};

struct node_pool {
	struct chunk *chunks;	/* newest first */
};

struct node_pool *node_pool_new(void)
{
	return xnew(struct node_pool);
}

void node_pool_free(struct node_pool *pool)
{
	struct chunk *c = pool->chunks;

	while (c) {
		struct chunk *next = c->next;

		free(c);
		c = next;
	}
	free(pool);
}

void *node_pool_alloc(struct node_pool *pool, size_t size)
{
	const size_t align = sizeof(max_align_t);
	struct chunk *c = pool->chunks;
	void *p;

	size = (size + align - 1) / align * align;
	if (!c || c->size - c->used < size) {
		size_t want = MAX(size, (size_t)CHUNK_SIZE);

		c = xmalloc(sizeof(*c) + want);
		*c = (struct chunk){ .next = pool->chunks, .size = want };
		pool->chunks = c;
	}
	p = (char *)c->data + c->used;
	c->used += size;
	return memset(p, 0, size);
}

char *node_pool_strn(struct node_pool *pool, const char *s, size_t len)
{
	char *p = node_pool_alloc(pool, len + 1);

	if (len)
		memcpy(p, s, len);
	return p;
}

char *node_pool_printf(struct node_pool *pool, const char *fmt, ...)
{
	va_list ap;
	char *p;

	va_start(ap, fmt);
	scoped_free char *s = xvasprintf(fmt, ap);
	va_end(ap);
	p = node_pool_strn(pool, s, strlen(s));
	return p;
}

/* --- building ---------------------------------------------------------------- */

struct node *node_new(struct node_pool *pool, enum node_kind kind)
{
	struct node *n = node_pool_alloc(pool, sizeof(*n));

	n->kind = kind;
	n->text = "";
	return n;
}

struct node *node_new_text(struct node_pool *pool, enum node_kind kind, const char *text)
{
	struct node *n = node_new(pool, kind);

	n->text_len = strlen(text);
	n->text = node_pool_strn(pool, text, n->text_len);
	n->num = kind == NODE_BOOL && streq(text, "true");
	return n;
}

struct node *node_new_int(struct node_pool *pool, int64_t num)
{
	struct node *n = node_new(pool, NODE_INT);

	n->text = node_pool_printf(pool, "%lld", (long long)num);
	n->text_len = strlen(n->text);
	n->num = num;
	return n;
}

static void push(struct node_pool *pool, struct node *parent, struct node *child)
{
	if (parent->n_items == parent->cap) {
		size_t cap = parent->cap ? parent->cap * 2 : 8;
		struct node **items = node_pool_alloc(pool, cap * sizeof(struct node *));

		if (parent->n_items)
			memcpy(items, parent->items, parent->n_items * sizeof(*items));
		parent->items = items;
		parent->cap = cap;
	}
	parent->items[parent->n_items++] = child;
}

void node_add(struct node_pool *pool, struct node *parent, const char *key, struct node *child)
{
	if (!child->parent) {
		child->parent = parent;
		child->key = key;
		child->index = (unsigned)parent->n_items;
	}
	for (size_t i = 0; key && i < parent->n_items; i++) {
		if (streq(parent->items[i]->key, key)) {
			parent->items[i] = child;
			return;
		}
	}
	push(pool, parent, child);
}

void node_remove(struct node *parent, size_t i)
{
	memmove(&parent->items[i], &parent->items[i + 1],
		(parent->n_items - i - 1) * sizeof(struct node *));
	parent->n_items--;
}

struct node *node_shallow_copy(struct node_pool *pool, const struct node *n)
{
	struct node *c = node_pool_alloc(pool, sizeof(*c));

	*c = *n;
	c->items = NULL;
	c->n_items = c->cap = 0;
	for (size_t i = 0; i < n->n_items; i++)
		push(pool, c, n->items[i]);
	return c;
}

/* --- asking ------------------------------------------------------------------ */

struct node *node_get(const struct node *map, const char *key)
{
	if (!map || map->kind != NODE_MAP)
		return NULL;
	for (size_t i = 0; i < map->n_items; i++)
		if (streq(map->items[i]->key, key))
			return map->items[i];
	return NULL;
}

struct node *node_at(const struct node *map, ...)
{
	const struct node *n = map;
	const char *key;
	va_list ap;

	va_start(ap, map);
	while (n && (key = va_arg(ap, const char *)))
		n = node_get(n, key);
	va_end(ap);
	return (struct node *)n;
}

const char *node_get_text(const struct node *map, const char *key)
{
	const struct node *n = node_get(map, key);

	return n && n->kind == NODE_STRING ? n->text : NULL;
}

bool node_get_true(const struct node *map, const char *key)
{
	const struct node *n = node_get(map, key);

	return n && n->kind == NODE_BOOL && n->num;
}

void node_path(const struct node *n, struct buf *out)
{
	if (!n || !n->parent)
		return;
	node_path(n->parent, out);
	if (n->key)
		buf_addf(out, "%s%s", out->len ? "." : "", n->key);
	else
		buf_addf(out, "[%u]", n->index);
}

size_t node_byte(const struct node_file *file, size_t at_char)
{
	size_t i = 0;

	while (at_char && i < file->len) {
		i++;
		while (i < file->len && ((unsigned char)file->text[i] & 0xc0) == 0x80)
			i++;
		at_char--;
	}
	return i;
}

const char *node_kind_name(enum node_kind kind)
{
	static const char *const names[] = {
		[NODE_NULL] = "nothing", [NODE_BOOL] = "true or false",
		[NODE_INT] = "a number", [NODE_FLOAT] = "a number with a fraction",
		[NODE_STRING] = "text", [NODE_LIST] = "a list",
		[NODE_MAP] = "a map of keys and values", [NODE_BAD] = "something refused",
	};

	return names[kind];
}

/* --- parsing ----------------------------------------------------------------- */

struct anchor {
	struct anchor *next;
	const char *name;
	const struct node *node;	/* NULL while it is still being read */
};

struct reader {
	struct node_pool *pool;
	const struct node_file *file;
	yaml_parser_t *yaml;
	struct anchor *anchors;
	size_t n_nodes, n_copied;
	unsigned depth;
	struct error *err;
};

static int fail_at(const struct reader *r, yaml_mark_t at, const char *what)
{
	return error_set(r->err, -EINVAL, "%s:%zu:%zu: %s", r->file->name, at.line + 1,
			 at.column + 1, what);
}

/* libyaml's complaint, in a line that helps. */
static char *syntax_text(const struct reader *r)
{
	const yaml_parser_t *p = r->yaml;
	size_t at = node_byte(r->file, p->problem_mark.index);

	if (at < r->file->len && r->file->text[at] == '\t')
		return xstrdup("not valid YAML: a tab cannot indent, use spaces");
	if (!p->context)
		return xasprintf("not valid YAML: %s", p->problem ? p->problem : "cannot be read");
	if (p->context_mark.line == p->problem_mark.line)
		return xasprintf("not valid YAML: %s, %s", p->context, p->problem);
	return xasprintf("not valid YAML: %s that began in line %zu, %s", p->context,
			 p->context_mark.line + 1, p->problem);
}

static int next_event(struct reader *r, yaml_event_t *ev)
{
	const yaml_parser_t *p = r->yaml;
	scoped_free char *what = NULL;

	if (yaml_parser_parse(r->yaml, ev))
		return 0;
	if (p->error == YAML_READER_ERROR)	/* no mark: the bytes themselves are wrong */
		return error_set(r->err, -EINVAL, "%s: not valid YAML: %s at byte %zu",
				 r->file->name, p->problem, p->problem_offset);
	what = syntax_text(r);
	return fail_at(r, p->problem_mark, what);
}

enum node_kind node_plain_kind(const char *s, int64_t *ret_num)
{
	static const char *const nulls[] = { "", "~", "null", "Null", "NULL" };
	static const char *const trues[] = { "true", "True", "TRUE" };
	static const char *const falses[] = { "false", "False", "FALSE" };
	const char *digits = s + (*s == '-' || *s == '+');
	char *end;

	for (size_t i = 0; i < ARRAY_SIZE(nulls); i++)
		if (streq(s, nulls[i]))
			return NODE_NULL;
	for (size_t i = 0; i < ARRAY_SIZE(trues); i++) {
		if (streq(s, trues[i]) || streq(s, falses[i])) {
			*ret_num = streq(s, trues[i]);
			return NODE_BOOL;
		}
	}
	if (!*s || strspn(digits, "0123456789.xXoabcdefABCDEF+-_") != strlen(digits) ||
	    !strpbrk(digits, "0123456789"))
		return NODE_STRING;
	errno = 0;
	if (strncmp(s, "0o", 2) == 0)
		*ret_num = strtoll(s + 2, &end, 8);
	else if (strncmp(s, "0x", 2) == 0)
		*ret_num = strtoll(s, &end, 16);
	else
		*ret_num = strtoll(s, &end, 10);
	if (!*end && errno == 0)
		return NODE_INT;
	if (strspn(digits, "0123456789.eE+-") == strlen(digits)) {
		strtod(s, &end);
		if (!*end)
			return NODE_FLOAT;
	}
	return NODE_STRING;
}

/* RFC 4648 §4; white space between is allowed in YAML. */
static int decode_base64(struct node_pool *pool, const char *s, struct node *n)
{
	char *out = node_pool_alloc(pool, strlen(s) / 4 * 3 + 4);
	size_t len = 0, pad = 0;
	unsigned acc = 0, bits = 0;

	for (; *s; s++) {
		static const char abc[] =
			"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
		const char *at = strchr(abc, *s);

		if (strchr(" \n\r\t", *s))
			continue;
		if (*s == '=') {
			pad++;
			continue;
		}
		if (!at || pad)
			return -EINVAL;
		acc = acc << 6 | (unsigned)(at - abc);
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			out[len++] = (char)(acc >> bits & 0xff);
		}
	}
	if (memchr(out, 0, len))
		return -EINVAL;
	n->text = out;
	n->text_len = len;
	return 0;
}

static int read_scalar(struct reader *r, const yaml_event_t *ev, struct node *n)
{
	const char *s = (const char *)ev->data.scalar.value;
	const char *tag = (const char *)ev->data.scalar.tag;
	bool plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;

	if (memchr(s, 0, ev->data.scalar.length))
		return fail_at(r, ev->start_mark, "text with a NUL character");
	n->text_len = ev->data.scalar.length;
	n->text = node_pool_strn(r->pool, s, n->text_len);
	n->block_scalar = ev->data.scalar.style == YAML_LITERAL_SCALAR_STYLE ||
			  ev->data.scalar.style == YAML_FOLDED_SCALAR_STYLE;
	n->quoted = !plain && !n->block_scalar;
	n->kind = NODE_STRING;
	if (tag && streq(tag, "tag:yaml.org,2002:binary")) {
		if (decode_base64(r->pool, s, n) < 0)
			return fail_at(r, ev->start_mark,
				       "!!binary text is not base64 of a text without NUL");
		return 0;
	}
	if (plain && (!tag || !streq(tag, "tag:yaml.org,2002:str")))
		n->kind = node_plain_kind(n->text, &n->num);
	return 0;
}

static int count_node(struct reader *r, yaml_mark_t at)
{
	if (++r->n_nodes > NODE_MAX_COUNT)
		return fail_at(r, at, "too many values (aliases count where they are used)");
	return 0;
}

static struct node *copy_deep(struct reader *r, const struct node *n, const struct node *parent,
			      yaml_mark_t at)
{
	struct node *c;

	r->n_copied += n->text_len;
	if (count_node(r, at) < 0)
		return NULL;
	if (r->n_copied > NODE_MAX_COPIED) {
		fail_at(r, at, "aliases repeat too much text");
		return NULL;
	}
	c = node_pool_alloc(r->pool, sizeof(*c));
	*c = *n;
	c->copied = true;
	c->parent = parent;
	c->items = NULL;
	c->n_items = c->cap = 0;
	for (size_t i = 0; i < n->n_items; i++) {
		struct node *child = copy_deep(r, n->items[i], c, at);

		if (!child)
			return NULL;
		push(r->pool, c, child);
	}
	return c;
}

static int read_alias(struct reader *r, const yaml_event_t *ev, const struct node *parent,
		      struct node **ret)
{
	const char *name = (const char *)ev->data.alias.anchor;

	for (const struct anchor *a = r->anchors; a; a = a->next) {
		if (!streq(a->name, name))
			continue;
		if (!a->node)
			return fail_at(r, ev->start_mark, "alias refers to what it is part of");
		*ret = copy_deep(r, a->node, parent, ev->start_mark);
		if (!*ret)
			return r->err->code;
		(*ret)->alias = true;
		(*ret)->copied = false;
		(*ret)->line = (unsigned)ev->start_mark.line + 1;
		(*ret)->col = (unsigned)ev->start_mark.column + 1;
		(*ret)->start = ev->start_mark.index;
		(*ret)->end = ev->end_mark.index;
		return 0;
	}
	return fail_at(r, ev->start_mark, "alias without an anchor of that name");
}

static int read_node(struct reader *r, yaml_event_t *ev, const struct node *parent,
		     struct node **ret);

static int read_list(struct reader *r, struct node *list)
{
	for (;;) {
		yaml_event_t ev;
		struct node *item;
		int rc;

		if (next_event(r, &ev) < 0)
			return r->err->code;
		if (ev.type == YAML_SEQUENCE_END_EVENT) {
			list->end = ev.end_mark.index;
			yaml_event_delete(&ev);
			return 0;
		}
		rc = read_node(r, &ev, list, &item);
		yaml_event_delete(&ev);
		if (rc < 0)
			return rc;
		item->index = (unsigned)list->n_items;
		push(r->pool, list, item);
	}
}

/* `<<: *base` adds the keys of @from that @map lacks (YAML 1.1 merge key). */
static int add_merge_key(struct reader *r, struct node *map, struct node *from, yaml_mark_t at)
{
	if (from->kind == NODE_LIST) {
		for (size_t i = 0; i < from->n_items; i++)
			if (add_merge_key(r, map, from->items[i], at) < 0)
				return r->err->code;
		return 0;
	}
	if (from->kind != NODE_MAP)
		return fail_at(r, at, "<<: expects a map or a list of maps");
	for (size_t i = 0; i < from->n_items; i++) {
		struct node *c = from->items[i];

		if (node_get(map, c->key))
			continue;
		c->parent = map;
		c->copied = true;
		push(r->pool, map, c);
	}
	return 0;
}

static int read_key(struct reader *r, const yaml_event_t *ev, const struct node *map,
		    struct node *pair)
{
	const struct node *twin;

	if (ev->type != YAML_SCALAR_EVENT)
		return fail_at(r, ev->start_mark, "a key must be a word");
	if (map->n_items >= NODE_MAX_KEYS)
		return fail_at(r, ev->start_mark, "too many keys in one map");
	if (memchr(ev->data.scalar.value, 0, ev->data.scalar.length))
		return fail_at(r, ev->start_mark, "key with a NUL character");
	pair->key = node_pool_strn(r->pool, (const char *)ev->data.scalar.value,
				   ev->data.scalar.length);
	pair->key_line = (unsigned)ev->start_mark.line + 1;
	pair->key_col = (unsigned)ev->start_mark.column + 1;
	pair->key_start = ev->start_mark.index;
	twin = node_get(map, pair->key);
	if (twin && !twin->copied) {
		scoped_free char *what = xasprintf("key %s was given before, in line %u",
						   pair->key, twin->key_line);

		return fail_at(r, ev->start_mark, what);
	}
	return 0;
}

/* The value to the key in @pair. */
static int read_value(struct reader *r, struct node *map, const struct node *pair,
		      struct node **ret_merge)
{
	yaml_event_t ev;
	struct node *child;
	int rc;

	if (next_event(r, &ev) < 0)
		return r->err->code;
	rc = read_node(r, &ev, map, &child);
	if (rc == 0 && streq(pair->key, "<<") && !*ret_merge &&
	    (child->kind == NODE_MAP || child->kind == NODE_LIST)) {
		*ret_merge = child;
	} else if (rc == 0) {
		child->key = pair->key;
		child->key_line = pair->key_line;
		child->key_col = pair->key_col;
		child->key_start = pair->key_start;
		push(r->pool, map, child);
	}
	yaml_event_delete(&ev);
	return rc;
}

static int read_map(struct reader *r, struct node *map)
{
	struct node *merge = NULL;

	for (;;) {
		struct node pair = { 0 };
		yaml_event_t ev;
		int rc;

		if (next_event(r, &ev) < 0)
			return r->err->code;
		if (ev.type == YAML_MAPPING_END_EVENT) {
			map->end = ev.end_mark.index;
			rc = merge ? add_merge_key(r, map, merge, ev.start_mark) : 0;
			yaml_event_delete(&ev);
			return rc;
		}
		rc = read_key(r, &ev, map, &pair);
		yaml_event_delete(&ev);
		if (rc < 0)
			return rc;
		rc = read_value(r, map, &pair, &merge);
		if (rc < 0)
			return rc;
	}
}

static const char *event_anchor(const yaml_event_t *ev)
{
	const yaml_char_t *a = ev->type == YAML_SCALAR_EVENT	     ? ev->data.scalar.anchor :
			       ev->type == YAML_SEQUENCE_START_EVENT ? ev->data.sequence_start.anchor :
								       ev->data.mapping_start.anchor;

	return (const char *)a;
}

static struct anchor *add_anchor(struct reader *r, const char *name)
{
	struct anchor *a = node_pool_alloc(r->pool, sizeof(*a));

	a->name = node_pool_strn(r->pool, name, strlen(name));
	a->next = r->anchors;
	r->anchors = a;
	return a;
}

static int read_node(struct reader *r, yaml_event_t *ev, const struct node *parent,
		     struct node **ret)
{
	struct anchor *anchor = NULL;
	struct node *n;
	int rc;

	if (ev->type == YAML_ALIAS_EVENT)
		return read_alias(r, ev, parent, ret);
	if (count_node(r, ev->start_mark) < 0)
		return r->err->code;
	if (r->depth >= NODE_MAX_DEPTH)
		return fail_at(r, ev->start_mark, "nested too deep");
	if (event_anchor(ev))
		anchor = add_anchor(r, event_anchor(ev));
	n = node_new(r->pool, NODE_NULL);
	n->file = r->file;
	n->parent = parent;
	n->line = (unsigned)ev->start_mark.line + 1;
	n->col = (unsigned)ev->start_mark.column + 1;
	n->start = ev->start_mark.index;
	n->end = ev->end_mark.index;
	r->depth++;
	if (ev->type == YAML_SCALAR_EVENT) {
		rc = read_scalar(r, ev, n);
	} else if (ev->type == YAML_SEQUENCE_START_EVENT) {
		n->kind = NODE_LIST;
		n->flow = ev->data.sequence_start.style == YAML_FLOW_SEQUENCE_STYLE;
		rc = read_list(r, n);
	} else {
		n->kind = NODE_MAP;
		n->flow = ev->data.mapping_start.style == YAML_FLOW_MAPPING_STYLE;
		rc = read_map(r, n);
	}
	r->depth--;
	if (anchor)
		anchor->node = n;
	*ret = n;
	return rc;
}

static int read_document(struct reader *r, struct node **ret)
{
	bool have = false;
	int rc = 0;

	while (rc == 0) {
		yaml_event_t ev;
		yaml_event_type_t type;

		if (next_event(r, &ev) < 0)
			return r->err->code;
		type = ev.type;
		if (type == YAML_DOCUMENT_START_EVENT && have) {
			rc = fail_at(r, ev.start_mark, "a second document; only one is allowed");
		} else if (type == YAML_SCALAR_EVENT || type == YAML_SEQUENCE_START_EVENT ||
			   type == YAML_MAPPING_START_EVENT || type == YAML_ALIAS_EVENT) {
			rc = read_node(r, &ev, NULL, ret);
			have = true;
		}
		yaml_event_delete(&ev);
		if (type == YAML_STREAM_END_EVENT)
			break;
	}
	return rc;
}

int node_parse(struct node_pool *pool, const char *file, const char *text, size_t len,
	       struct node **ret, struct error *err)
{
	struct node_file *f = node_pool_alloc(pool, sizeof(*f));
	struct node *root = NULL;
	yaml_parser_t yaml;
	struct reader r = { .pool = pool, .file = f, .yaml = &yaml, .err = err };
	int rc;

	*f = (struct node_file){ .name = node_pool_strn(pool, file, strlen(file)),
				 .text = text, .len = len };
	if (len > NODE_MAX_TEXT)
		return error_set(err, -EFBIG, "%s: larger than %d MiB", file, NODE_MAX_TEXT >> 20);
	if (!yaml_parser_initialize(&yaml))
		abort();
	yaml_parser_set_input_string(&yaml, (const unsigned char *)text, len);
	yaml_parser_set_encoding(&yaml, YAML_UTF8_ENCODING);
	rc = read_document(&r, &root);
	yaml_parser_delete(&yaml);
	if (rc < 0)
		return rc;
	if (!root) {
		root = node_new(pool, NODE_NULL);
		root->file = f;
		root->line = root->col = 1;
	}
	*ret = root;
	return 0;
}
