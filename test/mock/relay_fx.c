#include "test/mock/relay_fx.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"

struct relay *relay_start(unsigned connections_max)
{
	struct relay_options opts = { .connections_max = connections_max };
	struct error err = ERROR_NONE;
	struct relay *r = NULL;

	assert_int_equal(relay_new(&opts, &r, &err), 0);
	return r;
}

struct server server_start(int family)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = { .sa.sa_family = (sa_family_t)family };
	socklen_t len = sizeof(a);
	struct server s = { .fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0) };

	if (family == AF_INET)
		a.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		a.in6.sin6_addr = in6addr_loopback;
	if (bind(s.fd, &a.sa, family == AF_INET ? sizeof(a.in) : sizeof(a.in6)) < 0) {
		close(s.fd);
		return (struct server){ .fd = -1 };	/* no IPv6 here */
	}
	assert_int_equal(listen(s.fd, 4096), 0);
	getsockname(s.fd, &a.sa, &len);
	s.port = family == AF_INET ? a.in.sin_port : a.in6.sin6_port;
	assert_int_equal(inet_pton(AF_INET6, family == AF_INET ? "::ffff:127.0.0.1" : "::1", s.ip),
			 1);
	return s;
}

struct server server_silent(int ret_fds[2])
{
	struct server s = server_start(AF_INET);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = s.port };

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(listen(s.fd, 0), 0);
	ret_fds[0] = s.fd;
	ret_fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(ret_fds[1], (struct sockaddr *)&a, sizeof(a)), 0);
	return s;
}

struct relay_hello hello_to(const struct server *s)
{
	struct relay_hello h = { .magic = htons(RELAY_MAGIC),
				 .version = RELAY_VERSION,
				 .proto = RELAY_TCP,
				 .port = s->port };

	memcpy(h.ip, s->ip, sizeof(h.ip));
	return h;
}

int host_connect(struct relay *r)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	relay_add(r, fds[1]);
	return fds[0];
}

void wait_fd(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
}

void send_all(int fd, const void *data, size_t len)
{
	for (const uint8_t *p = data; len;) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		assert_true(n > 0);
		p += n;
		len -= (size_t)n;
	}
}

ssize_t recv_upto(int fd, void *data, size_t len)
{
	size_t at = 0;

	while (at < len) {
		ssize_t n;

		wait_fd(fd, POLLIN);
		n = recv(fd, (uint8_t *)data + at, len - at, 0);
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	return (ssize_t)at;
}

/* --- the host's side: frames --------------------------------------------------- */

void host_say(int host, const void *data, size_t len)
{
	uint32_t head = htonl((uint32_t)len);

	send_all(host, &head, sizeof(head));
	send_all(host, data, len);
}

void host_end(int host)
{
	host_say(host, "", 0);
}

static uint32_t frame_left[1 << 14];	/* by descriptor */

ssize_t host_recv(int host, void *data, size_t len, uint32_t *ret_mark)
{
	uint32_t *left = &frame_left[host], head;
	size_t at = 0;
	ssize_t n;

	*ret_mark = 1;
	while (at < len) {
		if (*left == 0) {
			n = recv_upto(host, &head, sizeof(head));
			if (n <= 0)
				return n < 0 ? n : (ssize_t)at;
			assert_int_equal(n, sizeof(head));
			if (head == 0 || head == RELAY_FRAME_DONE) {
				*ret_mark = head;
				return (ssize_t)at;
			}
			*left = ntohl(head);
			assert_true(*left <= RELAY_FRAME_MAX);
		}
		n = recv_upto(host, (uint8_t *)data + at, MIN(len - at, (size_t)*left));
		assert_true(n > 0);
		at += (size_t)n;
		*left -= (uint32_t)n;
	}
	return (ssize_t)at;
}

void host_expect(int host, const char *text)
{
	char got[256] = "";
	uint32_t mark;

	assert_int_equal(host_recv(host, got, strlen(text), &mark), strlen(text));
	assert_string_equal(got, text);
}

void host_expect_mark(int host, uint32_t mark)
{
	uint32_t got;
	char byte;

	assert_int_equal(host_recv(host, &byte, 1, &got), 0);
	assert_int_equal(got, mark);
}

void expect(int fd, const char *text)
{
	char got[256] = "";

	assert_int_equal(recv_upto(fd, got, strlen(text)), strlen(text));
	assert_string_equal(got, text);
}

void expect_end(int fd)
{
	char byte;

	assert_int_equal(recv_upto(fd, &byte, 1), 0);
}

void expect_reply(int fd, uint32_t code)
{
	struct relay_reply reply;

	assert_int_equal(recv_upto(fd, &reply, sizeof(reply)), sizeof(reply));
	assert_int_equal(ntohs(reply.magic), RELAY_MAGIC);
	assert_int_equal(reply.reserved, 0);
	assert_int_equal(ntohl(reply.error), code);
}

int server_accept(const struct server *s)
{
	int fd;

	wait_fd(s->fd, POLLIN);
	fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

int connect_through(struct relay *r, const struct server *s, int *ret_host)
{
	struct relay_hello h = hello_to(s);

	*ret_host = host_connect(r);
	send_all(*ret_host, &h, sizeof(h));
	return server_accept(s);
}

void relay_stop(struct relay *r)
{
	wait_until(relay_get_stats(r).connections == 0);
	relay_free(r);
}
