#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/utf8.h"

static char dir[] = "/tmp/lima-path-XXXXXX";

static char *in_dir(const char *name)
{
	return xasprintf("%s/%s", dir, name);
}

static int setup(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err = { 0 };

	return path_remove_tree(dir, &err);
}

static void test_path_write_keeps_old_file_when_it_fails(void **state)
{
	scoped_free char *f = in_dir("f"), *tmp = xasprintf("%s.tmp.%d", f, (int)getpid());
	struct rlimit old, small = { .rlim_cur = 4096 };
	scoped_buf struct buf b = { 0 };
	struct error err = { 0 };
	static char big[65536];

	assert_int_equal(path_write_file(f, "old", 3, 0640, &err), 0);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &small);
	assert_int_equal(path_write_file(f, big, sizeof(big), 0640, &err), -EFBIG);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(path_read_file(f, 100, &b, &err), 0);
	assert_string_equal(buf_str(&b), "old");
	assert_false(path_exists(tmp));
}

static void test_path_read_refuses_too_much(void **state)
{
	scoped_free char *f = in_dir("g");
	scoped_buf struct buf b = { 0 };
	struct error err = { 0 };

	assert_int_equal(path_write_file(f, "123456", 6, 0600, &err), 0);
	assert_int_equal(path_read_file(f, 5, &b, &err), -EFBIG);
	assert_int_equal(path_read_file(f, 6, &b, &err), 0);
	assert_int_equal(path_read_file("/no/such", 6, &b, &err), -ENOENT);
}

static void test_path_remove_does_not_follow_symlinks(void **state)
{
	scoped_free char *keep = in_dir("keep"), *kept = in_dir("keep/file");
	scoped_free char *gone = in_dir("gone/deep"), *top = in_dir("gone");
	scoped_free char *link = in_dir("gone/deep/link");
	struct error err = { 0 };

	assert_int_equal(path_mkdir_all(keep, 0700, &err), 0);
	assert_int_equal(path_write_file(kept, "x", 1, 0600, &err), 0);
	assert_int_equal(path_mkdir_all(gone, 0700, &err), 0);
	assert_int_equal(symlink(keep, link), 0);
	assert_int_equal(path_remove_tree(top, &err), 0);
	assert_false(path_exists(top));
	assert_true(path_exists(kept));
	assert_int_equal(path_remove_tree(top, &err), 0); /* missing is fine */
}

static void test_path_mkdir_says_what_is_in_the_way(void **state)
{
	scoped_free char *f = in_dir("file"), *d = in_dir("file/sub");
	struct error err = { 0 };

	assert_int_equal(path_write_file(f, "x", 1, 0600, &err), 0);
	assert_int_equal(path_mkdir_all(f, 0700, &err), -ENOTDIR);
	assert_true(path_mkdir_all(d, 0700, &err) < 0);
}

/* The reason is mkdir's own, not that of the look that follows it. */
static void test_path_mkdir_keeps_the_reason(void **state)
{
	struct error err = { 0 };

	assert_true(path_mkdir_all("/sys/no-such/dir", 0700, &err) < 0);
	assert_int_not_equal(err.code, -ENOENT);
}

static void test_log_escape_shows_terminal_controls(void **state)
{
	scoped_free char *a = log_escape("a\033[2Jb\x9b" "c\xc2\x9b" "dé", 100);
	scoped_free char *b = log_escape("ääääää", 5);

	assert_string_equal(a, "a\\x1b[2Jb\\x9bc\\xc2\\x9bdé");
	assert_string_equal(b, "äää…");
	assert_false(utf8_valid("\xed\xa0\x80", 3)); /* surrogate */
}

static void test_clock_reads_what_go_writes(void **state)
{
	struct timespec a, b;

	assert_int_equal(clock_rfc3339_parse("2026-01-02T15:04:05.25+01:00", &a), 0);
	assert_int_equal(clock_rfc3339_parse("2026-01-02T14:04:05.250000000Z", &b), 0);
	assert_int_equal(a.tv_sec, b.tv_sec);
	assert_int_equal(a.tv_nsec, 250000000);
	assert_int_equal(clock_rfc3339_parse("yesterday", &a), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_path_write_keeps_old_file_when_it_fails),
		cmocka_unit_test(test_path_read_refuses_too_much),
		cmocka_unit_test(test_path_remove_does_not_follow_symlinks),
		cmocka_unit_test(test_path_mkdir_says_what_is_in_the_way),
		cmocka_unit_test(test_path_mkdir_keeps_the_reason),
		cmocka_unit_test(test_log_escape_shows_terminal_controls),
		cmocka_unit_test(test_clock_reads_what_go_writes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
