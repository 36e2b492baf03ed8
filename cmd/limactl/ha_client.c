#include "cmd/limactl/ha_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"

enum {
	ANSWER_MS = 15 * 1000,		/* a loop that is busy for longer is broken */
	ANSWER_MAX_BYTES = 64 << 20,	/* 16,384 rows are about 8 MiB */
	READ_BYTES = 64 * 1024,
};

static int dial(const char *path, struct error *err)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(sa.sun_path))
		return error_set(err, -ENAMETOOLONG, "connect to %s: the path is too long for a socket",
				 path);
	strcpy(sa.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return error_sys(err, -errno, "connect to %s", path);
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return error_sys(err, -errno, "connect to %s", path);
	return steal_fd(&fd);
}

/* 0 when @fd is ready for @events. */
static int wait_for(int fd, short events, uint64_t deadline, struct error *err)
{
	struct pollfd p = { .fd = fd, .events = events };
	uint64_t now;

	for (;;) {
		if (interrupt_check(err) < 0)
			return err->code;
		now = clock_mono_ms();
		if (now >= deadline)
			return error_set(err, -ETIMEDOUT, "the host agent does not answer");
		/* short: an interrupt may come just before */
		if (poll(&p, 1, (int)MIN(deadline - now, (uint64_t)500)) > 0)
			return 0;
	}
}

static int send_all(int fd, const struct buf *b, uint64_t deadline, struct error *err)
{
	for (size_t done = 0; done < b->len;) {
		ssize_t n = send(fd, b->data + done, b->len - done, MSG_NOSIGNAL);

		if (n > 0)
			done += (size_t)n;
		else if (errno == EPIPE || errno == ECONNRESET)
			return 0;	/* an early answer says why */
		else if (errno != EAGAIN && errno != EINTR)
			return error_sys(err, -errno, "ask the host agent");
		else if (wait_for(fd, POLLOUT, deadline, err) < 0)
			return err->code;
	}
	return 0;
}

static int ask(int fd, const char *method, const char *path, const json_t *body, uint64_t deadline,
	       struct error *err)
{
	scoped_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	scoped_buf struct buf b = { 0 };

	buf_addf(&b, "%s %s HTTP/1.0\r\nHost: lima-hostagent\r\n", method, path);
	if (text)
		buf_addf(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(text));
	buf_addf(&b, "\r\n%s", text ? text : "");
	return send_all(fd, &b, deadline, err);
}

/* 1: more came; 0: nothing at the moment; -EPIPE: the end. */
static int receive(int fd, struct buf *in, struct error *err)
{
	ssize_t n;

	if (in->len > ANSWER_MAX_BYTES)
		return error_set(err, -EMSGSIZE, "the host agent answers with more than %d MiB",
				 ANSWER_MAX_BYTES >> 20);
	n = recv(fd, buf_reserve(in, READ_BYTES), READ_BYTES, MSG_DONTWAIT);
	if (n > 0) {
		in->len += (size_t)n;
		buf_add(in, "", 0);	/* ends as text does */
		return 1;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	return error_set(err, -EPIPE, "the host agent hung up");
}

/* Drops the head when it is whole: its status, or 0 for not yet. */
static int take_head(struct buf *in, struct error *err)
{
	const char *end = in->len ? memmem(in->data, in->len, "\r\n\r\n", 4) : NULL;
	int status = 0;

	if (!end)
		return 0;
	if (sscanf((char *)in->data, "HTTP/1.%*1[01] %3d", &status) != 1 || status < 200)
		return error_set(err, -EPROTO, "the host agent's answer is not HTTP");
	buf_consume(in, (size_t)(end + 4 - (char *)in->data));
	return status;
}

static int fail_with(int status, const json_t *answer, struct error *err)
{
	const char *text = json_string_value(json_object_get(answer, "error"));
	int code = status == 404 ? -ENOENT : status == 409 ? -EEXIST : status == 503 ? -EAGAIN : -EINVAL;

	if (!text)
		text = json_string_value(json_object_get(answer, "message"));
	return error_set(err, code, "%s", text ? text : "the host agent refuses and does not say why");
}

int ha_client_call_for(const char *socket, const char *method, const char *path,
		       const json_t *body, uint64_t ms, json_t **ret, struct error *err)
{
	uint64_t deadline = clock_mono_ms() + ms;
	scoped_fd int fd = dial(socket, err);
	scoped_buf struct buf in = { 0 };
	json_t *answer;
	int rc, status;

	if (fd < 0 || ask(fd, method, path, body, deadline, err) < 0)
		return err->code;
	while ((rc = receive(fd, &in, err)) >= 0)
		if (rc == 0 && wait_for(fd, POLLIN, deadline, err) < 0)
			return err->code;
	if (rc != -EPIPE)
		return rc;
	status = take_head(&in, err);
	if (status <= 0)
		return status ? status : error_set(err, -EPIPE, "the host agent hung up in its answer");
	answer = json_loadb((char *)in.data, in.len, JSON_DECODE_ANY, NULL);
	if (answer && status < 400) {
		*err = ERROR_NONE;	/* the end of the connection was none */
		*ret = answer;
		return 0;
	}
	if (status >= 400)
		fail_with(status, answer, err);
	else
		error_set(err, -EPROTO, "the host agent's answer is not JSON");
	json_decref(answer);
	return err->code;
}

int ha_client_call(const char *socket, const char *method, const char *path, const json_t *body,
		   json_t **ret, struct error *err)
{
	return ha_client_call_for(socket, method, path, body, ANSWER_MS, ret, err);
}

int ha_stream_open(const char *socket, const char *path, struct ha_stream *ret, struct error *err)
{
	uint64_t deadline = clock_mono_ms() + ANSWER_MS;
	scoped_ha_stream struct ha_stream s = { .fd = dial(socket, err) };
	int rc = 0, status;

	if (s.fd < 0 || ask(s.fd, "GET", path, NULL, deadline, err) < 0)
		return err->code;
	while ((status = take_head(&s.in, err)) == 0) {
		rc = receive(s.fd, &s.in, err);
		if (rc < 0 || (rc == 0 && wait_for(s.fd, POLLIN, deadline, err) < 0))
			return err->code;
	}
	if (status < 0)
		return status;
	if (status >= 400)
		return error_set(err, -ENOTSUP, "the host agent is of another version; restart the instance");
	*ret = s;
	s = (struct ha_stream){ .fd = -1 };
	return 0;
}

void ha_stream_close(struct ha_stream *s)
{
	scoped_close_fd(&s->fd);
	buf_done(&s->in);
}

int ha_stream_next(struct ha_stream *s, char **ret, struct error *err)
{
	for (;;) {
		const char *nl = s->in.len ? memchr(s->in.data, '\n', s->in.len) : NULL;
		int rc;

		if (nl) {
			size_t len = (size_t)(nl - (char *)s->in.data);

			*ret = xstrndup((char *)s->in.data, len);
			buf_consume(&s->in, len + 1);
			return 1;
		}
		rc = receive(s->fd, &s->in, err);
		if (rc <= 0)
			return rc;
	}
}
