#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/help.h"
#include "lib/base/mem.h"

static const struct flag flags[] = {
	{ "force", 'f', FLAG_BOOL, NULL, "", false },
	{ "name", 'n', FLAG_STRING, "NAME", "", false },
	{ "cpus", 0, FLAG_INT, "N", "", false },
	{ "memory", 0, FLAG_FLOAT, "GIB", "", false },
	{ "dns", 0, FLAG_LIST, "IP", "", false },
	{ "set", 0, FLAG_STRINGS, "EXPR", "", false },
	{ "timeout", 0, FLAG_DURATION, "D", "", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static const struct verb verb = {
	.name = "try", .usage = "[X] [Y]", .flags = (const struct flag *const[]){ flags, NULL }, .max_args = 2,
};
static const struct verb verb_stops = {
	.name = "run", .usage = "X…", .flags = (const struct flag *const[]){ flags, NULL }, .min_args = 1,
	.max_args = -1, .stop_at_positional = true,
};

static int parse(const struct verb *v, struct args *a, struct error *err, ...)
{
	scoped_strv struct strv argv = { 0 };
	const char *s;
	va_list ap;

	va_start(ap, err);
	while ((s = va_arg(ap, const char *)))
		strv_add(&argv, s);
	va_end(ap);
	return args_parse(v, (int)argv.len, argv.items, a, err);
}

static void test_args_every_way_to_write_a_flag(void **state)
{
	scoped_args struct args a = { 0 };
	scoped_strv struct strv dns = { 0 }, set = { 0 };
	struct error err = { 0 };

	assert_int_equal(parse(&verb, &a, &err, "one", "-fn", "web", "--cpus=4", "--memory", "1.5", "--dns",
			       "1.1.1.1,8.8.8.8", "--dns=9.9.9.9", "--set", "a,b", "--timeout", "1m30s", "two",
			       NULL), 0);
	assert_true(args_bool(&a, "force", false));
	assert_string_equal(args_str(&a, "name"), "web");
	assert_int_equal(args_int(&a, "cpus"), 4);
	assert_true(args_float(&a, "memory") == 1.5);
	args_list(&a, "dns", &dns);
	args_list(&a, "set", &set);
	assert_int_equal(dns.len, 3);
	assert_int_equal(set.len, 1);
	assert_int_equal(args_duration_ms(&a, "timeout", 0), 90000);
	assert_int_equal(a.positional.len, 2);
}

static void test_args_bool_needs_equals_false(void **state)
{
	scoped_args struct args a = { 0 };
	struct error err = { 0 };

	assert_int_equal(parse(&verb, &a, &err, "--force=false", "false", NULL), 0);
	assert_false(args_bool(&a, "force", true));
	assert_true(args_has(&a, "force"));
	assert_string_equal(a.positional.items[0], "false");
}

static void test_args_bools_as_go_spells_them(void **state)
{
	scoped_args struct args a = { 0 };
	struct error err = { 0 };

	assert_int_equal(parse(&verb, &a, &err, "--force=T", "--yes=False", NULL), 0);
	assert_string_equal(args_str(&a, "force"), "true"); /* goes into YAML */
	assert_true(args_wants_tty(&a));
	args_done(&a);
	assert_int_equal(parse(&verb, &a, &err, "-y", NULL), 0);
	assert_false(args_wants_tty(&a));
	args_done(&a);
	assert_int_equal(parse(&verb, &a, &err, "--tty=0", NULL), 0);
	assert_false(args_wants_tty(&a));
}

static void test_args_stop_at_positional(void **state)
{
	scoped_args struct args a = { 0 };
	struct error err = { 0 };

	assert_int_equal(parse(&verb_stops, &a, &err, "-f", "inst", "ls", "-l", "--", "--name", NULL), 0);
	assert_int_equal(a.positional.len, 5);
	assert_string_equal(a.positional.items[2], "-l");
	assert_string_equal(a.positional.items[3], "--");
	assert_null(args_str(&a, "name"));
}

static void test_args_mistakes_are_told(void **state)
{
	static const struct {
		const char *argv[3];
		const char *msg;
	} cases[] = {
		{ { "--cpus", "-1" }, "--cpus: `-1` is not a whole number of 0 or more" },
		{ { "--cpus", "4x" }, "--cpus: `4x` is not a whole number of 0 or more" },
		{ { "--memory=nan" }, "--memory: `nan` is not a number of 0 or more" },
		{ { "--timeout", "soon" }, "--timeout: `soon` is not a duration such as 90s or 10m" },
		{ { "--name" }, "--name needs a value: --name NAME" },
		{ { "--nmae", "x" }, "unknown flag: --nmae; see: limactl try --help" },
		{ { "-x" }, "unknown flag: -x; see: limactl try --help" },
		{ { "--force=maybe" }, "--force: `maybe` is neither true nor false" },
		{ { "a", "b", "c" }, "try: `c` is one argument too many; usage: limactl try [X] [Y]" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct args a = { 0 };
		struct error err = { 0 };

		assert_true(parse(&verb, &a, &err, cases[i].argv[0], cases[i].argv[1], cases[i].argv[2],
				  NULL) < 0);
		assert_string_equal(err.msg, cases[i].msg);
	}
}

static void test_args_every_verb_finds_itself(void **state)
{
	for (size_t i = 0; verbs[i]; i++) {
		assert_ptr_equal(verb_find(verbs, verbs[i]->name), verbs[i]);
		assert_non_null(verbs[i]->summary);
		assert_non_null(verbs[i]->usage);
	}
	assert_ptr_equal(verb_find(verbs, "ls"), &verb_list);
	assert_ptr_equal(verb_find(verbs, "rm"), &verb_delete);
	assert_null(verb_find(verbs, "strat"));
	assert_string_equal(help_nearest(verbs, "strat"), "start");
	assert_null(help_nearest(verbs, "xyzzy"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_args_every_way_to_write_a_flag),
		cmocka_unit_test(test_args_bool_needs_equals_false),
		cmocka_unit_test(test_args_bools_as_go_spells_them),
		cmocka_unit_test(test_args_stop_at_positional),
		cmocka_unit_test(test_args_mistakes_are_told),
		cmocka_unit_test(test_args_every_verb_finds_itself),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
