/* `port list --watch` while the host agent goes and comes; a child plays it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/limactl/port_watch.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

#define ROW(port)                                                                          \
	"{\"protocol\":\"tcp\",\"guestAddr\":\"127.0.0.1:" port                            \
	"\",\"hostAddr\":\"127.0.0.1:" port "\",\"state\":\"forwarding\",\"error\":\"\"}"
#define SNAPSHOT(rows) "{\"type\":\"snapshot\",\"ports\":[" rows "],\"rules\":[]}\n"
#define HEAD	       "HTTP/1.1 200 OK\r\n\r\n"

static char dir[] = "/tmp/port-watch-test.XXXXXX";
static char *sock_path, *out_path;

/* A host agent: each client gets the next of @answers, then it hangs up; after the
 * last one it is no more. */
static pid_t serve(const char *const *answers)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char request[4096];
	pid_t pid;

	strcpy(sa.sun_path, sock_path);
	unlink(sock_path);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 4), 0);
	pid = fork();
	if (pid == 0) {
		for (; *answers; answers++) {
			int c = accept(fd, NULL, NULL);

			if (read(c, request, sizeof(request)) < 0 ||
			    write(c, *answers, strlen(*answers)) < 0)
				break;
			close(c);
		}
		_exit(0);
	}
	close(fd);
	return pid;
}

struct story {			/* what look() finds, one after the other */
	const enum port_watch_host *steps;
	size_t at, n;
	int interrupt_at;	/* Ctrl-C at this step; 0: none */
	bool reader_gone;	/* nobody reads standard output any more */
};

static enum port_watch_host look(void *arg)
{
	struct story *s = arg;

	if (s->interrupt_at && s->at + 1 == (size_t)s->interrupt_at)
		raise(SIGINT);
	assert_true(s->at < s->n);
	return s->steps[s->at++];
}

/* port_watch(), in a child for its standard streams; what both said. */
static char *watch(struct story *story, int *ret_rc)
{
	struct port_watch_options o = { .instance = "vm", .look = look, .arg = story };
	struct error err = ERROR_NONE;
	struct buf b = { 0 };
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		int fd = open(out_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);

		int ends[2];

		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		if (story->reader_gone && pipe(ends) == 0) {
			dup2(ends[1], STDOUT_FILENO);
			close(ends[0]);
		}
		log_setup(LOG_INFO, LOG_FORMAT_PLAIN);
		interrupt_install();
		status = -port_watch(sock_path, &o, &err);
		fflush(stdout);
		_exit(status);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	*ret_rc = -WEXITSTATUS(status);
	assert_int_equal(path_read_file(out_path, 65536, &b, &err), 0);
	return buf_steal_str(&b);
}

static size_t count(const char *text, const char *what)
{
	size_t n = 0;

	while ((text = strstr(text, what)))
		n++, text++;
	return n;
}

static void test_port_watch_host_agent_comes_back(void **state)
{
	static const char *const answers[] = { HEAD SNAPSHOT(ROW("8080") "," ROW("8081")),
					       HEAD SNAPSHOT(ROW("8081") "," ROW("8082")), NULL };
	static const enum port_watch_host steps[] = { PORT_WATCH_LOST, PORT_WATCH_LOST,
						      PORT_WATCH_THERE, PORT_WATCH_STOPPED };
	struct story story = { .steps = steps, .n = ARRAY_SIZE(steps) };
	pid_t host = serve(answers);
	int rc;
	scoped_free char *said = watch(&story, &rc);

	assert_int_equal(rc, 0);
	assert_int_equal(count(said, "is gone"), 1);
	assert_int_equal(count(said, "limactl start vm"), 1);
	assert_int_equal(count(said, "is back"), 1);
	assert_int_equal(count(said, "has stopped"), 1);
	assert_int_equal(count(said, "gone: "), 1);	/* 8080 did not come again */
	assert_non_null(strstr(strstr(said, "is back"), ":8082"));
	assert_null(strstr(strstr(said, "is back"), ":8081"));
	waitpid(host, NULL, 0);
}

/* As with `| head -1`: that its reader is gone is not that the host agent is. */
static void test_port_watch_reader_of_the_output_goes(void **state)
{
	static const char *const answers[] = { HEAD SNAPSHOT(ROW("8080")), NULL };
	struct story story = { .reader_gone = true };
	pid_t host = serve(answers);
	int rc;
	scoped_free char *said = watch(&story, &rc);

	assert_int_equal(rc, -EIO);
	assert_string_equal(said, "");
	waitpid(host, NULL, 0);
}

/* It stopped in order: nothing was lost, so nothing is said of it. */
static void test_port_watch_instance_stops(void **state)
{
	static const char *const answers[] = { HEAD SNAPSHOT(ROW("8080")), NULL };
	static const enum port_watch_host steps[] = { PORT_WATCH_THERE, PORT_WATCH_STOPPED };
	struct story story = { .steps = steps, .n = ARRAY_SIZE(steps) };
	pid_t host = serve(answers);
	int rc;
	scoped_free char *said = watch(&story, &rc);

	assert_int_equal(rc, 0);
	assert_int_equal(count(said, ":8080"), 2);	/* both sides of one line */
	assert_int_equal(count(said, "is gone") + count(said, "does not answer"), 0);
	assert_int_equal(count(said, "has stopped"), 1);
	waitpid(host, NULL, 0);
}

static void test_port_watch_interrupt_ends_the_wait(void **state)
{
	static const char *const answers[] = { HEAD SNAPSHOT(ROW("8080")), NULL };
	static const enum port_watch_host steps[] = { PORT_WATCH_LOST, PORT_WATCH_LOST };
	struct story story = { .steps = steps, .n = ARRAY_SIZE(steps), .interrupt_at = 2 };
	pid_t host = serve(answers);
	int rc;
	scoped_free char *said = watch(&story, &rc);

	assert_int_equal(rc, 0);
	assert_int_equal(count(said, "is gone"), 1);
	assert_int_equal(count(said, "has stopped"), 0);
	waitpid(host, NULL, 0);
}

static int make_dir(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	sock_path = xasprintf("%s/ha.sock", dir);
	out_path = xasprintf("%s/out", dir);
	return 0;
}

static int remove_dir(void **state)
{
	free(sock_path);
	free(out_path);
	return path_remove_tree(dir, &(struct error){ 0 });
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_port_watch_host_agent_comes_back),
		cmocka_unit_test(test_port_watch_reader_of_the_output_goes),
		cmocka_unit_test(test_port_watch_instance_stops),
		cmocka_unit_test(test_port_watch_interrupt_ends_the_wait),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
