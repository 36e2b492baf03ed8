/* relay_fx.h - for the relay's tests: its host's side and servers
 *
 * Unix sockets stand in for the vsock: all but what belongs to the vsock itself
 * (test/e2e has that).
 */
#pragma once

#include <poll.h>
#include <stdint.h>
#include <sys/types.h>

#include "guestagent/relay.h"
#include "lib/base/clock.h"
#include "proto/relay.h"

enum { DEADLINE_MS = 20000, BULK = 4 << 20 };

struct server {
	int fd;
	uint8_t ip[16];
	uint16_t port;		/* network byte order */
};

#define wait_until(cond)                                                    \
	do {                                                                \
		uint64_t until_ms = clock_mono_ms() + DEADLINE_MS;          \
		while (!(cond)) {                                           \
			if (clock_mono_ms() > until_ms)                     \
				fail_msg("never came true: %s", #cond);     \
			poll(NULL, 0, 1);                                   \
		}                                                           \
	} while (0)

struct relay *relay_start(unsigned connections_max);
/* A TCP server on loopback, IPv4 or IPv6; told to the relay as that address. */
struct server server_start(int family);
/* One that never answers, for its queue is full: *ret_fds keep it so. */
struct server server_silent(int ret_fds[2]);
struct relay_hello hello_to(const struct server *s);
int host_connect(struct relay *r);
void wait_fd(int fd, short events);
void send_all(int fd, const void *data, size_t len);
/* As many as there are until the end of file or @len; -errno. */
ssize_t recv_upto(int fd, void *data, size_t len);
/* The host's side: frames. */
void host_say(int host, const void *data, size_t len);
void host_end(int host);
/* Payload up to @len, or to a mark, which is 1 if there was none; -errno. */
ssize_t host_recv(int host, void *data, size_t len, uint32_t *ret_mark);
void host_expect(int host, const char *text);
void host_expect_mark(int host, uint32_t mark);
void expect(int fd, const char *text);
void expect_end(int fd);
void expect_reply(int fd, uint32_t code);
int server_accept(const struct server *s);
/* One relayed connection: *ret_host and the server's socket. */
int connect_through(struct relay *r, const struct server *s, int *ret_host);
void relay_stop(struct relay *r);
