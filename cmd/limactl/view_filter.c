#include "cmd/limactl/view_filter.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"

enum { DEPTH_MAX = 64 };	/* of parentheses */

struct filter {
	const char *text, *at;	/* at: what is read next */
	const json_t *view;
	unsigned depth;
	struct error *err;
};

/* Every function that returns a json_t: the caller's, NULL after an error. */
static json_t *parse_expr(struct filter *f);

static json_t *wrong(const struct filter *f, const char *at, const char *what)
{
	error_set(f->err, -EINVAL, "column %zu: %s, in `%.200s`", (size_t)(at - f->text) + 1, what,
		  f->text);
	return NULL;
}

static void skip_space(struct filter *f)
{
	while (isspace((unsigned char)*f->at))
		f->at++;
}

static bool is_word_char(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '-';
}

static bool take(struct filter *f, const char *sign)
{
	size_t len = strlen(sign);

	skip_space(f);
	if (strncmp(f->at, sign, len) != 0 ||
	    (is_word_char(*sign) && is_word_char(f->at[len])))
		return false;
	f->at += len;
	return true;
}

/* --- values ---------------------------------------------------------------- */

/* A number, or text in quotes. */
static json_t *parse_literal(struct filter *f)
{
	json_error_t why;
	json_t *v = json_loads(f->at, JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK, &why);

	if (!v || !(json_is_number(v) || json_is_string(v))) {
		json_decref(v);
		return wrong(f, f->at, "expected .KEY, \"text\", a number, true, false or null");
	}
	f->at += why.position;	/* how much was read (jansson: JSON_DISABLE_EOF_CHECK) */
	return v;
}

static const json_t *parse_index(struct filter *f, const json_t *in)
{
	const char *begin = f->at;
	json_t *key = parse_literal(f);
	const json_t *v = NULL;

	if (!key)
		return NULL;
	if (json_is_string(key))
		v = json_object_get(in, json_string_value(key));
	else if (json_is_integer(key) && json_integer_value(key) >= 0)
		v = json_array_get(in, (size_t)json_integer_value(key));
	else
		wrong(f, begin, "expected [NUMBER] or [\"KEY\"]");
	json_decref(key);
	if (!f->err->code && !take(f, "]"))
		wrong(f, f->at, "expected ]");
	return v;
}

static const json_t *parse_key(struct filter *f, const json_t *in)
{
	const char *begin = f->at;

	while (is_word_char(*f->at))
		f->at++;
	scoped_free char *key = xstrndup(begin, (size_t)(f->at - begin));
	return json_object_get(in, key);
}

/* At its first point. `.` alone is the whole object. */
static json_t *parse_path(struct filter *f)
{
	const json_t *v = f->view;

	while (!f->err->code) {
		if (*f->at == '.' && is_word_char(f->at[1])) {
			f->at++;
			v = parse_key(f, v);
		} else if (*f->at == '[' || (*f->at == '.' && f->at[1] == '[')) {
			f->at += *f->at == '.' ? 2 : 1;
			skip_space(f);
			v = parse_index(f, v);
		} else {
			break;
		}
	}
	if (f->err->code)
		return NULL;
	if (*f->at == '.' && v == f->view)
		f->at++;
	return v ? json_incref((json_t *)v) : json_null();
}

static json_t *parse_parentheses(struct filter *f)
{
	json_t *v;

	if (f->depth++ == DEPTH_MAX)
		return wrong(f, f->at, "too many parentheses");
	v = parse_expr(f);
	f->depth--;
	if (v && !take(f, ")")) {
		json_decref(v);
		return wrong(f, f->at, "expected )");
	}
	return v;
}

static json_t *parse_value(struct filter *f)
{
	if (take(f, "("))
		return parse_parentheses(f);
	if (take(f, "true"))
		return json_true();
	if (take(f, "false"))
		return json_false();
	if (take(f, "null"))
		return json_null();
	return *f->at == '.' ? parse_path(f) : parse_literal(f);
}

/* --- comparing --------------------------------------------------------------- */

/* * stands for any text, ? for any byte. */
static bool matches(const char *s, const char *pattern)
{
	const char *star = NULL, *behind = NULL;

	while (*s) {
		if (*pattern == '*') {
			star = ++pattern;
			behind = s;
		} else if (*pattern == '?' || *pattern == *s) {
			pattern++;
			s++;
		} else if (star) {
			pattern = star;
			s = ++behind;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return !*pattern;
}

static bool equal(const json_t *a, const json_t *b)
{
	if (json_is_string(a) && json_is_string(b))
		return matches(json_string_value(a), json_string_value(b));
	if (json_is_number(a) && json_is_number(b))
		return json_number_value(a) == json_number_value(b);
	return json_equal(a, b);
}

/* Negative, 0, positive by *ret; false: they have no order. */
static bool order(const json_t *a, const json_t *b, int *ret)
{
	double x = json_number_value(a), y = json_number_value(b);

	if (json_is_string(a) && json_is_string(b))
		*ret = strcmp(json_string_value(a), json_string_value(b));
	else if (json_is_number(a) && json_is_number(b))
		*ret = (x > y) - (x < y);
	else
		return false;
	return true;
}

enum { LESS = 1, EQUAL = 2, MORE = 4 };

/* The longer ones first. */
static const struct {
	const char *sign;
	unsigned holds;	/* of the above, either */
	bool ordered;	/* asks which is less */
} comparisons[] = {
	{ "==", EQUAL, false },	      { "!=", LESS | MORE, false },
	{ "<=", LESS | EQUAL, true }, { ">=", MORE | EQUAL, true },
	{ "<", LESS, true },	      { ">", MORE, true },
};

static json_t *compare(const struct filter *f, size_t how, const char *at, const json_t *a,
		       const json_t *b)
{
	unsigned is;
	int o;

	if (!comparisons[how].ordered)
		is = equal(a, b) ? EQUAL : LESS | MORE;
	else if (json_is_null(a) || json_is_null(b))
		is = 0;
	else if (order(a, b, &o))
		is = o < 0 ? LESS : o > 0 ? MORE : EQUAL;
	else
		return wrong(f, at, "only two numbers or two texts can be compared");
	return json_boolean((is & comparisons[how].holds) != 0);
}

static json_t *parse_comparison(struct filter *f)
{
	json_t *a = parse_value(f), *b, *v;
	const char *at;
	size_t how;

	if (!a)
		return NULL;
	skip_space(f);
	at = f->at;
	for (how = 0; how < ARRAY_SIZE(comparisons); how++)
		if (take(f, comparisons[how].sign))
			break;
	if (how == ARRAY_SIZE(comparisons))
		return a;
	b = parse_value(f);
	v = b ? compare(f, how, at, a, b) : NULL;
	json_decref(a);
	json_decref(b);
	return v;
}

/* --- and, or ------------------------------------------------------------------- */

static bool holds(const json_t *v)
{
	return !json_is_null(v) && !json_is_false(v);
}

static json_t *parse_expr(struct filter *f)
{
	json_t *v = parse_comparison(f), *next;
	char first = 0;

	while (v) {
		const char *at = f->at;
		char now = take(f, "and") ? 'a' : take(f, "or") ? 'o' : 0;
		bool result;

		if (!now)
			return v;
		if (first && now != first) {
			json_decref(v);
			return wrong(f, at, "`and` beside `or` needs parentheses");
		}
		first = now;
		next = parse_comparison(f);
		result = now == 'a' ? holds(v) && holds(next) : holds(v) || holds(next);
		json_decref(v);
		v = next ? json_boolean(result) : NULL;
		json_decref(next);
	}
	return NULL;
}

int view_filter(const char *text, const json_t *view, bool *ret, struct error *err)
{
	struct error why = ERROR_NONE;
	struct filter f = { .text = text, .at = text, .view = view, .err = &why };
	json_t *v = parse_expr(&f);

	skip_space(&f);
	if (v && *f.at)
		wrong(&f, f.at, "expected and, or, or its end; for more than that: --json and jq");
	if (!why.code)
		*ret = holds(v);
	json_decref(v);
	if (why.code)
		*err = why;
	return why.code;
}
