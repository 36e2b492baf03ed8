/* What the host can send to the guest agent's relay, and servers do meanwhile: hellos,
 * frames, any bytes in any pieces, ends and resets, on several connections at once.
 * Unix sockets stand in for the vsock, given to the relay or to its listener; the servers
 * are TCP on loopback, and nothing else can be reached (connect() below). The clock is
 * ours. An input is a list of steps.
 *
 * Bytes are numbered, from 0 in each direction of a client: what arrives is checked. */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "guestagent/relay_impl.h"
#include "lib/base/mem.h"
#include "test/fuzz/fuzz.h"

enum {
	HOSTS = 3, SERVERS = 4,
	CONNECTIONS_MAX = 2,	/* one more closes an idle one */
	OUT_MAX = 1 << 18, SOCKET_BUFFER = 8192,
	/* ports of a hello's, which connect() sees to */
	PORT_SERVER = 1, PORT_FULL = 2,	/* whose backlog is full: nobody answers */
};

struct host {
	int fd;
	uint8_t *out;		/* to be sent; steps say in what pieces */
	size_t out_len;
	uint8_t next;		/* number of the next byte to the server */
	bool raw;		/* says what is no hello and no frame */
	/* what comes back */
	bool replied, ended;	/* of this client */
	uint32_t left;
	uint8_t head[8], have, expected;
};

struct server {
	int fd;
	uint8_t next, expected;
};

static struct relay *relay;
static struct host hosts[HOSTS];
static struct server servers[SERVERS];
static unsigned next_server;
static int listeners[2];	/* a server, and one that accepts nobody */
static struct sockaddr_in addresses[2];
static int slow_fd = -1;	/* the relay's last one to PORT_FULL; by now something else, perhaps */
static struct sockaddr_un door = { .sun_family = AF_UNIX };	/* of the relay's listener */
static unsigned more;	/* where else a connection may go: dial_more() */
static uint64_t now_ms;
static bool in_disorder;	/* a host said something raw: bytes are anybody's */
static uint8_t block[1 << 16], numbers[sizeof(block) + 256];	/* 0, 1, … 255, 0, … */

/* --- instead of the kernel's (-Wl,--wrap) ----------------------------------------- */

int __wrap_connect(int fd, const struct sockaddr *sa, socklen_t len);
int __real_connect(int fd, const struct sockaddr *sa, socklen_t len);
int __wrap_clock_gettime(clockid_t id, struct timespec *ret);
int __real_clock_gettime(clockid_t id, struct timespec *ret);

int __wrap_connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
	unsigned port = ntohs(in->sin_port);	/* at the same place in sockaddr_in6 */

	if (port != PORT_SERVER && port != PORT_FULL) {
		errno = port % 2 ? ECONNREFUSED : ENETUNREACH;
		return -1;
	}
	if (sa->sa_family != AF_INET) {		/* ::1, and then 127.0.0.1 */
		errno = EADDRNOTAVAIL;
		return -1;
	}
	if (port == PORT_FULL)
		slow_fd = fd;
	sa = (const struct sockaddr *)&addresses[port - PORT_SERVER];
	return __real_connect(fd, sa, sizeof(addresses[0]));
}

int __wrap_clock_gettime(clockid_t id, struct timespec *ret)
{
	if (id != CLOCK_MONOTONIC_COARSE)
		return __real_clock_gettime(id, ret);
	*ret = (struct timespec){ (time_t)(now_ms / 1000), (long)(now_ms % 1000) * 1000000 };
	return 0;
}

/* --- the host ------------------------------------------------------------------- */

static void put(struct host *h, const void *bytes, size_t len)
{
	if (h->out_len + len > OUT_MAX)
		return;
	memcpy(h->out + h->out_len, bytes, len);
	h->out_len += len;
}

/* At most sizeof(block) bytes; *@next: the number of the first. */
static void check_numbers(uint8_t *next, const uint8_t *bytes, size_t len)
{
	assert(memcmp(bytes, numbers + *next, len) == 0);
	*next = (uint8_t)(*next + len);
}

static void close_host(struct host *h)
{
	if (h->fd >= 0)
		close(h->fd);
	h->fd = -1;
	h->out_len = 0;
}

static void open_host(struct host *h)
{
	int pair[2], size = SOCKET_BUFFER;

	close_host(h);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	*h = (struct host){ .fd = pair[0], .out = h->out };
	relay_add(relay, pair[1]);
}

static void come_in(struct host *h)
{
	close_host(h);
	*h = (struct host){ .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
			    .out = h->out };
	if (__real_connect(h->fd, (struct sockaddr *)&door, sizeof(door)) < 0)
		close_host(h);		/* a full backlog */
}

static void send_some(struct host *h, size_t len)
{
	ssize_t n;

	len = MIN(len, h->out_len);
	if (h->fd < 0 || len == 0)
		return;
	n = send(h->fd, h->out, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n <= 0)
		return;
	h->out_len -= (size_t)n;
	memmove(h->out, h->out + n, h->out_len);
}

static void hear_reply(struct host *h)
{
	struct relay_reply reply;

	memcpy(&reply, h->head, sizeof(reply));
	assert(ntohs(reply.magic) == RELAY_MAGIC && reply.reserved == 0);
	h->replied = reply.error == 0;
	h->ended = false;
	h->expected = 0;
}

static void hear_head(struct host *h)
{
	uint32_t len;

	memcpy(&len, h->head, sizeof(len));
	len = ntohl(len);
	assert(len == RELAY_FRAME_DONE || (len <= RELAY_FRAME_MAX && !h->ended));
	h->ended |= len == 0 || len == RELAY_FRAME_DONE;
	if (len == RELAY_FRAME_DONE)
		h->replied = false;	/* that of the next client */
	else
		h->left = len;
}

/* All that the relay says is a reply or a frame, in order. */
static void hear(struct host *h, const uint8_t *bytes, size_t len)
{
	for (size_t i = 0, n; i < len; i += n) {
		n = h->left ? MIN(len - i, (size_t)h->left) : 1;
		if (h->left) {
			check_numbers(&h->expected, bytes + i, n);
			h->left -= (uint32_t)n;
			continue;
		}
		h->head[h->have++] = bytes[i];
		if (h->have < (h->replied ? RELAY_FRAME_HEAD : sizeof(struct relay_reply)))
			continue;
		h->have = 0;
		if (h->replied)
			hear_head(h);
		else
			hear_reply(h);
	}
}

static void host_reads(struct host *h, size_t len)
{
	ssize_t n = h->fd < 0 ? -1 : recv(h->fd, block, MIN(len, sizeof(block)), MSG_DONTWAIT);

	if (n > 0)
		hear(h, block, (size_t)n);
	else if (n == 0 || (n < 0 && errno == ECONNRESET))
		close_host(h);
}

/* --- servers -------------------------------------------------------------------- */

static void close_server(struct server *s, bool reset)
{
	struct linger at_once = { .l_onoff = 1 };

	if (s->fd >= 0 && reset)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static void accept_one(void)
{
	int fd = accept4(listeners[0], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct server *s = &servers[next_server % SERVERS];

	if (fd < 0)
		return;
	next_server++;
	close_server(s, true);
	*s = (struct server){ .fd = fd };
}

static void server_reads(struct server *s, size_t len)
{
	ssize_t n = recv(s->fd, block, MIN(len, sizeof(block)), MSG_DONTWAIT);

	if (n > 0 && !in_disorder)
		check_numbers(&s->expected, block, (size_t)n);
}

static void server_says(struct server *s, size_t len)
{
	ssize_t n = send(s->fd, numbers + s->next, len, MSG_NOSIGNAL | MSG_DONTWAIT);

	s->next = (uint8_t)(s->next + MAX(n, (ssize_t)0));
}

/* --- steps ---------------------------------------------------------------------- */

static struct host *take_host(struct fuzz_input *in)
{
	return &hosts[fuzz_take(in) % HOSTS];
}

static void step_hello(struct fuzz_input *in)
{
	static const uint8_t ips[][16] = {
		{ [10] = 0xff, 0xff, 127, 0, 0, 1 }, { [10] = 0xff, 0xff }, { [15] = 1 }, { 0 }, { 0xfe, 0x80 },
	};
	struct host *h = take_host(in);
	struct relay_hello hello = { .magic = htons(RELAY_MAGIC), .version = RELAY_VERSION,
				     .proto = RELAY_TCP };
	unsigned odd = fuzz_take(in);

	memcpy(hello.ip, ips[(odd >> 2) % ARRAY_SIZE(ips)], sizeof(hello.ip));
	hello.port = htons((uint16_t)(1 + (odd & 3)));
	if (odd == 255) {	/* in mid-stream it may become a frame's head, its rest bytes */
		((uint8_t *)&hello)[fuzz_take(in) % 8] ^= fuzz_take(in);
		in_disorder = true;
	}
	h->next = 0;
	put(h, &hello, sizeof(hello));
}

static void step_frame(struct fuzz_input *in)
{
	struct host *h = take_host(in);
	unsigned bits = fuzz_take(in);
	size_t len = fuzz_take(in);

	len = bits & 1 ? len * 250 : len;
	if (h->out_len + len + 2 * RELAY_FRAME_HEAD > OUT_MAX)
		return;
	put(h, (uint32_t[]){ htonl((uint32_t)len) }, RELAY_FRAME_HEAD);
	put(h, numbers + h->next, len);
	h->next = (uint8_t)(h->next + len);
	if (bits & 2)
		put(h, (uint32_t[]){ 0 }, RELAY_FRAME_HEAD);
}

static void step_raw(struct fuzz_input *in)
{
	struct host *h = take_host(in);
	const uint8_t *bytes;
	size_t len = fuzz_take_bytes(in, 64, &bytes);

	in_disorder = true;
	put(h, bytes, len);
}

static void step_send(struct fuzz_input *in)
{
	struct host *h = take_host(in);
	size_t len = fuzz_take(in);

	send_some(h, len < 128 ? len : OUT_MAX);
}

static void step_host(struct fuzz_input *in)
{
	struct host *h = take_host(in);
	unsigned what = fuzz_take(in) % 8;

	if (what == 0)
		open_host(h);
	else if (what == 1)
		close_host(h);
	else if (what == 2 && h->fd >= 0)
		shutdown(h->fd, SHUT_WR);
	else if (what == 7)
		come_in(h);
	else
		host_reads(h, what < 4 ? sizeof(block) : fuzz_take(in));
}

static void step_server(struct fuzz_input *in)
{
	struct server *s = &servers[fuzz_take(in) % SERVERS];
	unsigned what = fuzz_take(in) % 8;
	size_t len = fuzz_take(in);

	if (what == 0 || s->fd < 0)
		accept_one();
	else if (what == 1)
		close_server(s, len & 1);
	else if (what == 2)
		shutdown(s->fd, SHUT_WR);
	else if (what < 5)
		server_reads(s, len & 1 ? sizeof(block) : len);
	else
		server_says(s, what == 5 ? len * 256 : len);
}

/* A connect() that took time succeeds, or fails. */
static void step_connected(struct fuzz_input *in)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
	socklen_t len = sizeof(struct tcp_info), size = sizeof(int);
	struct tcp_info info;
	int code;

	if (getsockopt(slow_fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0 ||
	    info.tcpi_state != TCP_SYN_SENT || __real_connect(slow_fd, &nowhere, sizeof(nowhere)) < 0)
		return;
	if (fuzz_take(in) & 1)
		return;		/* ECONNRESET, Linux says */
	getsockopt(slow_fd, SOL_SOCKET, SO_ERROR, &code, &size);
	if (__real_connect(slow_fd, (struct sockaddr *)&addresses[0], sizeof(addresses[0])) < 0)
		return;
}

static void step_turn(struct fuzz_input *in)
{
	for (unsigned n = 1 + (fuzz_take(in) & 7); n > 0; n--)
		relay_turn(relay, 0);
}

static void step_time(struct fuzz_input *in)
{
	static const unsigned steps[] = { 1, RELAY_REPLY_MS, RELAY_QUIET_MS, DIAL_LAST_MS, DIAL_NEXT_MS };

	now_ms += steps[fuzz_take(in) % ARRAY_SIZE(steps)];
	relay_turn(relay, 0);
}

static void step_more(struct fuzz_input *in)
{
	more = fuzz_take(in);
}

static void (*const steps[])(struct fuzz_input *in) = { step_hello, step_frame,  step_raw,  step_send,
							step_host,  step_server, step_turn, step_time,
							step_connected, step_more };

/* --- an input ------------------------------------------------------------------- */

/* Up to two, as ports_nat_dial() adds them: in front or behind, and it may change. */
static void dial_more(void *arg, struct dial *d)
{
	for (unsigned bits = more; bits & 8 && d->len < DIAL_MAX; bits >>= 4) {
		unsigned at = bits & 4 ? 0 : d->len;

		memmove(&d->addrs[at + 1], &d->addrs[at], (d->len - at) * sizeof(d->addrs[0]));
		d->addrs[at].in = (struct sockaddr_in){ .sin_family = AF_INET,
							.sin_port = htons((uint16_t)(1 + (bits & 3))) };
		d->len++;
	}
}

static int listen_at_door(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&door, sizeof(door)) < 0 || listen(fd, HOSTS) < 0)
		abort();
	return fd;
}

static void begin(void)
{
	struct relay_options opts = { .connections_max = CONNECTIONS_MAX, .dial_more = dial_more };
	struct error err = ERROR_NONE;

	now_ms = 1000;
	in_disorder = false;
	next_server = more = 0;
	if (relay_open(&opts, &relay, &err) < 0)
		abort();
	relay_listen(relay, listen_at_door());
	for (unsigned i = 0; i < HOSTS; i++)
		open_host(&hosts[i]);
	relay_turn(relay, 0);
}

/* Without anything new it comes to rest. */
static void come_to_rest(void)
{
	unsigned turns = 0;

	while (relay_turn(relay, 0))
		assert(turns++ < 10000);
}

static void end(void)
{
	come_to_rest();
	for (unsigned i = 0; i < HOSTS; i++)
		close_host(&hosts[i]);
	come_to_rest();
	for (unsigned i = 0; i < SERVERS; i++)
		close_server(&servers[i], true);
	for (unsigned i = 0; i < DIAL_MAX; i++) {	/* each of them may be silent */
		now_ms += DIAL_LAST_MS + RELAY_QUIET_MS;
		come_to_rest();
	}
	assert(relay_get_stats(relay).connections == 0);
	relay_release(relay);
	for (int fd; (fd = accept4(listeners[0], NULL, NULL, SOCK_CLOEXEC)) >= 0;)
		close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const struct fuzz_steps all = { begin, end, steps, ARRAY_SIZE(steps) };

	return fuzz_run_steps(&all, data, len);
}

static void add_seeds(void)
{
	enum { HELLO, FRAME, RAW, SEND, HOST, SERVER, TURN, TIME, CONNECTED, MORE };	/* as in steps */
	static const uint8_t seeds[][96] = {
		/* a question, an answer, both ends, and the next client */
		{ HELLO, 0, 0, FRAME, 0, 0, 8, SEND, 0, 255, TURN, 2, SERVER, 0, 0, 0, SERVER, 0, 3, 1,
		  SERVER, 0, 6, 9, TURN, 2, HOST, 0, 3, FRAME, 0, 2, 4, SEND, 0, 255, TURN, 1, SERVER, 0, 3, 1,
		  SERVER, 0, 2, 0, TURN, 3, HOST, 0, 3, HELLO, 0, 0, SEND, 0, 255, TURN, 1, TIME, 1, TURN, 1,
		  SERVER, 1, 0, 0, SERVER, 1, 7, 3, TURN, 1, HOST, 0, 3 },
		/* bulk both ways, nobody reads; then both do */
		{ HELLO, 0, 0, FRAME, 0, 1, 255, FRAME, 0, 1, 255, FRAME, 0, 3, 255, SEND, 0, 255, TURN, 2,
		  SEND, 0, 255, TURN, 2, SEND, 0, 255, SERVER, 0, 0, 0, SERVER, 0, 5, 255, SERVER, 0, 5, 255,
		  TURN, 7, SERVER, 0, 3, 1, SERVER, 0, 3, 1, HOST, 0, 3, HOST, 0, 3, TURN, 7, SERVER, 0, 3, 1 },
		/* a hello in pieces, frames a byte at a time */
		{ HELLO, 1, 0, FRAME, 1, 2, 3, SEND, 1, 7, TURN, 0, SEND, 1, 17, TURN, 0, SEND, 1, 1, TURN, 0,
		  SEND, 1, 4, TURN, 0, SEND, 1, 1, TURN, 1, SEND, 1, 1, TURN, 1, SEND, 1, 255, TURN, 1,
		  SERVER, 0, 0, 0, SERVER, 0, 3, 1, SERVER, 0, 1, 0, TURN, 3, HOST, 1, 3 },
		/* refused; unreachable; nobody answers for 10 s; an odd hello */
		{ HELLO, 0, 2, SEND, 0, 255, HELLO, 1, 1, SEND, 1, 255, HELLO, 2, 255, 3, 1, SEND, 2, 255,
		  TURN, 2, TIME, 3, TURN, 1, HOST, 0, 3, HOST, 1, 3, HOST, 2, 3, HOST, 0, 0, HELLO, 0, 3,
		  SEND, 0, 255, TURN, 2, HOST, 0, 3 },
		/* the server resets while it has our bytes, and after its own */
		{ HELLO, 0, 0, FRAME, 0, 1, 255, SEND, 0, 255, TURN, 1, SERVER, 0, 0, 0, SERVER, 0, 5, 40,
		  SERVER, 0, 1, 1, TURN, 3, HOST, 0, 3, TURN, 3, HOST, 0, 3 },
		/* the host goes: while connecting, and with frames under way */
		{ HELLO, 0, 1, FRAME, 0, 0, 9, SEND, 0, 255, TURN, 1, HOST, 0, 1, TURN, 1, HELLO, 1, 0, FRAME, 1, 1, 99,
		  SEND, 1, 255, TURN, 1, HOST, 1, 2, TURN, 2, SERVER, 0, 0, 0, SERVER, 0, 3, 1 },
		/* a slow connect, with bytes behind the hello and without; one that fails */
		{ HELLO, 0, 1, SEND, 0, 255, TURN, 1, CONNECTED, 0, TURN, 1, SERVER, 0, 0, 0, SERVER, 0, 6, 9, TURN, 1,
		  HOST, 0, 3, HELLO, 1, 1, FRAME, 1, 0, 9, SEND, 1, 255, TURN, 1, CONNECTED, 0, TURN, 1, SERVER, 1, 0, 0,
		  TURN, 1, SERVER, 1, 3, 1, HOST, 0, 1, TURN, 1, HOST, 0, 0, HELLO, 0, 1, SEND, 0, 255, TURN, 1,
		  CONNECTED, 1, TURN, 1, HOST, 0, 3 },
		/* more than there may be */
		{ HOST, 0, 0, HOST, 1, 0, HOST, 2, 0, HOST, 0, 0, TURN, 1, HOST, 1, 0, TURN, 1, TIME, 2, TIME, 2 },
		/* through the listener, more than there may be, when the others are idle for long */
		{ TIME, 2, HOST, 0, 7, TURN, 1, HELLO, 0, 0, FRAME, 0, 0, 8, SEND, 0, 255, TURN, 2, SERVER, 0, 0, 0,
		  SERVER, 0, 3, 1, HOST, 1, 7, HOST, 2, 7, TURN, 1, HOST, 0, 3 },
		/* one that is silent in front, one that refuses; then behind */
		{ MORE, 13, HELLO, 0, 0, FRAME, 0, 0, 9, SEND, 0, 255, TURN, 1, TIME, 4, TURN, 1, SERVER, 0, 0, 0,
		  SERVER, 0, 3, 1, MORE, 204, HELLO, 1, 2, SEND, 1, 255, TURN, 1, MORE, 153, HELLO, 2, 0, SEND, 2, 255,
		  TURN, 1, TIME, 4, TIME, 3, HOST, 1, 3, HOST, 2, 3 },
		/* a length that is none */
		{ HELLO, 0, 0, RAW, 0, 4, 1, 0, 0, 1, SEND, 0, 255, TURN, 2 },
		/* the server ends first, and resets while the client is still there */
		{ HELLO, 0, 12, SEND, 0, 255, TURN, 1, SERVER, 0, 0, 0, SERVER, 0, 7, 5, SERVER, 0, 2, 0, TURN, 2,
		  HOST, 0, 3, SERVER, 0, 1, 1, TURN, 2, FRAME, 0, 0, 5, SEND, 0, 255, TURN, 2, HOST, 0, 3 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		fuzz_seed_add_steps(seeds[i], sizeof(seeds[i]));
}

static void start_listener(unsigned i, int backlog)
{
	socklen_t len = sizeof(addresses[0]);
	int size = SOCKET_BUFFER;

	listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	addresses[i] = (struct sockaddr_in){ .sin_family = AF_INET,
					     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	setsockopt(listeners[i], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (bind(listeners[i], (struct sockaddr *)&addresses[i], len) < 0 ||
	    listen(listeners[i], backlog) < 0 ||
	    getsockname(listeners[i], (struct sockaddr *)&addresses[i], &len) < 0)
		abort();
}

void fuzz_seeds(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	snprintf(door.sun_path + 1, sizeof(door.sun_path) - 1, "lima-fuzz-relay-%d", (int)getpid());
	add_seeds();
	for (size_t i = 0; i < sizeof(numbers); i++)
		numbers[i] = (uint8_t)i;
	start_listener(0, 64);
	start_listener(1, 0);
	/* one fits in */
	if (__real_connect(fd, (struct sockaddr *)&addresses[1], sizeof(addresses[1])) < 0)
		abort();
	for (unsigned i = 0; i < HOSTS; i++)
		hosts[i] = (struct host){ .fd = -1, .out = xmalloc(OUT_MAX) };
	for (unsigned i = 0; i < SERVERS; i++)
		servers[i].fd = -1;
}
