#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/limactl/follow.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[] = "/tmp/follow.XXXXXX";

#define EVENT(body) "{\"time\":\"2026-01-02T03:04:05Z\",\"status\":{" body "}}\n"
#define BOOTING	    EVENT("\"sshLocalPort\":2222")
#define RUNNING	    EVENT("\"running\":true,\"sshLocalPort\":2222")

static void write_log(const char *name, const char *text)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);
	struct error err = { 0 };

	assert_int_equal(path_write_file(path, text, strlen(text), 0600, &err), 0);
}

/* A host agent: appends @first, then the rest when it is @wanted, and ends or stays. */
static pid_t host_agent(const char *first, const char *second, bool ends)
{
	scoped_free char *path = xasprintf("%s/ha.stdout.log", dir);
	pid_t pid;

	write_log("ha.stdout.log", "");
	pid = fork();
	if (pid == 0) {
		int fd = open(path, O_WRONLY | O_APPEND);

		for (const char *p = first; *p; p++) /* the reader sees torn lines */
			if (write(fd, p, 1) != 1)
				_exit(1);
		if (write(fd, second, strlen(second)) < 0)
			_exit(1);
		while (!ends)
			pause();
		_exit(0);
	}
	assert_true(pid > 0);
	return pid;
}

static int follow(pid_t pid, enum follow_until until, unsigned timeout_ms, struct follow *f,
		  struct error *err)
{
	struct ui *ui = ui_new(false);
	int rc = follow_open(f, dir, pid, ui, 0, err);

	if (rc == 0)
		rc = follow_wait(f, until, timeout_ms, err);
	follow_close(f);
	ui_free(ui);
	f->ui = NULL;
	return rc;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void test_follow_running_reads_torn_lines_and_strangers(void **state)
{
	pid_t pid = host_agent(BOOTING "not json\n{\"x\":1}\n", RUNNING, false);
	struct error err = { 0 };
	struct follow f;

	assert_int_equal(follow(pid, FOLLOW_RUNNING, 10000, &f, &err), 0);
	assert_true(f.running);
	assert_false(f.degraded);
	assert_int_equal(f.ssh_port, 2222);
	end(pid);
}

static void test_follow_degraded_is_running_with_a_reason(void **state)
{
	pid_t pid = host_agent(BOOTING, EVENT("\"running\":true,\"degraded\":true,\"errors\":[\"probe\"]"),
			       false);
	struct error err = { 0 };
	struct follow f;

	assert_int_equal(follow(pid, FOLLOW_RUNNING, 10000, &f, &err), 0);
	assert_true(f.degraded);
	assert_string_equal(f.reason, "probe");
	end(pid);
}

static void test_follow_gives_the_host_agents_last_words(void **state)
{
	pid_t pid = host_agent(BOOTING, EVENT("\"exiting\":true,\"errors\":[\"qemu: exit 1: no kvm\"]"), true);
	struct error err = { 0 };
	struct follow f;

	assert_int_equal(follow(pid, FOLLOW_RUNNING, 10000, &f, &err), -EIO);
	assert_string_equal(err.msg, "qemu: exit 1: no kvm");
	pid = host_agent("", "", true);
	assert_int_equal(follow(pid, FOLLOW_RUNNING, 10000, &f, &err), -EIO);
	assert_string_equal(err.msg, "the host agent ended without giving a reason");
}

static void test_follow_times_out(void **state)
{
	pid_t pid = host_agent(BOOTING, "", false);
	struct error err = { 0 };
	struct follow f;

	assert_int_equal(follow(pid, FOLLOW_BEGAN, 10000, &f, &err), 0);
	assert_int_equal(follow(pid, FOLLOW_RUNNING, 200, &f, &err), -ETIMEDOUT);
	end(pid);
}

/* One who must not be ended half way says so, and is waited for. */
static void test_follow_waits_longer_when_told(void **state)
{
	pid_t pid = host_agent(BOOTING, EVENT("\"notice\":\"a snapshot\",\"delayMillis\":500"), false);
	struct error err = { 0 };
	struct follow f;

	assert_int_equal(follow(pid, FOLLOW_BEGAN, 10000, &f, &err), 0);
	assert_int_equal(follow(pid, FOLLOW_GONE, 200, &f, &err), -ETIMEDOUT);
	assert_int_equal(f.delay_ms, 500);
	assert_string_equal(err.msg, "no answer in 1 s");	/* 0.7 */
	assert_int_equal(follow(pid, FOLLOW_RUNNING, 200, &f, &err), -ETIMEDOUT);
	assert_string_equal(err.msg, "no answer in 0 s");
	end(pid);
}

static void test_follow_needs_no_log_to_see_the_end(void **state)
{
	pid_t pid = host_agent("", "", true);
	scoped_free char *path = xasprintf("%s/ha.stdout.log", dir);
	struct error err = { 0 };
	struct follow f;

	unlink(path);
	assert_int_equal(follow(pid, FOLLOW_GONE, 10000, &f, &err), 0);
}

/* Last, and in a process of its own: the interrupt stays pending. */
static void test_follow_interrupt_wins_over_a_dead_host_agent(void **state)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		pid_t ha = host_agent("", "", true);
		struct error err = { 0 };
		struct follow f;

		interrupt_install();
		raise(SIGINT);
		_exit(follow(ha, FOLLOW_RUNNING, 10000, &f, &err) == -ECANCELED ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_follow_log_tail_keeps_what_is_serious(void **state)
{
	write_log("ha.stderr.log", "{\"level\":\"debug\",\"msg\":\"noise\"}\n"
				   "{\"level\":\"error\",\"msg\":\"bad \\u001b[2J\"}\n"
				   "ld.so: gone\n");
	write_log("qemu.log", "# /usr/bin/qemu -long\nqemu: no such device\n");
	scoped_free char *tail = follow_log_tail(dir);
	assert_string_equal(tail, "\n  host agent: bad \\x1b[2J\n  host agent: ld.so: gone"
				  "\n  qemu: qemu: no such device");
}

static int make_dir(void **state)
{
	log_setup(LOG_INFO, LOG_FORMAT_PLAIN);
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	struct error err = { 0 };

	return path_remove_tree(dir, &err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_follow_running_reads_torn_lines_and_strangers),
		cmocka_unit_test(test_follow_degraded_is_running_with_a_reason),
		cmocka_unit_test(test_follow_gives_the_host_agents_last_words),
		cmocka_unit_test(test_follow_times_out),
		cmocka_unit_test(test_follow_waits_longer_when_told),
		cmocka_unit_test(test_follow_needs_no_log_to_see_the_end),
		cmocka_unit_test(test_follow_interrupt_wins_over_a_dead_host_agent),
		cmocka_unit_test(test_follow_log_tail_keeps_what_is_serious),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
