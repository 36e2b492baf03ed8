#include "cmd/limactl/args.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

void args_done(struct args *a)
{
	strv_done(&a->positional);
	for (size_t i = 0; i < a->n_given; i++)
		free(a->given[i].value);
	free(a->given);
	*a = (struct args){ 0 };
}

bool args_parse_duration(const char *s, uint64_t *ret_ms)
{
	static const struct {
		const char *unit;
		double ms;
	} units[] = { { "ms", 1 }, { "s", 1000 }, { "m", 60e3 }, { "h", 3600e3 } };
	double total = 0;

	if (!*s)
		return false;
	while (*s) {
		char *end;
		double v = strtod(s, &end);
		size_t best = 0, best_len = 0;

		if (end == s || !isfinite(v) || v < 0)
			return false;
		for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
			size_t n = strlen(units[i].unit);

			if (strncmp(end, units[i].unit, n) == 0 && n > best_len)
				best = i, best_len = n;
		}
		if (!best_len)
			return false;
		total += v * units[best].ms;
		s = end + best_len;
	}
	if (total > 1e12)
		return false;
	*ret_ms = (uint64_t)total;
	return true;
}

/* The spellings of Go's strconv.ParseBool, which Lima takes; NULL: none of them. */
static const char *bool_text(const char *value)
{
	static const char *const yes[] = { "true", "1", "t", "T", "TRUE", "True" };
	static const char *const no[] = { "false", "0", "f", "F", "FALSE", "False" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (streq(value, yes[i]))
			return yes[0];
		if (streq(value, no[i]))
			return no[0];
	}
	return NULL;
}

static int check_value(const struct flag *f, const char *value, struct error *err)
{
	uint64_t ms;
	char *end;
	double d;

	switch (f->type) {
	case FLAG_BOOL:
		if (bool_text(value))
			return 0;
		return error_set(err, -EINVAL, "--%s: `%s` is neither true nor false", f->name, value);
	case FLAG_INT:
		if (*value && strspn(value, "0123456789") == strlen(value) && strlen(value) < 10)
			return 0;
		return error_set(err, -EINVAL, "--%s: `%s` is not a whole number of 0 or more",
				 f->name, value);
	case FLAG_FLOAT:
		d = strtod(value, &end);
		if (*value && !*end && isfinite(d) && d >= 0 && d < 1e9)
			return 0;
		return error_set(err, -EINVAL, "--%s: `%s` is not a number of 0 or more", f->name,
				 value);
	case FLAG_DURATION:
		if (args_parse_duration(value, &ms))
			return 0;
		return error_set(err, -EINVAL, "--%s: `%s` is not a duration such as 90s or 10m",
				 f->name, value);
	case FLAG_STRING:
	case FLAG_LIST:
	case FLAG_STRINGS:
		return 0;
	}
	return 0;
}

static int add(struct args *a, const struct flag *f, const char *value, struct error *err)
{
	if (check_value(f, value, err) < 0)
		return err->code;
	a->given = xreallocarray(a->given, a->n_given + 1, sizeof(*a->given));
	a->given[a->n_given].flag = f;
	a->given[a->n_given].value = xstrdup(f->type == FLAG_BOOL ? bool_text(value) : value);
	a->n_given++;
	return 0;
}

/* Where the parser stands. */
struct cursor {
	int argc, i;
	char **argv;
};

static int need_value(struct cursor *c, const struct flag *f, const char **ret, struct error *err)
{
	if (c->i + 1 >= c->argc)
		return error_set(err, -EINVAL, "--%s needs a value: --%s %s", f->name, f->name,
				 f->value ? f->value : "VALUE");
	*ret = c->argv[++c->i];
	return 0;
}

static int unknown_flag(const struct verb *v, const char *dashes, const char *name, size_t len,
			struct error *err)
{
	char path[VERB_PATH_SIZE];

	verb_path(v, ' ', path);
	return error_set(err, -EINVAL, "unknown flag: %s%.*s; see: limactl %s%s--help", dashes, (int)len,
			 name, path, *path ? " " : "");
}

static int parse_long(struct args *a, struct cursor *c, struct error *err)
{
	const char *name = c->argv[c->i] + 2, *eq = strchr(name, '='), *value = NULL;
	size_t len = eq ? (size_t)(eq - name) : strlen(name);
	const struct flag *f = verb_find_flag(a->verb, name, len, 0);

	if (!f)
		return unknown_flag(a->verb, "--", name, len, err);
	if (eq)
		value = eq + 1;
	else if (f->type == FLAG_BOOL)
		value = "true";
	else if (need_value(c, f, &value, err) < 0)
		return err->code;
	return add(a, f, value, err);
}

static int parse_short(struct args *a, struct cursor *c, struct error *err)
{
	for (const char *p = c->argv[c->i] + 1; *p; p++) {
		const struct flag *f = verb_find_flag(a->verb, NULL, 0, *p);
		const char *value = NULL;

		if (!f)
			return unknown_flag(a->verb, "-", p, 1, err);
		if (f->type == FLAG_BOOL && p[1] != '=') {
			if (add(a, f, "true", err) < 0)
				return err->code;
			continue;
		}
		if (p[1])
			value = p + 1 + (p[1] == '=');
		else if (need_value(c, f, &value, err) < 0)
			return err->code;
		return add(a, f, value, err);
	}
	return 0;
}

static int check_count(const struct args *a, struct error *err)
{
	int n = (int)a->positional.len;
	const struct verb *v = a->verb;
	char path[VERB_PATH_SIZE];

	verb_path(v, ' ', path);
	if (n < v->min_args)
		return error_set(err, -EINVAL, "%s: too few arguments; usage: limactl %s %s", path, path,
				 v->usage);
	if (v->max_args >= 0 && n > v->max_args)
		return error_set(err, -EINVAL, "%s: `%s` is one argument too many; usage: limactl %s %s",
				 path, a->positional.items[v->max_args], path, v->usage);
	return 0;
}

int args_parse(const struct verb *verb, int argc, char **argv, struct args *ret, struct error *err)
{
	scoped_args struct args a = { .verb = verb };
	struct cursor c = { .argc = argc, .argv = argv };
	bool flags = true;

	for (; c.i < argc; c.i++) {
		const char *s = argv[c.i];
		int rc = 0;

		if (flags && streq(s, "--")) {
			flags = false;
		} else if (flags && s[0] == '-' && s[1] == '-') {
			rc = parse_long(&a, &c, err);
		} else if (flags && s[0] == '-' && s[1]) {
			rc = parse_short(&a, &c, err);
		} else {
			strv_add(&a.positional, s);
			flags = flags && !verb->stop_at_positional;
		}
		if (rc < 0)
			return rc;
	}
	if (!args_bool(&a, "help", false) && check_count(&a, err) < 0)
		return err->code;
	*ret = a;
	a = (struct args){ 0 };
	return 0;
}

static const char *last(const struct args *a, const char *name)
{
	const char *value = NULL;

	assert(verb_find_flag(a->verb, name, strlen(name), 0));
	for (size_t i = 0; i < a->n_given; i++)
		if (streq(a->given[i].flag->name, name))
			value = a->given[i].value;
	return value;
}

bool args_has(const struct args *a, const char *name)
{
	return last(a, name) != NULL;
}

bool args_bool(const struct args *a, const char *name, bool fallback)
{
	const char *v = last(a, name);

	return v ? streq(v, "true") : fallback;
}

bool args_wants_tty(const struct args *a)
{
	return args_bool(a, "tty", true) && !args_bool(a, "yes", false);
}

const char *args_str(const struct args *a, const char *name)
{
	return last(a, name);
}

double args_float(const struct args *a, const char *name)
{
	const char *v = last(a, name);

	return v ? strtod(v, NULL) : 0;
}

uint64_t args_int(const struct args *a, const char *name)
{
	const char *v = last(a, name);

	return v ? strtoull(v, NULL, 10) : 0;
}

uint64_t args_duration_ms(const struct args *a, const char *name, uint64_t fallback_ms)
{
	const char *v = last(a, name);
	uint64_t ms = fallback_ms;

	if (v)
		args_parse_duration(v, &ms);
	return ms;
}

void args_list(const struct args *a, const char *name, struct strv *ret)
{
	for (size_t i = 0; i < a->n_given; i++) {
		if (!streq(a->given[i].flag->name, name))
			continue;
		if (a->given[i].flag->type == FLAG_LIST)
			strv_split(ret, a->given[i].value, ",");
		else
			strv_add(ret, a->given[i].value);
	}
}
