#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cmd/limactl/copy_path.h"
#include "lib/base/mem.h"

static void test_copy_path_here_or_in_an_instance(void **state)
{
	static const struct {
		const char *given, *instance, *path;
	} cases[] = {
		{ "web:/etc/hosts", "web", "/etc/hosts" },
		{ "web:", "web", "" },
		{ "web:a:b", "web", "a:b" },
		{ "web::a", "web", "./:a" },	/* to rsync web::a is a daemon's */
		{ "web:~/:a", "web", "./:a" },
		{ "web:~/x", "web", "x" },	/* both programs start at home */
		{ "web:~", "web", "" },
		{ "web:~bob/x", "web", "~bob/x" },
		{ "/etc/hosts", NULL, "/etc/hosts" },
		{ "dir/a:b", NULL, "dir/a:b" },
		{ "./a:b", NULL, "./a:b" },
		{ "no instance:b", NULL, "./no instance:b" },
		{ ":b", NULL, "./:b" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct copy_path p;

		copy_path_parse(cases[i].given, &p);
		assert_string_equal(p.path, cases[i].path);
		assert_string_equal(p.instance ? p.instance : "-", cases[i].instance ? cases[i].instance : "-");
		copy_path_done(&p);
	}
}

static void test_copy_path_slashes_at_the_end(void **state)
{
	static const struct {
		const char *given;
		bool slash;
		const char *path;
	} cases[] = {
		{ "a", true, "a/" }, { "a//", true, "a/" }, { "a/", false, "a" }, { "a", false, "a" },
		{ "/", true, "/" },  { "//", false, "/" },  { "web:", true, "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct copy_path p;

		copy_path_parse(cases[i].given, &p);
		copy_path_trim(&p, cases[i].slash);
		assert_string_equal(p.path, cases[i].path);
		copy_path_done(&p);
	}
}

static void test_copy_path_ssh_finds_those_that_take_part_first(void **state)
{
	struct copy_path p[3];

	copy_path_parse("a.b:x", &p[0]);
	copy_path_parse("./y", &p[1]);
	copy_path_parse("db:", &p[2]);
	scoped_free char *text = copy_path_ssh_config("/h", p, ARRAY_SIZE(p));

	assert_string_equal(text, "# Written by limactl copy: every instance, as lima-NAME\n"
				  "Include \"/h/a.b/ssh.config\"\n"
				  "Include \"/h/db/ssh.config\"\n"
				  "Include \"/h/[A-Za-z0-9]*/ssh.config\"\n");
	for (size_t i = 0; i < ARRAY_SIZE(p); i++)
		copy_path_done(&p[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copy_path_here_or_in_an_instance),
		cmocka_unit_test(test_copy_path_slashes_at_the_end),
		cmocka_unit_test(test_copy_path_ssh_finds_those_that_take_part_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
