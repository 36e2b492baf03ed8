#include <errno.h>
#include <setjmp.h>
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

#include "cmd/limactl/ha_client.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[] = "/tmp/ha-client-test.XXXXXX";
static char *sock_path;

/* A host agent that reads one request, answers @text and hangs up. */
static pid_t serve(const char *text)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), c;
	char request[4096];
	pid_t pid;

	strcpy(sa.sun_path, sock_path);
	unlink(sock_path);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 1), 0);
	pid = fork();
	if (pid == 0) {
		c = accept(fd, NULL, NULL);
		if (read(c, request, sizeof(request)) > 0)
			while (*text) {
				size_t n = strlen(text) > 7 ? 7 : strlen(text);	/* in pieces */

				if (write(c, text, n) < 0)
					break;
				text += n;
			}
		_exit(0);
	}
	close(fd);
	return pid;
}

static int ask(const char *answer, char **ret, struct error *err)
{
	pid_t pid = serve(answer);
	json_t *body = json_pack("{s:i}", "id", 7), *j = NULL;
	int rc = ha_client_call(sock_path, "POST", "/v1/x", body, &j, err);

	*ret = j ? json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
	json_decref(j);
	json_decref(body);
	waitpid(pid, NULL, 0);
	return rc;
}

static void test_ha_client_answers(void **state)
{
	static const struct {
		const char *answer;
		int code;
		const char *text;	/* the JSON, or the error */
	} rows[] = {
		{ "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 0, "[]" },
		{ "HTTP/1.1 201 Created\r\n\r\n{\"a\":1}", 0, "{\"a\":1}" },
		{ "HTTP/1.1 404 Not Found\r\n\r\n{\"error\":\"no rule 7\"}", -ENOENT, "no rule 7" },
		{ "HTTP/1.1 409 Conflict\r\n\r\n{\"message\":\"Lima's\"}", -EEXIST, "Lima's" },
		{ "HTTP/1.1 503 Busy\r\n\r\n{\"error\":\"starting\"}", -EAGAIN, "starting" },
		{ "HTTP/1.1 400 Bad\r\n\r\nhtml", -EINVAL, "the host agent refuses and does not say why" },
		{ "HTTP/1.1 200 OK\r\n\r\nhtml", -EPROTO, "the host agent's answer is not JSON" },
		{ "HTTP/1.1 200 OK\r\n", -EPIPE, "the host agent hung up in its answer" },
		{ "", -EPIPE, "the host agent hung up in its answer" },
		{ "SSH-2.0-OpenSSH\r\n\r\n", -EPROTO, "the host agent's answer is not HTTP" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *json = NULL;
		struct error err = ERROR_NONE;

		assert_int_equal(ask(rows[i].answer, &json, &err), rows[i].code);
		assert_string_equal(rows[i].code ? err.msg : json, rows[i].text);
	}
}

static void test_ha_client_nobody_listens(void **state)
{
	struct error err = ERROR_NONE;
	json_t *j = NULL;

	unlink(sock_path);
	assert_int_equal(ha_client_call(sock_path, "GET", "/v1/info", NULL, &j, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "connect to "));
	assert_null(j);
}

static void test_ha_client_stream(void **state)
{
	pid_t pid = serve("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"n\":1}\n\n{\"n\":2}\n{\"cut");
	scoped_ha_stream struct ha_stream s = { .fd = -1 };
	struct error err = ERROR_NONE;
	scoped_buf struct buf got = { 0 };
	int rc;

	assert_int_equal(ha_stream_open(sock_path, "/v1/x", &s, &err), 0);
	do {
		scoped_free char *line = NULL;

		rc = ha_stream_next(&s, &line, &err);
		if (rc > 0)
			buf_addf(&got, "%s|", line);
		else if (rc == 0)
			usleep(1000);
	} while (rc >= 0);
	assert_int_equal(rc, -EPIPE);
	assert_string_equal(buf_str(&got), "{\"n\":1}||{\"n\":2}|");
	waitpid(pid, NULL, 0);

	pid = serve("HTTP/1.1 404 Not Found\r\n\r\n{}");
	ha_stream_close(&s);
	assert_true(ha_stream_open(sock_path, "/v1/x", &s, &err) < 0);
	assert_non_null(strstr(err.msg, "restart the instance"));
	waitpid(pid, NULL, 0);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ha_client_answers),
		cmocka_unit_test(test_ha_client_nobody_listens),
		cmocka_unit_test(test_ha_client_stream),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
