#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/limactl/shell_line.h"
#include "lib/base/mem.h"

static void check_line(const char *want, const char *cd, const char *shell, const char *const *words)
{
	size_t n = 0;

	while (words && words[n])
		n++;
	scoped_free char *line = shell_line_build(cd, shell, (char *const *)words, n);
	assert_string_equal(line, want);
}

#define WORDS(...) (const char *const[]){ __VA_ARGS__, NULL }

static void test_shell_line_build(void **state)
{
	check_line(": ; exec /bin/bash -l", ":", "/bin/bash", NULL);
	check_line(": ; exec \"$SHELL\" -l", ":", "", NULL);
	check_line("cd /x ; exec /bin/bash -l -c 'uname -a'", "cd /x", "/bin/bash", WORDS("uname", "-a"));
	check_line(": ; exec env A=1 'B=two words' /bin/sh -l -c 'sh -c '\\''echo $A'\\'''", ":", "/bin/sh",
		   WORDS("A=1", "B=two words", "sh", "-c", "echo $A"));
	/* an assignment behind the command's name is an ordinary word */
	check_line(": ; exec /bin/sh -l -c 'make X=1'", ":", "/bin/sh", WORDS("make", "X=1"));
}

static void test_shell_line_quote_keeps_every_byte(void **state)
{
	static const char *const hostile[] = { "", "'", "a'b", "$(reboot)", "`id`", "a\nb", "\\", "*", "~", "#x",
					       "-n", "é", "a;b", "!!", "{a,b}" };

	for (size_t i = 0; i < ARRAY_SIZE(hostile); i++) {
		scoped_free char *q = shell_line_quote(hostile[i]);
		scoped_free char *cmd = xasprintf("printf %%s %s", q);
		char got[64] = "";
		FILE *p = popen(cmd, "r");

		assert_non_null(p);
		got[fread(got, 1, sizeof(got) - 1, p)] = 0;
		pclose(p);
		assert_string_equal(got, hostile[i]);
	}
}

static void test_shell_line_cwd_follows_mounts(void **state)
{
	struct config_mount mounts[] = {
		{ .location = (char *)"/home/me", .mount_point = (char *)"/home/me" },
		{ .location = (char *)"/src", .mount_point = (char *)"/mnt/src" },
	};
	struct config c = { .mounts = mounts, .n_mounts = 2 };
	static const struct {
		const char *cwd, *want;
	} cases[] = {
		{ "/home/me/work", "cd /home/me/work 2>/dev/null || cd" },
		{ "/home/me", "cd /home/me 2>/dev/null || cd" },
		{ "/home/mean", ":" },
		{ "/src/a b", "cd '/mnt/src/a b' 2>/dev/null || cd" },
		{ "/", ":" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_free char *cd = shell_line_cwd(cases[i].cwd, &c);

		assert_string_equal(cd, cases[i].want);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shell_line_build),
		cmocka_unit_test(test_shell_line_quote_keeps_every_byte),
		cmocka_unit_test(test_shell_line_cwd_follows_mounts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
