#include "lib/config/emit.h"

#include <ctype.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/utf8.h"

/* A plain scalar that every YAML reader takes for this text. YAML 1.1 readers
 * see yes, no, on, off as booleans and 12:30 as a number. */
static bool plain_is_safe(const char *s)
{
	static const char *const words[] = { "yes", "no", "on", "off", "y", "n" };
	size_t len = strlen(s);
	int64_t num;

	if (!isalpha((unsigned char)*s) && !strchr("/_.0123456789", *s))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (strcasecmp(s, words[i]) == 0)
			return false;
	for (size_t i = 0; i < len; i++) {
		if (!isalnum((unsigned char)s[i]) && !strchr("/_.-+@%=~()$ :", s[i]))
			return false;
		if (s[i] == ':' && (!s[i + 1] || s[i + 1] == ' ' || isdigit((unsigned char)s[i + 1])))
			return false;
	}
	return s[len - 1] != ' ' && node_plain_kind(s, &num) == NODE_STRING;
}

static void add_quoted(const char *s, struct buf *out)
{
	buf_add_u8(out, '"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			buf_addf(out, "\\%c", c);
		else if (c == '\n')
			buf_add_str(out, "\\n");
		else if (c == '\t')
			buf_add_str(out, "\\t");
		else if (c < 0x20 || c == 0x7f)
			buf_addf(out, "\\x%02x", c);
		else
			buf_add_u8(out, c);
	}
	buf_add_u8(out, '"');
}

void emit_text(const char *s, struct buf *out)
{
	if (*s && plain_is_safe(s))
		buf_add_str(out, s);
	else
		add_quoted(s, out);
}

static void add_base64(const char *s, size_t len, struct buf *out)
{
	static const char abc[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	buf_add_str(out, "!!binary ");
	for (size_t i = 0; i < len; i += 3) {
		unsigned a = (unsigned char)s[i];
		unsigned b = i + 1 < len ? (unsigned char)s[i + 1] : 0;
		unsigned c = i + 2 < len ? (unsigned char)s[i + 2] : 0;

		buf_add_u8(out, (uint8_t)abc[a >> 2]);
		buf_add_u8(out, (uint8_t)abc[(a & 3) << 4 | b >> 4]);
		buf_add_u8(out, i + 1 < len ? (uint8_t)abc[(b & 15) << 2 | c >> 6] : '=');
		buf_add_u8(out, i + 2 < len ? (uint8_t)abc[c & 63] : '=');
	}
}

static void add_scalar(const struct node *n, struct buf *out)
{
	if (n->kind == NODE_NULL)
		buf_add_str(out, "null");
	else if (n->kind != NODE_STRING)
		buf_add_str(out, n->text);
	else if (!utf8_valid(n->text, n->text_len))
		add_base64(n->text, n->text_len, out);	/* YAML text is Unicode */
	else
		emit_text(n->text, out);
}

void emit_flow(const struct node *n, struct buf *out)
{
	bool map = n->kind == NODE_MAP;

	if (!map && n->kind != NODE_LIST) {
		add_scalar(n, out);
		return;
	}
	buf_add_str(out, map ? "{" : "[");
	for (size_t i = 0; i < n->n_items; i++) {
		if (i)
			buf_add_str(out, ", ");
		if (map) {
			emit_text(n->items[i]->key, out);
			buf_add_str(out, ": ");
		}
		emit_flow(n->items[i], out);
	}
	buf_add_str(out, map ? "}" : "]");
}

static void pad(unsigned indent, struct buf *out)
{
	while (indent--)
		buf_add_u8(out, ' ');
}

/* Lines that `|` can hold as they are: printable, and the first does not start
 * with a space (it would set the indentation). */
static bool fits_literal(const struct node *n)
{
	const char *first = n->text + strspn(n->text, "\n");

	if (n->kind != NODE_STRING || !strchr(n->text, '\n') || *first == ' ' || !*first)
		return false;
	if (!utf8_valid(n->text, n->text_len))
		return false;
	for (const char *p = n->text; *p; p++)
		if (((unsigned char)*p < 0x20 && !strchr("\n\t", *p)) || *p == 0x7f)
			return false;
	return true;
}

static void add_literal(const struct node *n, unsigned indent, struct buf *out)
{
	size_t len = n->text_len;
	bool newline = n->text[len - 1] == '\n', more = newline && len > 1 && n->text[len - 2] == '\n';
	const char *line = n->text;

	buf_addf(out, "|%s\n", more ? "+" : newline ? "" : "-");
	while (*line) {
		size_t n_chars = strcspn(line, "\n");

		if (n_chars)
			pad(indent, out);
		buf_add(out, line, n_chars);
		buf_add_str(out, "\n");
		line += n_chars + (line[n_chars] == '\n');
	}
}

static void emit_value(const struct node *n, unsigned indent, struct buf *out);

void emit_entry(const char *key, const struct node *value, unsigned indent, struct buf *out)
{
	pad(indent, out);
	emit_text(key, out);
	buf_add_str(out, ":");
	emit_value(value, indent, out);
}

/* What follows "key:". */
static void emit_value(const struct node *n, unsigned indent, struct buf *out)
{
	if (n->n_items) {
		buf_add_str(out, "\n");
		for (size_t i = 0; i < n->n_items; i++) {
			if (n->kind == NODE_MAP)
				emit_entry(n->items[i]->key, n->items[i], indent + 2, out);
			else
				emit_item(n->items[i], indent, out);
		}
		return;
	}
	buf_add_str(out, " ");
	if (fits_literal(n)) {
		add_literal(n, indent + 2, out);
		return;
	}
	emit_flow(n, out);
	buf_add_str(out, "\n");
}

void emit_item(const struct node *item, unsigned indent, struct buf *out)
{
	pad(indent, out);
	if (item->kind != NODE_MAP || !item->n_items) {
		buf_add_str(out, "- ");
		if (fits_literal(item)) {
			add_literal(item, indent + 2, out);
			return;
		}
		emit_flow(item, out);
		buf_add_str(out, "\n");
		return;
	}
	for (size_t i = 0; i < item->n_items; i++) {
		scoped_buf struct buf entry = { 0 };

		emit_entry(item->items[i]->key, item->items[i], indent + 2, &entry);
		if (!i) {	/* the first stands behind the dash */
			buf_add_str(out, "- ");
			buf_consume(&entry, indent + 2);
		}
		buf_add(out, entry.data, entry.len);
	}
}

int emit_json(const char *json, size_t len, struct buf *out, struct error *err)
{
	scoped_node_pool struct node_pool *pool = node_pool_new();
	struct node *root = NULL;

	if (node_parse(pool, "JSON", json, len, &root, err) < 0)
		return err->code;
	buf_add_str(out, "---\n");
	for (size_t i = 0; i < root->n_items; i++)
		emit_entry(root->items[i]->key, root->items[i], 0, out);
	return 0;
}
