#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/log.h"
#include "lib/base/log_file.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

/* What log_write() sends to stderr. */
static void logged(enum log_format format, enum log_level level, const char *msg, char *out, size_t size)
{
	int old = dup(STDERR_FILENO), p[2];
	ssize_t n;

	assert_int_equal(pipe(p), 0);
	dup2(p[1], STDERR_FILENO);
	close(p[1]);
	log_setup(LOG_INFO, format);
	log_write(level, "%s", msg);
	dup2(old, STDERR_FILENO);
	close(old);
	n = read(p[0], out, size - 1);
	close(p[0]);
	assert_true(n >= 0);
	out[n] = 0;
}

static void test_log_plain_has_no_prefix_for_info(void **state)
{
	char s[256];

	logged(LOG_FORMAT_PLAIN, LOG_INFO, "`x` stopped", s, sizeof(s));
	assert_string_equal(s, "`x` stopped\n");
	logged(LOG_FORMAT_PLAIN, LOG_FATAL, "no", s, sizeof(s));
	assert_string_equal(s, "error: no\n");
	logged(LOG_FORMAT_PLAIN, LOG_DEBUG, "no", s, sizeof(s));
	assert_string_equal(s, "");
}

static void test_log_logfmt_is_as_logrus_writes_it(void **state)
{
	char s[256], *rest;

	logged(LOG_FORMAT_TEXT, LOG_WARN, "say \"hi\"\nC:\\", s, sizeof(s));
	assert_memory_equal(s, "time=\"20", 8);
	rest = strstr(s, "Z\" ");
	assert_non_null(rest);
	assert_string_equal(rest, "Z\" level=warning msg=\"say \\\"hi\\\"\\nC:\\\\\"\n");
}

static void test_log_json_is_json_whatever_the_text(void **state)
{
	char s[256];

	logged(LOG_FORMAT_JSON, LOG_ERROR, "a\"\033[2J\x9b\n\tz", s, sizeof(s));
	assert_memory_equal(s, "{\"level\":\"error\",\"msg\":\"a\\\"\\u001b[2J\\\\x9b\\n\\tz\",\"time\":\"",
			    strlen("{\"level\":\"error\",\"msg\":\"a\\\"\\u001b[2J\\\\x9b\\n\\tz\",\"time\":\""));
	assert_string_equal(s + strlen(s) - 3, "\"}\n");
}

static void test_log_plain_disarms_terminal_controls(void **state)
{
	char s[256];

	logged(LOG_FORMAT_PLAIN, LOG_INFO, "a\033]0;x\007b", s, sizeof(s));
	assert_string_equal(s, "a\\x1b]0;x\\x07b\n");
}

static void test_log_limit_lets_five_pass(void **state)
{
	struct log_limit l = { 0 };
	unsigned passed = 0;

	for (int i = 0; i < 100; i++)
		passed += log_limit_pass(&l);
	assert_int_equal(passed, 5);
	assert_int_equal(l.dropped, 95);
}

/* A writer as QEMU is one: with O_APPEND, and going on behind our cut. */
static void test_log_file_is_cut_under_its_writer(void **state)
{
	enum { LIMIT = 64 << 10, KEEP = 4 << 10 };
	static const char note[] = "[… earlier lines were dropped]\n";
	char path[] = "/tmp/lima-log-XXXXXX", line[64];
	scoped_fd int fd = mkstemp(path);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	fcntl(fd, F_SETFL, O_APPEND);
	assert_int_equal(log_file_trim("/tmp/lima-no-such-log", LIMIT, KEEP, note, &err), 0);
	assert_int_equal(write(fd, "few\n", 4), 4);
	assert_int_equal(log_file_trim(path, LIMIT, KEEP, note, &err), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), 4);
	for (int i = 0; i < 4096; i++) {
		int n = snprintf(line, sizeof(line), "line %04d of what the guest says\n", i);

		assert_int_equal(write(fd, line, (size_t)n), n);
	}
	assert_int_equal(log_file_trim(path, LIMIT, KEEP, note, &err), 0);
	assert_int_equal(write(fd, "goes on\n", 8), 8);
	assert_int_equal(path_read_file(path, LIMIT, &b, &err), 0);
	assert_true(b.len > KEEP - sizeof(line) && b.len < KEEP + sizeof(line));
	assert_memory_equal(b.data, note, strlen(note));
	assert_memory_equal(b.data + strlen(note), "line ", 5);
	assert_non_null(strstr(buf_str(&b), "line 4095 of what the guest says\ngoes on\n"));
	unlink(path);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	assert_true(log_file_trim(path, 1, 1, note, &err) < 0);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_log_plain_has_no_prefix_for_info),
		cmocka_unit_test(test_log_logfmt_is_as_logrus_writes_it),
		cmocka_unit_test(test_log_json_is_json_whatever_the_text),
		cmocka_unit_test(test_log_plain_disarms_terminal_controls),
		cmocka_unit_test(test_log_limit_lets_five_pass),
		cmocka_unit_test(test_log_file_is_cut_under_its_writer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
