#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/config/edit.h"

static struct buf text_of(const char *s)
{
	struct buf b = { 0 };

	buf_add_str(&b, s);
	return b;
}

struct row {
	const char *before, *path, *value, *after;
};

static void test_edit_set_keeps_the_rest(void **state)
{
	static const struct row rows[] = {
		/* a comment behind the value, other lines, order */
		{ "# head\ncpus: 4 # cores\nmemory: 1GiB\n", "cpus", "2",
		  "# head\ncpus: 2 # cores\nmemory: 1GiB\n" },
		/* missing: below, also without a final line break */
		{ "a: 1", "cpus", "2", "a: 1\ncpus: 2\n" },
		{ "a: 1\n\n# tail\n", "cpus", "2", "a: 1\ncpus: 2\n\n# tail\n" },
		/* an empty file, comments only */
		{ "", "cpus", "2", "cpus: 2\n" },
		{ "# nothing\n", "ssh.localPort", "2222", "# nothing\nssh:\n  localPort: 2222\n" },
		/* nested, present and missing */
		{ "ssh:\n    localPort: 1 # x\nb: 2\n", ".ssh.localPort", "2222",
		  "ssh:\n    localPort: 2222 # x\nb: 2\n" },
		{ "ssh:\n    localPort: 1\nb: 2\n", "ssh.forwardAgent", "true",
		  "ssh:\n    localPort: 1\n    forwardAgent: true\nb: 2\n" },
		{ "ssh:\nb: 2\n", "ssh.localPort", "1", "ssh:\n  localPort: 1\nb: 2\n" },
		{ "ssh: {}\n", "ssh.localPort", "1", "ssh: {localPort: 1}\n" },
		{ "ssh: {forwardAgent: true}\n", "ssh.localPort", "1",
		  "ssh: {forwardAgent: true, localPort: 1}\n" },
		/* blocks replaced by a value and the other way round */
		{ "m:\n- a\n- b\n# next\nc: 1\n", "m", "[]", "m: []\n# next\nc: 1\n" },
		{ "m: |\n  text\n\n  more\n\nc: 1\n", "m", "x", "m: x\n\nc: 1\n" },
		{ "m: 1\nc: 1\n", "m", "[{a: 1, b: [x]}, 2]",
		  "m:\n- a: 1\n  b:\n  - x\n- 2\nc: 1\n" },
		{ "m: 1 # why\n", "m", "{a: 1}", "m: {a: 1} # why\n" },
		{ "m:\n- a: 1\n  b: 2\n- c\n", "m[0].b", "3", "m:\n- a: 1\n  b: 3\n- c\n" },
		{ "m:\n- a: 1\n- c\n", "m[0].z", "3", "m:\n- a: 1\n  z: 3\n- c\n" },
		{ "m:\n- a: 1\n  b: 2\n- c\n", "m[0]", "x", "m:\n- x\n- c\n" },
		/* texts that need quotes stay texts */
		{ "a: 1\n", "message", "\"yes\"", "a: 1\nmessage: \"yes\"\n" },
		{ "a: 1\n", "message", "'two words'", "a: 1\nmessage: two words\n" },
		{ "a: 1\n", "message", "\"l1\\nl2\\n\"", "a: 1\nmessage: |\n  l1\n  l2\n" },
		{ "m: [a] \nb: 1\n", "m", "\"x\\ny\"", "m: |-\n  x\n  y\nb: 1\n" },
		/* characters of several bytes before the place */
		{ "a: äöü — x\nb: {c: é, d: 1}\n", "b.d", "2", "a: äöü — x\nb: {c: é, d: 2}\n" },
		{ "\"odd key\": 1\n", "\"odd key\"", "2", "\"odd key\": 2\n" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_buf struct buf b = text_of(rows[i].before);
		struct error err = ERROR_NONE;

		if (edit_set(&b, rows[i].path, rows[i].value, &err) < 0)
			fail_msg("row %zu: %s", i, err.msg);
		assert_string_equal(buf_str(&b), rows[i].after);
	}
}

static void test_edit_set_refuses_and_leaves_the_text(void **state)
{
	static const struct row rows[] = {
		{ "a: 1\n", "a.b", "2", "a.b: line 1: not a map, so it has no b" },
		{ "a: [1]\n", "a[3]", "2", "a[3]: there is no item [3]" },
		{ "a: 1\n", "a b", "2", "`a b` is not a path such as .ssh.localPort" },
		{ "a: 1\n", "a", "[1", NULL },
		{ "x: &x {b: 1}\na: *x\n", "a.b", "2",
		  "a.b: line 1: comes through an alias; write it out before changing it" },
		{ "a: &x 1\nb: *x\n", "a", "2", NULL },
		{ "a: [\n", "a", "2", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_buf struct buf b = text_of(rows[i].before);
		struct error err = ERROR_NONE;

		assert_true(edit_set(&b, rows[i].path, rows[i].value, &err) < 0);
		assert_string_equal(buf_str(&b), rows[i].before);
		if (rows[i].after)
			assert_string_equal(err.msg, rows[i].after);
	}
}

struct add_row {
	const char *before, *path;
	enum edit_place place;
	const char *value, *after;
};

static void test_edit_add_to_lists(void **state)
{
	static const struct add_row rows[] = {
		{ "a: 1\n", "portForwards", EDIT_LAST, "{guestPort: 80, hostPort: 8080}",
		  "a: 1\nportForwards:\n- guestPort: 80\n  hostPort: 8080\n" },
		{ "p:\n  # first\n  - a # x\n  # after\nq: 1\n", "p", EDIT_LAST, "b",
		  "p:\n  # first\n  - a # x\n  - b\n  # after\nq: 1\n" },
		{ "p:\n- a\n", "p", EDIT_FIRST, "b", "p:\n- b\n- a\n" },
		{ "p: [a]\n", "p", EDIT_FIRST, "b", "p: [b, a]\n" },
		{ "p: [a]\n", "p", EDIT_LAST, "{b: 1}", "p: [a, {b: 1}]\n" },
		{ "p: []\n", "p", EDIT_LAST, "b", "p: [b]\n" },
		{ "p:\n", "p", EDIT_LAST, "b", "p:\n- b\n" },
		{ "dns:\n- 1.1.1.1\n", "dns", EDIT_UNIQUE, "1.1.1.1", "dns:\n- 1.1.1.1\n" },
		{ "dns: [1.1.1.1]\n", "dns", EDIT_UNIQUE, "8.8.8.8", "dns: [1.1.1.1, 8.8.8.8]\n" },
		{ "p:\n- s: |\n    x\n\n    y\n", "p", EDIT_LAST, "b",
		  "p:\n- s: |\n    x\n\n    y\n- b\n" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_buf struct buf b = text_of(rows[i].before);
		struct error err = ERROR_NONE;

		if (edit_add(&b, rows[i].path, rows[i].place, rows[i].value, &err) < 0)
			fail_msg("row %zu: %s", i, err.msg);
		assert_string_equal(buf_str(&b), rows[i].after);
	}
}

static void test_edit_delete(void **state)
{
	static const struct row rows[] = {
		{ "a: 1\nb: |\n  x\n# of c\nc: 3\n", "b", NULL, "a: 1\n# of c\nc: 3\n" },
		{ "a: 1\n", "zz.y", NULL, "a: 1\n" },
		{ "a:\n- 1\n- 2\n", "a[0]", NULL, "a:\n- 2\n" },
		{ "a:\n- 1\nb: 2\n", "a[0]", NULL, "a: []\nb: 2\n" },
		{ "a: [1, 2]\n", "a[1]", NULL, "a: [1]\n" },
		{ "a:\n- x: 1\n  y: 2\n- z\n", "a[0].x", NULL, "a:\n- y: 2\n- z\n" },
		{ "a: 1\n", "a", NULL, "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_buf struct buf b = text_of(rows[i].before);
		struct error err = ERROR_NONE;

		if (edit_delete(&b, rows[i].path, &err) < 0)
			fail_msg("row %zu: %s", i, err.msg);
		assert_string_equal(buf_str(&b), rows[i].after);
	}
}

static void test_edit_expression(void **state)
{
	scoped_buf struct buf b = text_of("# mine\ncpus: 4 # many\nmounts:\n- location: ~\n");
	struct error err = ERROR_NONE;

	assert_int_equal(edit_expression(&b, " .cpus = 2 | .user.shell=\"/bin/a|b\" "
					     "|.portForwards += [{guestPort: 80}] | del(.mounts)",
					 &err), 0);
	assert_string_equal(buf_str(&b), "# mine\ncpus: 2 # many\nuser:\n  shell: \"/bin/a|b\"\n"
					 "portForwards:\n- guestPort: 80\n");
}

static void test_edit_expression_refused(void **state)
{
	static const char *const bad[] = {
		".cpus + 1", ".cpus = .memory", ".cpus |= 2", ".a = env(HOME)", "cpus = 2", "",
		".a = two words", "with(.a; .b = 1)", ".a == 1", ".a =", ".cpus = 2 |", "del(.a",
		".a += 1", ".mounts[].writable = true",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		scoped_buf struct buf b = text_of("cpus: 4\n");
		struct error err = ERROR_NONE;

		if (edit_expression(&b, bad[i], &err) == 0)
			fail_msg("`%s` was taken: %s", bad[i], buf_str(&b));
		assert_string_equal(buf_str(&b), "cpus: 4\n");
	}
}

static void test_edit_quote_reads_back(void **state)
{
	static const char *const texts[] = {
		"plain", "", " lead", "trail ", "yes", "null", "0x1", "1.5", "a: b", "a #b", "- x",
		"{{.Home}}/x", "tab\there", "line\nbreak", "quote\"s and \\", "ünïcode", "*x", "@at",
		"12:30", "/a/b:c", "~", "~/x", "=", "\x01",
	};

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		scoped_buf struct buf b = text_of("a: 1\nz: [1]\n");
		scoped_free char *quoted = edit_quote(texts[i]), *back = NULL, *flow = NULL;
		struct error err = ERROR_NONE;

		if (edit_set(&b, "k", quoted, &err) < 0 ||
		    edit_add(&b, "z", EDIT_LAST, quoted, &err) < 0)
			fail_msg("%zu: %s", i, err.msg);
		assert_int_equal(edit_get(&b, "k", &back, &err), 0);
		assert_string_equal(back, texts[i]);
		assert_int_equal(edit_get(&b, "z[1]", &flow, &err), 0);
		assert_string_equal(flow, texts[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_edit_set_keeps_the_rest),
		cmocka_unit_test(test_edit_set_refuses_and_leaves_the_text),
		cmocka_unit_test(test_edit_add_to_lists),
		cmocka_unit_test(test_edit_delete),
		cmocka_unit_test(test_edit_expression),
		cmocka_unit_test(test_edit_expression_refused),
		cmocka_unit_test(test_edit_quote_reads_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
