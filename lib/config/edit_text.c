#include "lib/config/edit_text.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/emit.h"

int editor_open(struct editor *e, const char *name, const struct buf *text, struct error *err)
{
	*e = (struct editor){ .pool = node_pool_new() };
	buf_add(&e->text, text->data, text->len);
	buf_add_str(&e->text, "");
	if (node_parse(e->pool, name, buf_str(&e->text), e->text.len, &e->root, err) < 0) {
		editor_close(e);
		return err->code;
	}
	return 0;
}

void editor_close(struct editor *e)
{
	if (e->pool)
		node_pool_free(e->pool);
	buf_done(&e->text);
	*e = (struct editor){ 0 };
}

/* --- positions: byte offsets into a file's text ------------------------------------ */

static bool is_block(const struct node *n)
{
	return (n->kind == NODE_MAP || n->kind == NODE_LIST) && !n->flow && !n->alias;
}

static size_t at(const struct node *n, size_t in_chars)
{
	return node_byte(n->file, in_chars);
}

static size_t line_start(const struct node_file *f, size_t pos)
{
	while (pos && f->text[pos - 1] != '\n')
		pos--;
	return pos;
}

/* Behind the line break; the end of the text if there is none. */
static size_t line_end(const struct node_file *f, size_t pos)
{
	while (pos < f->len && f->text[pos] != '\n')
		pos++;
	return pos < f->len ? pos + 1 : pos;
}

/* The last child written in its parent's place; NULL none. */
static const struct node *last_child(const struct node *n)
{
	for (size_t i = n->n_items; i-- > 0;)
		if (!n->items[i]->copied)
			return n->items[i];
	return NULL;
}

static const struct node *first_child(const struct node *n)
{
	for (size_t i = 0; i < n->n_items; i++)
		if (!n->items[i]->copied)
			return n->items[i];
	return NULL;
}

/* Behind the last character that belongs to the value. libyaml's own end of a
 * block lies behind comments that follow it. */
static size_t content_end(const struct node *n)
{
	size_t end = at(n, n->end), start = at(n, n->start);

	if (is_block(n))
		return last_child(n) ? content_end(last_child(n)) : start;
	while (n->block_scalar && end > start && isspace((unsigned char)n->file->text[end - 1]))
		end--;
	return end;
}

/* Behind the colon of a key. */
static size_t after_colon(const struct node *n)
{
	const char *text = n->file->text;
	size_t p = at(n, n->key_start), len = n->file->len;

	if (text[p] == '"' || text[p] == '\'') {
		char quote = text[p++];

		while (p < len && text[p] != quote)
			p += 1 + (quote == '"' && text[p] == '\\');
	}
	while (p < len && !(text[p] == ':' && (p + 1 == len || isspace((unsigned char)text[p + 1]))))
		p++;
	return p + 1;
}

static bool only_space(const struct node_file *f, size_t from, size_t to)
{
	for (; from < to; from++)
		if (!isspace((unsigned char)f->text[from]))
			return false;
	return true;
}

/* Column, from 0, where the keys or dashes of a block stand. */
static unsigned block_indent(const struct node *n)
{
	const struct node *first = first_child(n);

	return n->kind == NODE_MAP && first ? first->key_col - 1 : n->col - 1;
}

/* --- changing ------------------------------------------------------------------ */

/* Replaces bytes [start, end); the text stays as it was if the result is not
 * YAML any more. */
static int splice(struct editor *e, size_t start, size_t end, const char *with, struct error *err)
{
	struct node_pool *pool = node_pool_new();
	struct buf text = { 0 };
	struct node *root;

	buf_add(&text, e->text.data, start);
	buf_add_str(&text, with);
	buf_add(&text, e->text.data + end, e->text.len - end);
	if (node_parse(pool, e->root->file->name, buf_str(&text), text.len, &root, err) < 0) {
		error_wrap(err, "cannot make that change to a text written this way");
		buf_done(&text);
		node_pool_free(pool);
		return err->code;
	}
	editor_close(e);
	*e = (struct editor){ .text = text, .pool = pool, .root = root };
	return 0;
}

/* Lines at the left margin, moved right. */
static void add_indented(struct buf *out, const char *lines, unsigned indent)
{
	while (*lines) {
		size_t n = strcspn(lines, "\n");

		if (n)
			for (unsigned i = 0; i < indent; i++)
				buf_add_u8(out, ' ');
		buf_add(out, lines, n);
		buf_add_str(out, "\n");
		lines += n + (lines[n] == '\n');
	}
}

/* New lines behind everything that belongs to @block. */
static int insert_after(struct editor *e, const struct node *block, const char *lines,
			struct error *err)
{
	size_t pos = line_end(block->file, content_end(block));
	scoped_buf struct buf out = { 0 };

	if (pos && e->text.data[pos - 1] != '\n')
		buf_add_str(&out, "\n");
	buf_add_str(&out, lines);
	return splice(e, pos, pos, buf_str(&out), err);
}

/* Where the next item goes in {…} or […], with the comma it needs. */
static int insert_flow(struct editor *e, const struct node *n, enum edit_place place,
		       const char *piece, struct error *err)
{
	const struct node *last = last_child(n), *first = first_child(n);
	scoped_free char *with = NULL;
	size_t pos;

	if (!last) {
		pos = at(n, n->start) + 1;
		with = xstrdup(piece);
	} else if (place == EDIT_FIRST) {
		pos = at(first, first->key ? first->key_start : first->start);
		with = xasprintf("%s, ", piece);
	} else {
		pos = at(last, last->end);
		with = xasprintf(", %s", piece);
	}
	return splice(e, pos, pos, with, err);
}

static int put_entry(struct editor *e, const struct node *map, const char *key,
		     const struct node *value, const char *source, struct error *err)
{
	scoped_buf struct buf out = { 0 };

	if (map->flow) {
		emit_text(key, &out);
		buf_add_str(&out, ": ");
		emit_flow(value, &out);
		return insert_flow(e, map, EDIT_LAST, buf_str(&out), err);
	}
	if (!last_child(map))
		return error_set(err, -EINVAL, "line %u: a map made of `<<` alone cannot be changed",
				 map->line);
	if (source)
		add_indented(&out, source, block_indent(map));
	else
		emit_entry(key, value, block_indent(map), &out);
	return insert_after(e, map, buf_str(&out), err);
}

static int put_item(struct editor *e, const struct node *list, enum edit_place place,
		    const struct node *value, const char *source, struct error *err)
{
	scoped_buf struct buf out = { 0 };
	size_t start, pos;

	if (list->flow) {
		emit_flow(value, &out);
		return insert_flow(e, list, place, buf_str(&out), err);
	}
	if (source)
		add_indented(&out, source, block_indent(list));
	else
		emit_item(value, block_indent(list), &out);
	if (place != EDIT_FIRST)
		return insert_after(e, list, buf_str(&out), err);
	start = at(list, list->start);
	pos = line_start(list->file, start);
	if (!only_space(list->file, pos, start))
		return error_set(err, -EINVAL, "line %u: nothing can go before an item in the line "
				 "of another", list->line);
	return splice(e, pos, pos, buf_str(&out), err);
}

/* A value that stands in its line: replaced there. What follows it in the line,
 * a comment, stays. */
static int replace_inline(struct editor *e, const struct node *n, const struct node *value,
			  struct error *err)
{
	size_t start = at(n, n->start), end = at(n, n->end), eol = line_end(n->file, end);
	bool commented = !only_space(n->file, end, eol);
	scoped_buf struct buf out = { 0 };

	if (start == end)	/* nothing after "key:" or "-" */
		buf_add_str(&out, " ");
	if (n->parent->flow || commented || !n->key) {
		emit_flow(value, &out);
	} else {
		buf_reset(&out);
		emit_entry("k", value, block_indent(n->parent), &out);
		buf_consume(&out, block_indent(n->parent) + 2);	/* "k:" */
		out.data[--out.len] = 0;	/* the line's own break stays */
		start = after_colon(n);
		while (end < n->file->len && n->file->text[end] != '\n')
			end++;	/* blanks, which would become part of a | block */
	}
	return splice(e, start, end, buf_str(&out), err);
}

/* A value of several lines. */
static int replace_block(struct editor *e, const struct node *n, const struct node *value,
			 struct error *err)
{
	unsigned indent = n->parent ? block_indent(n->parent) : 0;
	scoped_buf struct buf out = { 0 };

	if (n->key)
		emit_entry("k", value, indent, &out);
	else
		emit_item(value, indent, &out);
	buf_consume(&out, indent + 2);	/* "k:" or "- " */
	out.data[--out.len] = 0;
	return splice(e, n->key ? after_colon(n) : at(n, n->start), content_end(n), buf_str(&out),
		      err);
}

static int replace(struct editor *e, const struct node *n, const struct node *value,
		   struct error *err)
{
	if (!n->parent)
		return error_set(err, -EINVAL, "the whole document cannot be set");
	if (is_block(n) || (n->block_scalar && !n->alias))
		return replace_block(e, n, value, err);
	return replace_inline(e, n, value, err);
}

/* {steps[i].key: {steps[i+1].key: … value}}, for what is missing of a path. */
static struct node *nest(struct editor *e, const struct edit_path *p, size_t from,
			 const struct node *value)
{
	struct node *n = (struct node *)value;

	for (size_t i = p->len; i-- > from;) {
		struct node *map = node_new(e->pool, NODE_MAP);

		node_add(e->pool, map, p->steps[i].key, n);
		n = map;
	}
	return n;
}

static int append_root(struct editor *e, const char *key, const struct node *value,
		       const char *source, struct error *err)
{
	scoped_buf struct buf out = { 0 };

	if (e->text.len && e->text.data[e->text.len - 1] != '\n')
		buf_add_str(&out, "\n");
	if (source)
		buf_add_str(&out, source);
	else
		emit_entry(key, value, 0, &out);
	return splice(e, e->text.len, e->text.len, buf_str(&out), err);
}

int editor_set(struct editor *e, const struct edit_path *p, const struct node *value,
	       const char *source, struct error *err)
{
	size_t done;
	struct node *n = edit_path_walk(e->root, p, &done);

	for (const struct node *up = n; up; up = up->parent)
		if (up->copied || (up->alias && up != n))
			return error_set(err, -EINVAL, "line %u: comes through an alias; write it out "
					 "before changing it", n->line);
	if (done == p->len)
		return replace(e, n, value, err);
	for (size_t i = done; i < p->len; i++)
		if (!p->steps[i].key)
			return error_set(err, -ENOENT, "there is no item [%zu]", p->steps[i].index);
	if (n->kind == NODE_NULL && !n->parent)
		return append_root(e, p->steps[done].key, nest(e, p, done + 1, value),
				   done + 1 == p->len ? source : NULL, err);
	if (n->kind == NODE_NULL)
		return replace(e, n, nest(e, p, done, value), err);
	if (n->kind != NODE_MAP || n->alias)
		return error_set(err, -EINVAL, "line %u: not a map, so it has no %s", n->line,
				 p->steps[done].key);
	return put_entry(e, n, p->steps[done].key, nest(e, p, done + 1, value),
			 done + 1 == p->len ? source : NULL, err);
}

static bool has_equal(const struct node *list, const struct node *value)
{
	scoped_buf struct buf want = { 0 };

	emit_flow(value, &want);
	for (size_t i = 0; i < list->n_items; i++) {
		scoped_buf struct buf have = { 0 };

		emit_flow(list->items[i], &have);
		if (streq(buf_str(&have), buf_str(&want)))
			return true;
	}
	return false;
}

int editor_add(struct editor *e, const struct edit_path *p, enum edit_place place,
	       const struct node *value, const char *source, struct error *err)
{
	struct node *list = edit_path_find(e->root, p), *fresh;

	if (list && list->alias)
		return error_set(err, -EINVAL, "line %u: is an alias; write it out before adding",
				 list->line);
	if (list && list->kind == NODE_LIST) {
		if (place == EDIT_UNIQUE && has_equal(list, value))
			return 0;
		return put_item(e, list, place, value, source, err);
	}
	if (list && list->kind != NODE_NULL)
		return error_set(err, -EINVAL, "line %u: is not a list", list->line);
	fresh = node_new(e->pool, NODE_LIST);
	node_add(e->pool, fresh, NULL, (struct node *)value);
	return editor_set(e, p, fresh, NULL, err);
}

static size_t count_own(const struct node *n)
{
	size_t count = 0;

	for (size_t i = 0; i < n->n_items; i++)
		count += !n->items[i]->copied;
	return count;
}

/* In {} and [] the whole is written anew without the one. */
static int delete_flow(struct editor *e, const struct node *parent, const struct node *n,
		       struct error *err)
{
	struct node *rest = node_shallow_copy(e->pool, parent);
	scoped_buf struct buf out = { 0 };

	for (size_t i = 0; i < rest->n_items; i++)
		if (rest->items[i] == n)
			node_remove(rest, i);
	emit_flow(rest, &out);
	return splice(e, at(parent, parent->start), at(parent, parent->end), buf_str(&out), err);
}

int editor_delete(struct editor *e, const struct edit_path *p, struct error *err)
{
	const struct node *n = edit_path_find(e->root, p), *parent;
	size_t start, end;

	if (!n || !n->parent)
		return 0;
	parent = n->parent;
	if (n->copied)
		return error_set(err, -EINVAL, "line %u: comes through an alias and cannot be removed",
				 n->line);
	if (parent->flow)
		return delete_flow(e, parent, n, err);
	if (count_own(parent) == 1 && parent->parent)
		return replace(e, parent, node_new(e->pool, parent->kind), err);
	start = at(n, n->key ? n->key_start : n->start);
	end = line_end(n->file, content_end(n));
	if (n->key && !only_space(n->file, line_start(n->file, start), start)) {
		/* "- key: …": the next key moves up behind the dash */
		const struct node *next = NULL;

		for (size_t i = parent->n_items; i-- > 0 && parent->items[i] != n;)
			next = parent->items[i];
		assert(next);
		end = at(next, next->key_start);
	} else {
		start = line_start(n->file, start);
	}
	return splice(e, start, end, "", err);
}

/* --- lines to take elsewhere ------------------------------------------------------ */

static bool has_alias(const struct node *n)
{
	if (n->alias || n->copied)
		return true;
	for (size_t i = 0; i < n->n_items; i++)
		if (has_alias(n->items[i]))
			return true;
	return false;
}

/* Up to the first of the comment lines right above @pos, itself a line start. */
static size_t with_comments(const struct node_file *f, size_t pos)
{
	while (pos) {
		size_t above = line_start(f, pos - 1), p = above;

		while (f->text[p] == ' ' || f->text[p] == '\t')
			p++;
		if (f->text[p] != '#')
			break;
		pos = above;
	}
	return pos;
}

char *editor_source(const struct node *n)
{
	struct buf out = { 0 };
	size_t key, start, end, pos;
	unsigned indent;

	if (!n->parent || n->parent->flow || has_alias(n))
		return NULL;
	indent = block_indent(n->parent);
	key = n->key ? at(n, n->key_start) : at(n, n->start);
	start = line_start(n->file, key);
	end = line_end(n->file, content_end(n));
	if (n->key && !only_space(n->file, start, key))
		return NULL;	/* behind a dash */
	if (!n->key && n->parent->parent && !only_space(n->file, start, start + indent))
		return NULL;	/* "- - x" */
	for (pos = with_comments(n->file, start); pos < end;) {
		size_t next = line_end(n->file, pos), skip = 0;

		while (skip < indent && n->file->text[pos + skip] == ' ')
			skip++;
		buf_add(&out, n->file->text + pos + skip, next - pos - skip);
		pos = next;
	}
	if (out.len && out.data[out.len - 1] != '\n')
		buf_add_str(&out, "\n");
	return buf_steal_str(&out);
}
