#include "lib/config/edit.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/edit_text.h"
#include "lib/config/emit.h"

static const char doc_name[] = "lima.yaml";

/* One change: the path and what the command line gave. */
struct change {
	struct editor e;
	struct edit_path path;
	struct node *value;
};

static void change_done(struct change *c)
{
	editor_close(&c->e);
}

static int parse_value(struct editor *e, const char *value, struct node **ret, struct error *err)
{
	char *copy = node_pool_strn(e->pool, value, strlen(value));

	if (node_parse(e->pool, "value", copy, strlen(copy), ret, err) < 0)
		return error_wrap(err, "`%.100s`", value);
	(*ret)->parent = NULL;
	return 0;
}

static int change_open(struct change *c, const struct buf *text, const char *path,
		       const char *value, struct error *err)
{
	if (editor_open(&c->e, doc_name, text, err) < 0 ||
	    edit_path_parse(c->e.pool, path, &c->path, NULL, err) < 0)
		return err->code;
	return value ? parse_value(&c->e, value, &c->value, err) : 0;
}

static int change_finish(struct change *c, struct buf *text, const char *path, int rc,
			 struct error *err)
{
	if (rc < 0)
		return error_wrap(err, "%s", path);
	buf_done(text);
	*text = c->e.text;
	c->e.text = (struct buf){ 0 };
	return 0;
}

int edit_set(struct buf *text, const char *path, const char *value, struct error *err)
{
	__attribute__((cleanup(change_done))) struct change c = { 0 };

	if (change_open(&c, text, path, value, err) < 0)
		return err->code;
	return change_finish(&c, text, path, editor_set(&c.e, &c.path, c.value, NULL, err), err);
}

int edit_add(struct buf *text, const char *path, enum edit_place place, const char *value,
	     struct error *err)
{
	__attribute__((cleanup(change_done))) struct change c = { 0 };

	if (change_open(&c, text, path, value, err) < 0)
		return err->code;
	return change_finish(&c, text, path,
			     editor_add(&c.e, &c.path, place, c.value, NULL, err), err);
}

int edit_delete(struct buf *text, const char *path, struct error *err)
{
	__attribute__((cleanup(change_done))) struct change c = { 0 };

	if (change_open(&c, text, path, NULL, err) < 0)
		return err->code;
	return change_finish(&c, text, path, editor_delete(&c.e, &c.path, err), err);
}

int edit_get(const struct buf *text, const char *path, char **ret, struct error *err)
{
	__attribute__((cleanup(change_done))) struct change c = { 0 };
	scoped_buf struct buf out = { 0 };
	const struct node *n;

	if (change_open(&c, text, path, NULL, err) < 0)
		return err->code;
	n = edit_path_find(c.e.root, &c.path);
	if (n && n->kind != NODE_LIST && n->kind != NODE_MAP)
		buf_add_str(&out, n->text);
	else if (n)
		emit_flow(n, &out);
	*ret = n ? xstrdup(buf_str(&out)) : NULL;
	return 0;
}

char *edit_quote(const char *s)
{
	struct buf out = { 0 };

	emit_text(s, &out);
	return buf_steal_str(&out);
}

/* --- expressions ------------------------------------------------------------------ */

static int refuse(const char *piece, struct error *err)
{
	return error_set(err, -EINVAL, "`%.200s` is not understood: write PATH = VALUE, PATH += LIST "
			 "or del(PATH), joined by |", piece);
}

/* In yq a bare word is not a value; `.a + 1`, `env(X)` or a misspelt operator
 * must not be taken for a text. */
static bool is_plain_value(const char *value)
{
	bool quoted = *value == '"' || *value == '\'' || *value == '[' || *value == '{';

	for (const char *p = value; *p && !quoted; p++)
		if (!isalnum((unsigned char)*p) && !strchr("_./:@%+-", *p))
			return false;
	return *value && *value != '.';
}

static int assign(struct buf *text, const char *path, const char *value, struct error *err)
{
	if (!is_plain_value(value))
		return error_set(err, -EINVAL, "`%.200s` is not a value: put text in quotes", value);
	return edit_set(text, path, value, err);
}

static int add_all(struct buf *text, const char *path, const char *value, struct error *err)
{
	scoped_node_pool struct node_pool *pool = node_pool_new();
	struct node *list;

	if (!is_plain_value(value))
		return error_set(err, -EINVAL, "`%.200s` is not a value: put text in quotes", value);
	if (node_parse(pool, "value", value, strlen(value), &list, err) < 0)
		return err->code;
	if (list->kind != NODE_LIST)
		return error_set(err, -EINVAL, "`%.200s` is not a list such as [a, b]", value);
	for (size_t i = 0; i < list->n_items; i++) {
		scoped_buf struct buf item = { 0 };

		emit_flow(list->items[i], &item);
		if (edit_add(text, path, EDIT_LAST, buf_str(&item), err) < 0)
			return err->code;
	}
	return 0;
}

/* One piece between two |, without space around. */
static int run_piece(struct buf *text, const char *piece, struct error *err)
{
	scoped_node_pool struct node_pool *pool = node_pool_new();
	bool del = strncmp(piece, "del(", 4) == 0;
	scoped_free char *path = NULL;
	struct edit_path parsed;
	const char *p = piece + (del ? 4 : 0), *end;
	struct error ignored = ERROR_NONE;

	if (*p != '.' || edit_path_parse(pool, p, &parsed, &end, &ignored) < 0)
		return refuse(piece, err);
	path = xstrndup(p, (size_t)(end - p));
	end += strspn(end, " ");
	if (del)
		return streq(end, ")") ? edit_delete(text, path, err) : refuse(piece, err);
	if (strncmp(end, "+=", 2) == 0)
		return add_all(text, path, end + 2 + strspn(end + 2, " "), err);
	if (*end == '=' && end[1] != '=')
		return assign(text, path, end + 1 + strspn(end + 1, " "), err);
	return refuse(piece, err);
}

/* The | that ends a piece, not one in quotes or brackets. */
static const char *piece_end(const char *s)
{
	unsigned depth = 0;
	char quote = 0;

	for (; *s; s++) {
		if (quote == '"' && *s == '\\' && s[1])
			s++;
		else if (quote)
			quote = *s == quote ? 0 : quote;
		else if (*s == '"' || *s == '\'')
			quote = *s;
		else if (strchr("([{", *s))
			depth++;
		else if (strchr(")]}", *s) && depth)
			depth--;
		else if (*s == '|' && !depth)
			break;
	}
	return s;
}

int edit_expression(struct buf *text, const char *expression, struct error *err)
{
	scoped_buf struct buf copy = { 0 };
	const char *s = expression;

	buf_add(&copy, text->data, text->len);
	for (;;) {
		const char *end = piece_end(s);
		size_t len;

		s += strspn(s, " \t\n");
		for (len = (size_t)(end - s); len && isspace((unsigned char)s[len - 1]);)
			len--;
		scoped_free char *piece = xstrndup(s, len);
		if (run_piece(&copy, piece, err) < 0)
			return err->code;
		if (!*end)
			break;
		s = end + 1;
	}
	buf_done(text);
	*text = copy;
	copy = (struct buf){ 0 };
	return 0;
}
