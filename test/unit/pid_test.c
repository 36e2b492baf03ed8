#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/pid.h"

static char tmp[] = "/tmp/lima-pid-XXXXXX";
static char *file;

static int setup(void **state)
{
	if (!mkdtemp(tmp))
		return -1;
	file = xasprintf("%s/x.pid", tmp);
	return 0;
}

static int teardown(void **state)
{
	struct error err;

	free(file);
	return path_remove_tree(tmp, &err);
}

static void write_text(const char *text)
{
	struct error err;

	assert_int_equal(path_write_file(file, text, strlen(text), 0644, &err), 0);
}

/* The three lines that pid_file_write made for us. */
static void read_lines(char boot[64], unsigned long long *start)
{
	scoped_buf struct buf b = { 0 };
	struct error err;
	int pid;

	assert_int_equal(pid_file_write(file, getpid(), &err), 0);
	assert_int_equal(path_read_file(file, 4096, &b, &err), 0);
	assert_int_equal(sscanf(buf_str(&b), "%d\n%63s\n%llu\n", &pid, boot, start), 3);
	assert_int_equal(pid, getpid());
}

static void test_pid_file_names_the_writer(void **state)
{
	struct error err;

	assert_int_equal(pid_file_write(file, getpid(), &err), 0);
	assert_int_equal(pid_file_read(file, "no-such-prefix"), getpid());
	assert_true(path_exists(file));
}

static void test_pid_file_of_another_boot_names_nobody(void **state)
{
	char boot[64], text[256];
	unsigned long long start;

	read_lines(boot, &start);
	snprintf(text, sizeof(text), "%d\n00000000-0000-4000-8000-000000000000\n%llu\n",
		 (int)getpid(), start);
	write_text(text);
	assert_int_equal(pid_file_read(file, NULL), 0);
}

static void test_pid_file_of_a_reused_pid_names_nobody(void **state)
{
	char boot[64], text[256];
	unsigned long long start;

	read_lines(boot, &start);
	snprintf(text, sizeof(text), "%d\n%s\n%llu\n", (int)getpid(), boot, start - 1);
	write_text(text);
	assert_int_equal(pid_file_read(file, NULL), 0);
	snprintf(text, sizeof(text), "%d\n%s\n%llu\n", (int)getpid(), boot, start);
	write_text(text);
	assert_int_equal(pid_file_read(file, NULL), getpid());
}

static void test_pid_file_with_one_line_needs_the_program(void **state)
{
	char text[32];

	prctl(PR_SET_NAME, "qemu ) (x");
	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	write_text(text);
	assert_int_equal(pid_file_read(file, "qemu"), getpid());
	assert_int_equal(pid_file_read(file, "limactl"), 0);
	assert_int_equal(pid_file_read(file, NULL), getpid());
	snprintf(text, sizeof(text), "%d", (int)getpid()); /* without the line end */
	write_text(text);
	assert_int_equal(pid_file_read(file, "qemu"), getpid());
}

static void test_pid_file_with_rubbish_names_nobody(void **state)
{
	static const char *const texts[] = { "",         "0\n",           "-1\n",
					     "abc\n",    "99999999999\n", "1 2\n",
					     "1\nfoo\n", "1x\n\n\n" };

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		write_text(texts[i]);
		if (pid_file_read(file, "qemu"))
			fail_msg("`%s` named somebody", texts[i]);
	}
	assert_int_equal(pid_file_read("/does/not/exist", NULL), 0);
}

static void test_pid_zombie_is_gone(void **state)
{
	struct error err;
	siginfo_t info;
	int go[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe(go), 0);
	pid = fork();
	if (pid == 0) {
		close(go[1]);
		_exit(read(go[0], &c, 1) != 0);
	}
	assert_int_equal(pid_file_write(file, pid, &err), 0);
	assert_int_equal(pid_file_read(file, NULL), pid);
	assert_int_equal(pid_wait_gone(pid, 20), -ETIMEDOUT);
	close(go[1]);
	assert_int_equal(pid_wait_gone(pid, 5000), 0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(pid_file_read(file, NULL), 0);
	waitpid(pid, NULL, 0);
	assert_int_equal(pid_wait_gone(pid, 0), 0);
	assert_int_equal(pid_file_write(file, pid, &err), -ESRCH);
	close(go[0]);
}

static void test_pid_of_listener(void **state)
{
	scoped_free char *path = xasprintf("%s/x.sock", tmp);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char name[16];

	prctl(PR_GET_NAME, name);
	strcpy(sa.sun_path, path);
	assert_int_equal(pid_of_listener(path, ""), 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(pid_of_listener(path, ""), 0);	/* nobody listens */
	assert_int_equal(listen(fd, 2), 0);
	assert_int_equal(pid_of_listener(path, name), getpid());
	assert_int_equal(pid_of_listener(path, "qemu"), 0);
	close(steal_fd(&fd));
	assert_int_equal(pid_of_listener(path, ""), 0);	/* what a crash leaves */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pid_of_listener),
		cmocka_unit_test(test_pid_file_names_the_writer),
		cmocka_unit_test(test_pid_file_of_another_boot_names_nobody),
		cmocka_unit_test(test_pid_file_of_a_reused_pid_names_nobody),
		cmocka_unit_test(test_pid_file_with_one_line_needs_the_program),
		cmocka_unit_test(test_pid_file_with_rubbish_names_nobody),
		cmocka_unit_test(test_pid_zombie_is_gone),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
