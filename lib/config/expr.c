#include "lib/config/expr.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

void expr_vars_add(struct expr_vars *v, const char *name, const char *value)
{
	if (v->len == v->cap) {
		v->cap = v->cap ? v->cap * 2 : 32;
		v->items = xreallocarray(v->items, v->cap, sizeof(*v->items));
	}
	v->items[v->len++] = (struct expr_var){ name, value };
}

void expr_vars_done(struct expr_vars *v)
{
	free(v->items);
	*v = (struct expr_vars){ 0 };
}

/* One {{ if }} that is open. */
struct branch {
	bool live;	/* text of this branch is wanted */
	bool taken;	/* a branch of this if was already */
	bool outer;	/* the text around the if is wanted */
	bool has_else;
};

struct expander {
	const struct expr_vars *vars;
	struct buf out;
	struct branch open[EXPR_MAX_DEPTH];
	unsigned n_open;
	const char *p, *end;	/* inside one {{…}} */
	unsigned depth;		/* of parentheses */
	char *missing;
	struct error *err;
};

static bool live(const struct expander *x)
{
	return !x->n_open || x->open[x->n_open - 1].live;
}

static int fail(struct expander *x, const char *what, const char *arg, size_t len)
{
	return error_set(x->err, -EINVAL, "%s%.*s", what, (int)MIN(len, (size_t)60), arg);
}

static void skip_space(struct expander *x)
{
	while (x->p < x->end && isspace((unsigned char)*x->p))
		x->p++;
}

static size_t word_len(const struct expander *x)
{
	size_t n = 0;

	while (x->p + n < x->end && (isalnum((unsigned char)x->p[n]) || strchr("._", x->p[n])))
		n++;
	return n;
}

static bool take_word(struct expander *x, const char *word)
{
	size_t n;

	skip_space(x);
	n = word_len(x);
	if (n != strlen(word) || strncmp(x->p, word, n) != 0)
		return false;
	x->p += n;
	return true;
}

static int read_variable(struct expander *x, char **ret)
{
	const char *name = x->p + 1;
	size_t len = word_len(x) - 1;

	for (size_t i = 0; i < x->vars->len; i++) {
		const struct expr_var *v = &x->vars->items[i];

		if (strlen(v->name) == len && strncmp(v->name, name, len) == 0) {
			x->p += len + 1;
			*ret = xstrdup(v->value);
			return 0;
		}
	}
	if (len <= 6 || strncmp(name, "Param.", 6) != 0)
		return fail(x, "unknown variable .", name, len);
	if (!x->missing)	/* a missing key of a map of text is "" in Go */
		x->missing = xstrndup(name, len);
	x->p += len + 1;
	*ret = xstrdup("");
	return 0;
}

static int read_quoted(struct expander *x, char **ret)
{
	char quote = *x->p++;
	scoped_buf struct buf b = { 0 };

	for (; x->p < x->end && *x->p != quote; x->p++) {
		char c = *x->p;

		if (quote == '"' && c == '\\' && x->p + 1 < x->end) {
			c = *++x->p;
			if (!strchr("nt\\\"'", c))
				return fail(x, "unknown escape \\", x->p, 1);
			c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
		}
		buf_add_u8(&b, (uint8_t)c);
	}
	if (x->p == x->end)
		return fail(x, "text without its closing quote", "", 0);
	x->p++;
	*ret = xstrdup(buf_str(&b));
	return 0;
}

static int read_pipeline(struct expander *x, char **ret);

static int read_operand(struct expander *x, char **ret)
{
	size_t n;

	skip_space(x);
	n = word_len(x);
	if (x->p == x->end)
		return fail(x, "{{ }} with nothing to show", "", 0);
	if (*x->p == '"' || *x->p == '`')
		return read_quoted(x, ret);
	if (*x->p == '.' && n > 1)
		return read_variable(x, ret);
	if (*x->p == '(') {
		int rc;

		if (++x->depth > EXPR_MAX_DEPTH)
			return fail(x, "nested too deep", "", 0);
		x->p++;
		rc = read_pipeline(x, ret);
		x->depth--;
		skip_space(x);
		if (rc == 0 && (x->p == x->end || *x->p++ != ')')) {
			free(steal_ptr(ret));
			return fail(x, "( without )", "", 0);
		}
		return rc;
	}
	if (n && (isdigit((unsigned char)*x->p) || (n == 4 && strncmp(x->p, "true", 4) == 0))) {
		*ret = xstrndup(x->p, n);
		x->p += n;
		return 0;
	}
	if (n == 5 && strncmp(x->p, "false", 5) == 0) {
		x->p += n;
		*ret = xstrdup("");
		return 0;
	}
	return fail(x, "not understood: ", x->p, (size_t)(x->end - x->p));
}

static bool at_end(struct expander *x)
{
	skip_space(x);
	return x->p == x->end || *x->p == ')';
}

/* eq a b…: is a any of the others; ne: is it not; and, or: Go's, by value. */
static int read_call(struct expander *x, const char *fn, char **ret)
{
	scoped_free char *acc = NULL;
	bool hit = false, first = true;
	unsigned args = 0;

	for (; !at_end(x); args++, first = false) {
		scoped_free char *arg = NULL;

		if (read_operand(x, &arg) < 0)
			return x->err->code;
		if (!first)
			hit |= streq(acc, arg);
		if (first || (*fn == 'a' && *acc) || (*fn == 'o' && !*acc)) {
			free(acc);
			acc = steal_ptr(&arg);
		}
	}
	if (args < (streq(fn, "not") ? 1u : 2u))
		return fail(x, "too few values after ", fn, strlen(fn));
	if (streq(fn, "eq") || streq(fn, "ne"))
		*ret = xstrdup(hit == (*fn == 'e') ? "true" : "");
	else if (streq(fn, "not"))
		*ret = xstrdup(*acc ? "" : "true");
	else
		*ret = steal_ptr(&acc);
	return 0;
}

static int read_pipeline(struct expander *x, char **ret)
{
	static const char *const calls[] = { "eq", "ne", "not", "and", "or" };

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (take_word(x, calls[i]))
			return read_call(x, calls[i], ret);
	return read_operand(x, ret);
}

static int read_whole(struct expander *x, char **ret)
{
	if (read_pipeline(x, ret) < 0)
		return x->err->code;
	skip_space(x);
	if (x->p < x->end) {
		free(steal_ptr(ret));
		return fail(x, "not understood: ", x->p, (size_t)(x->end - x->p));
	}
	return 0;
}

static int open_if(struct expander *x)
{
	struct branch b = { .outer = live(x) };
	scoped_free char *value = NULL;

	if (x->n_open == EXPR_MAX_DEPTH)
		return fail(x, "if nested too deep", "", 0);
	if (read_whole(x, &value) < 0)
		return x->err->code;
	b.live = b.outer && *value;
	b.taken = b.live;
	x->open[x->n_open++] = b;
	return 0;
}

static int do_else(struct expander *x)
{
	struct branch *b = x->n_open ? &x->open[x->n_open - 1] : NULL;
	scoped_free char *value = NULL;

	if (!b || b->has_else)
		return fail(x, "else without if", "", 0);
	if (take_word(x, "if")) {
		if (read_whole(x, &value) < 0)
			return x->err->code;
	} else {
		skip_space(x);
		if (x->p < x->end)
			return fail(x, "not understood after else: ", x->p,
				    (size_t)(x->end - x->p));
		b->has_else = true;
	}
	b->live = b->outer && !b->taken && (!value || *value);
	b->taken |= b->live;
	return 0;
}

static int do_action(struct expander *x)
{
	scoped_free char *value = NULL;

	if (take_word(x, "if"))
		return open_if(x);
	if (take_word(x, "else"))
		return do_else(x);
	if (take_word(x, "end")) {
		if (!x->n_open)
			return fail(x, "end without if", "", 0);
		x->n_open--;
		return 0;
	}
	skip_space(x);
	if (x->end - x->p >= 4 && strncmp(x->p, "/*", 2) == 0 && strncmp(x->end - 2, "*/", 2) == 0)
		return 0;
	if (read_whole(x, &value) < 0)
		return x->err->code;
	if (live(x))
		buf_add_str(&x->out, value);
	if (x->out.len > EXPR_MAX_BYTES)
		return fail(x, "expands to too much text", "", 0);
	return 0;
}

/* The }} that ends what began at @s, not one inside quotes. */
static const char *find_close(const char *s)
{
	char quote = 0;

	for (; *s; s++) {
		if (quote && *s == '\\' && quote == '"' && s[1])
			s++;
		else if (quote)
			quote = *s == quote ? 0 : quote;
		else if (*s == '"' || *s == '`')
			quote = *s;
		else if (s[0] == '}' && s[1] == '}')
			return s;
	}
	return NULL;
}

static int expand_all(struct expander *x, const char *text)
{
	bool trim = false;

	for (;;) {
		const char *open = strstr(text, "{{"), *close;
		size_t len = open ? (size_t)(open - text) : strlen(text);
		bool trim_left = open && open[2] == '-' && isspace((unsigned char)open[3]);

		for (; trim && len && isspace((unsigned char)*text); len--)
			text++;
		while (trim_left && len && isspace((unsigned char)text[len - 1]))
			len--;
		if (live(x))
			buf_add(&x->out, text, len);
		if (!open)
			break;
		close = find_close(open + 2);
		if (!close)
			return fail(x, "{{ without }}", "", 0);
		x->p = open + 2 + trim_left;
		trim = close - x->p >= 2 && close[-1] == '-' && isspace((unsigned char)close[-2]);
		x->end = close - trim;
		if (do_action(x) < 0)
			return x->err->code;
		text = close + 2;
	}
	if (x->n_open)
		return fail(x, "if without end", "", 0);
	return 0;
}

int expr_expand(const char *text, const struct expr_vars *vars, char **ret, char **ret_missing,
		struct error *err)
{
	struct expander x = { .vars = vars, .err = err };
	int rc;

	if (ret_missing)
		*ret_missing = NULL;
	if (!strstr(text, "{{")) {
		*ret = NULL;
		return 0;
	}
	rc = expand_all(&x, text);
	if (rc == 0)
		*ret = x.out.len ? buf_steal_str(&x.out) : xstrdup("");
	buf_done(&x.out);
	if (rc == 0 && ret_missing)
		*ret_missing = steal_ptr(&x.missing);
	free(x.missing);
	return rc;
}
