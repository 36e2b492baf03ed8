#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "hostagent/control.h"
#include "hostagent/http.h"
#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

static char dir[] = "/tmp/lima-control-test-XXXXXX";
static char *sock_path;
static struct loop loop;
static struct events *events;
static struct control *control;
static bool closed;

static json_t *get_info(void *arg)
{
	return json_pack("{s:i}", "sshLocalPort", 43022);
}

/* A list of texts that can be added to, and watched. */
static struct strv things;
static control_line_fn watcher;
static void *watcher_arg;

static json_t *get_things(void *arg)
{
	return json_integer((json_int_t)things.len);
}

static int add_thing(void *arg, const json_t *body, json_t **ret, struct error *err)
{
	const char *name = json_string_value(body);

	if (!name) {
		error_set(err, -EINVAL, "a thing is a text");
		return 400;
	}
	strv_add(&things, name);
	*ret = json_pack("{s:s}", "added", name);
	return 201;
}

static int remove_thing(void *arg, const json_t *body, json_t **ret, struct error *err)
{
	error_set(err, -ENOENT, "no such thing");
	return 404;
}

static unsigned watch_things(void *arg, control_line_fn fn, void *to)
{
	watcher = fn;
	watcher_arg = to;
	assert_true(fn(to, "all of them"));
	return 1;
}

static void unwatch_things(void *arg, unsigned id)
{
	assert_int_equal(id, 1);
	watcher = NULL;
}

static const struct control_stream thing_stream = { watch_things, unwatch_things };
/* What takes its time: the answer is the test's to give. */
static struct control_reply *asked;
static char asked_for[64];

static void ask_slowly(void *arg, const json_t *body, struct control_reply *reply)
{
	struct error err = ERROR_NONE;

	if (body && !json_is_string(body)) {
		error_set(&err, -EINVAL, "a text is wanted");
		control_answer(reply, 400, NULL, &err);
		return;
	}
	assert_null(asked);
	asked = reply;
	snprintf(asked_for, sizeof(asked_for), "%s", body ? json_string_value(body) : "");
}

static const struct control_path paths[] = {
	{ .path = "/v1/info", .get = get_info },
	{ .path = "/v1/events" },
	{ .path = "/v1/things", .get = get_things, .post = add_thing, .del = remove_thing },
	{ .path = "/v1/things/events", .stream = &thing_stream },
	{ .path = "/v1/slow", .tasks = { .get = ask_slowly, .post = ask_slowly } },
	{ .path = "/v1/slow/post", .tasks = { .post = ask_slowly } },
};

static int setup(void **state)
{
	struct error err = ERROR_NONE;
	struct control_options o = { .socket = sock_path, .paths = paths,
				     .n_paths = ARRAY_SIZE(paths), .idle_timeout_ms = 300,
				     .stall_timeout_ms = 300 };

	events = events_new(open("/dev/null", O_WRONLY | O_CLOEXEC));
	o.events = events;
	closed = false;
	if (loop_init(&loop, &err) < 0)
		return -1;
	return control_new(&loop, &o, &control, &err);
}

static void on_closed(void *arg)
{
	closed = true;
}

static int teardown(void **state)
{
	control_close(control, on_closed, NULL);
	loop_run(&loop);
	assert_true(closed);
	assert_int_equal(loop_done(&loop), 0);
	events_free(events);
	strv_done(&things);
	assert_false(path_exists(sock_path));
	return 0;
}

static int dial(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	strcpy(sa.sun_path, sock_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* Reads until @want is in what came, the peer hung up (-1), or 5 s. */
static int read_until(int fd, struct buf *b, const char *want)
{
	uint64_t until = clock_mono_ms() + 5000;
	char data[4096];

	while (clock_mono_ms() < until) {
		ssize_t n;

		uv_run(&loop.uv, UV_RUN_NOWAIT);
		n = read(fd, data, sizeof(data));
		if (n > 0)
			buf_add(b, data, (size_t)n);
		if (want && strstr(buf_str(b), want))
			return 0;
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return -1;
		usleep(1000);
	}
	fail_msg("waited in vain for `%s` in `%s`", want ? want : "EOF", buf_str(b));
	return -2;
}

static void say(int fd, const char *text)
{
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void test_control_info(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	struct stat st;

	assert_int_equal(stat(sock_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	say(fd, "GET /v1/in");
	uv_run(&loop.uv, UV_RUN_NOWAIT);
	say(fd, "fo HTTP/1.1\r\nHost: lima-hostagent\r\n\r\nGET /v1/nope HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "no such path"), 0);	/* two on one connection */
	assert_non_null(strstr(buf_str(&b), "HTTP/1.1 200 OK"));
	assert_non_null(strstr(buf_str(&b), "{\"sshLocalPort\":43022}"));
	assert_non_null(strstr(buf_str(&b), "404 Not Found"));
	buf_reset(&b);
	say(fd, "DELETE /v1/info HTTP/1.1\r\nConnection: close\r\n\r\n");
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_non_null(strstr(buf_str(&b), "405 Method Not Allowed"));
	assert_non_null(strstr(buf_str(&b), "Allow: GET, HEAD\r\n"));
}

/* A body in pieces, two requests in one packet, answers in order. */
static void test_control_changes(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();

	say(fd, "POST /v1/things HTTP/1.1\r\nContent-Length: 5\r\n\r\n\"on");
	uv_run(&loop.uv, UV_RUN_NOWAIT);
	assert_int_equal(things.len, 0);
	say(fd, "e\"DELETE /v1/things HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /v1/things HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "\r\n\r\n1"), 0);
	assert_non_null(strstr(buf_str(&b), "HTTP/1.1 201 Created"));
	assert_non_null(strstr(buf_str(&b), "{\"added\":\"one\"}"));
	assert_non_null(strstr(buf_str(&b), "HTTP/1.1 404 Not Found"));
	assert_non_null(strstr(buf_str(&b), "{\"error\":\"no such thing\""));
	buf_reset(&b);
	say(fd, "POST /v1/things HTTP/1.1\r\nContent-Length: 1\r\n\r\n7");
	assert_int_equal(read_until(fd, &b, "a thing is a text"), 0);
	say(fd, "POST /v1/things HTTP/1.1\r\nContent-Length: 1\r\n\r\n{");
	assert_int_equal(read_until(fd, &b, "not JSON"), 0);
	buf_reset(&b);
	say(fd, "POST /v1/things HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "not JSON"), 0);
	say(fd, "PUT /v1/things HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "Allow: GET, HEAD, POST, DELETE\r\n"), 0);
	assert_int_equal(things.len, 1);
}

static void test_control_body_of_the_largest_size(void **state)
{
	scoped_buf struct buf b = { 0 }, body = { 0 };
	scoped_fd int fd = dial();

	for (int i = 0; i < HTTP_BODY_MAX_BYTES - 2; i++)
		buf_add_u8(&body, 'x');
	say(fd, "POST /v1/things HTTP/1.1\r\nContent-Length: 65536\r\nExpect: 100-continue\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "HTTP/1.1 100 Continue\r\n\r\n"), 0);
	assert_int_equal(b.len, strlen("HTTP/1.1 100 Continue\r\n\r\n"));
	say(fd, "\"");
	say(fd, buf_str(&body));
	say(fd, "\"");
	assert_int_equal(read_until(fd, &b, "HTTP/1.1 201 Created"), 0);
	assert_int_equal(strlen(things.items[0]), HTTP_BODY_MAX_BYTES - 2);
	assert_int_equal(b.len > strlen("HTTP/1.1 100 Continue\r\n\r\n"), true);
}

/* No deadline of ours while it takes; the next request waits for its turn. */
static void test_control_answer_that_comes_later(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	uint64_t until;

	say(fd, "POST /v1/slow HTTP/1.1\r\nContent-Length: 3\r\n\r\n\"a\"GET /v1/info HTTP/1.1\r\n\r\n");
	while (!asked)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	assert_string_equal(asked_for, "a");
	for (until = clock_mono_ms() + 500; clock_mono_ms() < until; usleep(1000))	/* idle_timeout_ms */
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	assert_int_equal(read(fd, &until, 1), -1);
	control_answer(steal_ptr(&asked), 200, json_string("done"), NULL);
	assert_int_equal(read_until(fd, &b, "43022"), 0);
	assert_non_null(strstr(buf_str(&b), "\"done\"HTTP/1.1 200 OK"));
	buf_reset(&b);
	say(fd, "POST /v1/slow HTTP/1.1\r\nContent-Length: 1\r\n\r\n7GET /v1/slow HTTP/1.0\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "a text is wanted"), 0);	/* at once */
	while (!asked)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	control_answer(steal_ptr(&asked), 200, json_string("end"), NULL);
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_non_null(strstr(buf_str(&b), "\"end\""));
}

static void test_control_nobody_waits_for_the_answer(void **state)
{
	scoped_buf struct buf b = { 0 };
	int fd = dial(), other;

	say(fd, "GET /v1/slow HTTP/1.1\r\n\r\n");
	while (!asked)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	close(fd);
	other = dial();
	say(other, "GET /v1/slow/post HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(other, &b, "Allow: POST\r\n"), 0);
	close(other);
	control_answer(steal_ptr(&asked), 200, json_string("nobody"), NULL);
}

/* The body never comes: told, and gone. */
static void test_control_body_that_does_not_come(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();

	say(fd, "POST /v1/things HTTP/1.1\r\nContent-Length: 100\r\n\r\n\"half");
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_non_null(strstr(buf_str(&b), "408"));
	assert_int_equal(things.len, 0);
}

static void test_control_stream_that_skips(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	static char text[4096];
	int taken = 0;

	say(fd, "GET /v1/things/events HTTP/1.0\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "all of them\n"), 0);
	memset(text, 'x', sizeof(text) - 1);
	while (taken < 1000 && watcher(watcher_arg, text))	/* nobody reads */
		taken++;
	assert_in_range(taken, 16, 999);
	assert_int_equal(read_until(fd, &b, "x\nx"), 0);
	while (!watcher(watcher_arg, "caught up"))
		read_until(fd, &b, "x");
	assert_int_equal(read_until(fd, &b, "caught up"), 0);
}

static void test_control_stream_nobody_reads_ends(void **state)
{
	scoped_fd int fd = dial();
	scoped_buf struct buf b = { 0 };
	uint64_t until = clock_mono_ms() + 5000;
	static char text[4096];

	say(fd, "GET /v1/things/events HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "all of them\n"), 0);
	memset(text, 'x', sizeof(text) - 1);
	while (watcher(watcher_arg, text))
		;
	while (watcher && clock_mono_ms() < until) {
		uv_run(&loop.uv, UV_RUN_NOWAIT);
		usleep(1000);
	}
	assert_null(watcher);
}

static void test_control_bad_requests(void **state)
{
	static const char *const rows[][2] = {
		{ "\x16\x03\x01", "400" },
		{ "GET /v1/info HTTP/3.0\r\n\r\n", "505" },
		{ "POST /v1/info HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413" },
		{ "POST /v1/things HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "501" },
	};
	static char big[9000];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_buf struct buf b = { 0 };
		scoped_fd int fd = dial();

		say(fd, rows[i][0]);
		assert_int_equal(read_until(fd, &b, NULL), -1);
		assert_memory_equal(buf_str(&b) + 9, rows[i][1], 3);
	}
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	memset(big, 'G', sizeof(big));
	assert_true(write(fd, big, sizeof(big)) > 8192);
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_true(b.len == 0 || strstr(buf_str(&b), "431"));
}

static void test_control_slow_loris(void **state)
{
	scoped_buf struct buf b = { 0 }, b2 = { 0 };
	scoped_fd int slow = dial(), silent = dial();

	say(slow, "GET /v1/info HT");
	assert_int_equal(read_until(slow, &b, NULL), -1);
	assert_non_null(strstr(buf_str(&b), "408"));
	assert_int_equal(read_until(silent, &b2, NULL), -1);
	assert_int_equal(b2.len, 0);
}

static void test_control_too_many_clients(void **state)
{
	int fds[65];
	scoped_buf struct buf b = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = dial();
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	}
	assert_int_equal(read_until(fds[64], &b, NULL), -1);	/* hung up on at once */
	say(fds[63], "GET /v1/info HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fds[63], &b, "43022"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

static void test_control_event_stream(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();

	say(fd, "GET /v1/events HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "\"status\":{}}\n\r\n"), 0);	/* at once */
	assert_non_null(strstr(buf_str(&b), "Transfer-Encoding: chunked"));
	events_notice(events, "hello");
	assert_int_equal(read_until(fd, &b, "hello"), 0);
	usleep(400 * 1000);	/* longer than the idle time: streams have none */
	uv_run(&loop.uv, UV_RUN_NOWAIT);
	events_running(events);
	assert_int_equal(read_until(fd, &b, "running"), 0);
}

static void test_control_event_reader_that_sleeps(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	static char text[1500];

	say(fd, "GET /v1/events HTTP/1.1\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "status"), 0);
	memset(text, 'x', sizeof(text) - 1);
	for (int i = 0; i < 2000; i++) {	/* 3 MB, nobody reads */
		events_notice(events, text);
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	}
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_true(b.len < 2000 * 1500);
}

static void test_control_last_event_is_delivered(void **state)
{
	scoped_buf struct buf b = { 0 };
	scoped_fd int fd = dial();
	struct error err = ERROR_NONE;
	struct control_options o = { .socket = sock_path, .events = events, .paths = paths,
				     .n_paths = ARRAY_SIZE(paths) };

	say(fd, "GET /v1/events HTTP/1.0\r\n\r\n");
	assert_int_equal(read_until(fd, &b, "status"), 0);
	events_exiting(events, "the guest powered off");
	control_close(control, NULL, NULL);
	assert_int_equal(read_until(fd, &b, NULL), -1);
	assert_non_null(strstr(buf_str(&b), "the guest powered off"));
	assert_int_equal(control_new(&loop, &o, &control, &err), 0);	/* for teardown */
}

static int make_dir(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	sock_path = xasprintf("%s/ha.sock", dir);
	return 0;
}

static int remove_dir(void **state)
{
	free(sock_path);
	return path_remove_tree(dir, &(struct error){ 0 });
}

#define CONTROL_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CONTROL_TEST(test_control_info),
		CONTROL_TEST(test_control_bad_requests),
		CONTROL_TEST(test_control_changes),
		CONTROL_TEST(test_control_body_of_the_largest_size),
		CONTROL_TEST(test_control_body_that_does_not_come),
		CONTROL_TEST(test_control_answer_that_comes_later),
		CONTROL_TEST(test_control_nobody_waits_for_the_answer),
		CONTROL_TEST(test_control_stream_that_skips),
		CONTROL_TEST(test_control_stream_nobody_reads_ends),
		CONTROL_TEST(test_control_slow_loris),
		CONTROL_TEST(test_control_too_many_clients),
		CONTROL_TEST(test_control_event_stream),
		CONTROL_TEST(test_control_event_reader_that_sleeps),
		CONTROL_TEST(test_control_last_event_is_delivered),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
