#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
	check_line("cd /x ; exec /bin/zsh -l -c 'uname -a'", "cd /x", "/bin/zsh", WORDS("uname", "-a"));
	check_line(": ; exec env A=1 /bin/bash -l -c ls", ":", "/bin/bash", WORDS("A=1", "ls"));
	check_line(": ; exec env A=1 'B=two words' /bin/sh -l -c 'sh -c '\\''echo $A'\\'''", ":", "/bin/sh",
		   WORDS("A=1", "B=two words", "sh", "-c", "echo $A"));
	/* an assignment behind the command's name is an ordinary word */
	check_line(": ; exec /bin/sh -l -c 'make X=1'", ":", "/bin/sh", WORDS("make", "X=1"));
}

/* What a program run by the line with $SHELL = @login_shell sees: exit code, output. */
static int run_line(const char *line, const char *home, const char *login_shell, char *ret, size_t size)
{
	scoped_free char *q = shell_line_quote(line);
	scoped_free char *cmd = xasprintf("env -i HOME=%s SHELL=%s PATH=/usr/bin:/bin bash -c %s 2>&1",
					  home, login_shell, q);
	FILE *p = popen(cmd, "r");

	assert_non_null(p);
	ret[fread(ret, 1, size - 1, p)] = 0;
	return WEXITSTATUS(pclose(p));
}

/* The line that spares a second bash does what the one with it does. */
static void test_shell_line_in_place_is_a_login(void **state)
{
	static const char script[] = "env | sort; printf '<%s>' \"$0\" \"$@\"; ps -o comm= -p $PPID; exit 7";
	static const char *const profiles[] = { ".profile", ".bash_login", ".bash_profile" };
	char home[] = "/tmp/shell-line.XXXXXX";
	char *words[] = { (char *)"sh", (char *)"-c", (char *)script, (char *)"a b", (char *)"$HOME", (char *)"" };
	scoped_free char *line = shell_line_build("cd /usr || exit 1", "/bin/bash", words, ARRAY_SIZE(words));
	char in_place[8192], exec[8192];

	assert_non_null(mkdtemp(home));
	for (size_t i = 0; i <= ARRAY_SIZE(profiles); i++) {
		assert_int_equal(run_line(line, home, "/bin/bash", in_place, sizeof(in_place)), 7);
		assert_int_equal(run_line(line, home, "/bin/sh", exec, sizeof(exec)), 7);
		char *mine = strstr(in_place, "SHELL="), *theirs = strstr(exec, "SHELL=");
		assert_true(mine && theirs);
		memmove(mine + 6, strchr(mine, '\n'), strlen(strchr(mine, '\n')) + 1);
		memmove(theirs + 6, strchr(theirs, '\n'), strlen(strchr(theirs, '\n')) + 1);
		assert_string_equal(in_place, exec);
		assert_non_null(strstr(in_place, "PWD=/usr\n"));
		if (i > 0) {	/* the profile that the last turn wrote was read, and no other */
			scoped_free char *want = xasprintf("FROM=%s\n", profiles[i - 1]);
			assert_non_null(strstr(in_place, want));
		}
		if (i < ARRAY_SIZE(profiles)) {
			scoped_free char *path = xasprintf("%s/%s", home, profiles[i]);
			FILE *f = fopen(path, "w");
			fprintf(f, "export FROM=%s\n", profiles[i]);
			fclose(f);
		}
	}
	for (size_t i = 0; i < ARRAY_SIZE(profiles); i++) {
		scoped_free char *path = xasprintf("%s/%s", home, profiles[i]);
		unlink(path);
	}
	rmdir(home);
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
		cmocka_unit_test(test_shell_line_in_place_is_a_login),
		cmocka_unit_test(test_shell_line_quote_keeps_every_byte),
		cmocka_unit_test(test_shell_line_cwd_follows_mounts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
