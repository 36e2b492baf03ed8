#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestagent/dial.h"
#include "guestagent/relay_host.h"
#include "guestagent/relay_impl.h"
#include "lib/base/mem.h"

static struct relay_end *other_end(struct relay_conn *c, const struct relay_end *e)
{
	return e == &c->ends[RELAY_HOST] ? &c->ends[RELAY_SERVER] : &c->ends[RELAY_HOST];
}

static enum relay_side side_of(const struct relay_conn *c, const struct relay_end *e)
{
	return e == &c->ends[RELAY_HOST] ? RELAY_HOST : RELAY_SERVER;
}

static bool would_block(int code)
{
	return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

/* --- ends of a connection -------------------------------------------------- */

static void end_close(struct relay_end *e)
{
	if (e->fd >= 0)
		close(e->fd);
	e->fd = -1;
	free(steal_ptr(&e->pending));
	e->pending_len = 0;
}

static void close_both(struct relay_conn *c)
{
	if (c->state == RELAY_DEAD)
		return;
	c->state = RELAY_DEAD;
	end_close(&c->ends[RELAY_SERVER]);
	relay_host_let_go(c);
	/* Of a vsock that was not shut down before, the host takes this for a reset:
	 * the kernel sends SHUTDOWN with both flags (lib/virtio/vsock.h). */
	end_close(&c->ends[RELAY_HOST]);
	relay_bury(c);
}

void relay_conn_reset(struct relay_conn *c)
{
	struct linger at_once = { .l_onoff = 1 };	/* close() sends RST: tcp(7), socket(7) */

	if (c->ends[RELAY_SERVER].fd >= 0)
		setsockopt(c->ends[RELAY_SERVER].fd, SOL_SOCKET, SO_LINGER, &at_once,
			   sizeof(at_once));
	close_both(c);
}

/* --- writing ---------------------------------------------------------------- */

static void on_write_failed(struct relay_conn *c, struct relay_end *to)
{
	if (to == &c->ends[RELAY_HOST]) {
		relay_conn_reset(c);
		return;
	}
	/* What the server sent before its reset is still in our socket. */
	free(steal_ptr(&to->pending));
	to->pending_len = 0;
	to->readable = to->hung_up = true;
	c->server_broken = true;
}

/* As send(); a vsock wants its packet of up to 64 KiB in one piece of memory, and
 * fails where the guest's memory has none of that size (Linux 6.1,
 * virtio_transport_alloc_pkt()). Single pages there are. */
static ssize_t send_now(int fd, const uint8_t *data, size_t len)
{
	enum { PAGE = 4096 };
	ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	size_t sent = 0;

	if (n >= 0 || errno != ENOMEM)
		return n;
	while (sent < len) {
		n = send(fd, data + sent, MIN(len - sent, (size_t)PAGE), MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0)
			return sent && would_block(errno) ? (ssize_t)sent : n;
		sent += (size_t)n;
	}
	return (ssize_t)sent;
}

/* Bytes written, or -1: it failed and was dealt with. */
static ssize_t end_write(struct relay_conn *c, struct relay_end *to, const uint8_t *data, size_t len)
{
	ssize_t n = send_now(to->fd, data, len);

	if (n < 0 && !would_block(errno)) {
		on_write_failed(c, to);
		return -1;
	}
	n = MAX(n, (ssize_t)0);
	if ((size_t)n < len) {
		to->writable = false;
		relay_watch_room(c, side_of(c, to));
	}
	return n;
}

static void keep(struct relay_end *to, const uint8_t *data, size_t len)
{
	assert(!to->pending);
	to->pending = xmalloc(len);
	memcpy(to->pending, data, len);
	to->pending_at = 0;
	to->pending_len = (uint32_t)len;
}

static void end_deliver(struct relay_conn *c, struct relay_end *to, const uint8_t *data, size_t len)
{
	ssize_t n = end_write(c, to, data, len);

	if (n >= 0 && (size_t)n < len)
		keep(to, data + n, len - (size_t)n);
}

/* True: nothing is pending. */
static bool end_flush(struct relay_conn *c, struct relay_end *to)
{
	ssize_t n;

	if (!to->pending)
		return true;
	if (!to->writable)
		return false;
	n = end_write(c, to, to->pending + to->pending_at, to->pending_len);
	if (n < 0 || c->state == RELAY_DEAD)
		return false;
	to->pending_at += (uint32_t)n;
	to->pending_len -= (uint32_t)n;
	if (to->pending_len)
		return false;
	free(steal_ptr(&to->pending));
	return true;
}

static struct relay_reply make_reply(int code)
{
	return (struct relay_reply){ .magic = htons(RELAY_MAGIC), .error = htonl((uint32_t)code) };
}

/* "Connected", without the server having said anything. */
static void send_reply(struct relay_conn *c)
{
	struct relay_reply reply = make_reply(0);

	if (!c->reply_due)
		return;
	c->reply_due = false;
	relay_wait_for(c, RELAY_WAIT_NONE);
	end_deliver(c, &c->ends[RELAY_HOST], (const uint8_t *)&reply, sizeof(reply));
}

/* What was read into the thread's buffer. */
static void pass_to_host(struct relay_conn *c, struct relay_buffer *b, size_t len)
{
	struct relay_end *to = &c->ends[RELAY_HOST];

	if (c->reply_due) {
		c->reply_due = false;
		relay_wait_for(c, RELAY_WAIT_NONE);
		b->reply = make_reply(0);
		end_deliver(c, to, (const uint8_t *)&b->reply, sizeof(b->reply) + len);
	} else {
		end_deliver(c, to, b->bytes, len);
	}
}

/* --- the way to the server -------------------------------------------------- */

static void refuse(struct relay_conn *c, int code)
{
	struct relay_reply reply = make_reply(code);

	/* 8 bytes, the first ones: there is room, or the host does not want them. */
	(void)!send(c->ends[RELAY_HOST].fd, &reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT);
	close_both(c);
}

static void on_connected(struct relay_conn *c)
{
	c->state = RELAY_OPEN;
	c->reply_due = true;
	c->ends[RELAY_SERVER].writable = true;
	relay_wait_for(c, RELAY_WAIT_REPLY);
	relay_count_relayed(c->relay);
}

/* @speaks_first: bytes of the client's follow at once. The last step of the handshake
 * is left to them then (tcp(7), TCP_QUICKACK; tcp_rcv_synsent_state_process()): one
 * packet less, and the server finds them when it accepts. */
static int start_socket(const union dial_addr *to, unsigned others, bool speaks_first)
{
	socklen_t len = to->sa.sa_family == AF_INET ? sizeof(to->in) : sizeof(to->in6);
	scoped_fd int fd = socket(to->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int on = 1, off = 0;

	if (fd < 0)
		return -errno;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (speaks_first)
		setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off));
	dial_set_buffers(fd, others);
	if (connect(fd, &to->sa, len) < 0 && errno != EINPROGRESS)
		return -errno;
	return steal_fd(&fd);
}

/* What came of connect(): 0, -EINPROGRESS, or why not. Over loopback it is mostly
 * done when it returns, though it says EINPROGRESS; then a write succeeds. */
static int try_server(struct relay_conn *c, const uint8_t *data, size_t len, size_t *ret_written)
{
	int fd = c->ends[RELAY_SERVER].fd, code = 0;
	struct sockaddr_storage peer;
	socklen_t size = sizeof(peer);
	ssize_t n;

	if (len > 0) {
		n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		*ret_written = (size_t)MAX(n, (ssize_t)0);
		return n >= 0 ? 0 : would_block(errno) ? -EINPROGRESS : -errno;
	}
	if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0)
		return 0;
	size = sizeof(code);
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size);
	return code ? -code : -EINPROGRESS;
}

/* The next address; -errno when it fails at once. */
static int dial_next(struct relay_conn *c, const struct dial *to, const uint8_t *data, size_t len,
		     size_t *ret_written)
{
	struct relay_end *server = &c->ends[RELAY_SERVER];
	int fd = start_socket(&to->addrs[c->dialled++], relay_count_busy(c->relay),
			      len > 0), rc;

	if (fd < 0)
		return fd;
	server->fd = fd;
	rc = try_server(c, data, len, ret_written);
	if (rc == 0 || rc == -EINPROGRESS) {
		int watched = relay_watch(c, RELAY_SERVER, rc != 0);

		if (watched == 0)
			return rc;
		rc = watched;
	}
	close(fd);
	server->fd = -1;
	return rc;
}

/* Goes through the addresses that are left. @data: the client's first bytes, which
 * are kept as the server's pending ones where they could not be written. */
static void dial(struct relay_conn *c, int last, const uint8_t *data, size_t len)
{
	struct relay_end *server = &c->ends[RELAY_SERVER];
	struct dial to;
	size_t written = 0;

	dial_from_bytes(c->hello.ip, ntohs(c->hello.port), &to);
	for (bool more = true;;) {
		if (c->dialled >= to.len && more) {
			relay_dial_more(c->relay, &to);
			more = false;
		}
		if (c->dialled >= to.len)
			break;
		last = dial_next(c, &to, data, len, &written);
		if (last != 0 && last != -EINPROGRESS)
			continue;
		if (written < len && !server->pending)
			keep(server, data + written, len - written);
		if (last == 0) {
			on_connected(c);
		} else {
			c->state = RELAY_CONNECTING;
			server->writable = false;
			relay_wait_for(c, RELAY_WAIT_CONNECT);
		}
		return;
	}
	refuse(c, -last);
}

/* Something happened to a connect() under way. */
static void check_connect(struct relay_conn *c)
{
	struct relay_end *server = &c->ends[RELAY_SERVER];
	size_t none = 0;
	int rc = try_server(c, NULL, 0, &none);

	if (rc == -EINPROGRESS)
		return;
	if (rc == 0) {
		on_connected(c);
		return;
	}
	close(server->fd);
	server->fd = -1;
	dial(c, rc, NULL, 0);
}

/* --- hello ------------------------------------------------------------------ */

static bool hello_is_good(const struct relay_hello *h)
{
	return ntohs(h->magic) == RELAY_MAGIC && h->version == 1 && h->proto == RELAY_TCP &&
	       h->port != 0 && h->reserved == 0;
}

/* Hello and the client's first bytes in one read. */
static void read_hello(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];
	size_t missing = sizeof(c->hello) - c->hello_len, used;
	uint8_t *data;
	bool all;
	ssize_t n = relay_host_recv(c, &data, &all);

	if (n < 0 && would_block(errno)) {
		host->readable = false;
		return;
	}
	if (n <= 0) {	/* the host does not need it any more */
		close_both(c);
		return;
	}
	if (all && !host->hung_up)
		host->readable = false;
	used = MIN((size_t)n, missing);
	memcpy((uint8_t *)&c->hello + c->hello_len, data, used);
	c->hello_len += (uint8_t)used;
	if (used < missing)
		return;
	if (!hello_is_good(&c->hello))
		close_both(c);
	else
		dial(c, 0, data + used, (size_t)n - used);
}

/* --- bytes ------------------------------------------------------------------ */

/* A reset that finds unread bytes leaves the connection standing, so if there were
 * any since we shut down our sending side, the end that follows them may be either.
 * But relay_host_has_reset() made the kernel send another packet, and to one of a
 * connection it does not know the host answers with a reset, which finds none. */
static bool end_is_in_doubt(struct relay_conn *c)
{
	return c->ends[RELAY_HOST].shut && c->host_spoke_late;
}

static void on_end_of(struct relay_conn *c, struct relay_end *from)
{
	from->readable = from->look = false;
	if (c->wait == RELAY_WAIT_END)
		return;
	if (from == &c->ends[RELAY_HOST] && relay_host_has_reset(c)) {
		relay_conn_reset(c);
		return;
	}
	if (from == &c->ends[RELAY_HOST] && end_is_in_doubt(c)) {
		relay_wait_for(c, RELAY_WAIT_END);
		return;
	}
	from->eof = true;
	if (from == &c->ends[RELAY_SERVER] && c->server_broken)
		c->state = RELAY_DRAINING;
}

static void on_doubt_over(struct relay_conn *c)
{
	relay_wait_for(c, RELAY_WAIT_NONE);
	if (relay_host_has_reset(c))
		relay_conn_reset(c);
	else
		c->ends[RELAY_HOST].eof = true;
}

static void on_read_failed(struct relay_conn *c, struct relay_end *from)
{
	if (from == &c->ends[RELAY_HOST])
		relay_conn_reset(c);	/* the device is gone */
	else
		c->state = RELAY_DRAINING;
}

static ssize_t read_end(struct relay_conn *c, struct relay_end *from, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	ssize_t n;

	if (from == &c->ends[RELAY_HOST])
		return relay_host_recv(c, ret, ret_all);
	n = recv(from->fd, b->bytes, sizeof(b->bytes), MSG_DONTWAIT);
	*ret = b->bytes;
	*ret_all = n < (ssize_t)sizeof(b->bytes);
	return n;
}

static void pass_on(struct relay_conn *c, struct relay_end *from, const uint8_t *data, size_t len)
{
	if (from == &c->ends[RELAY_SERVER])
		pass_to_host(c, relay_get_buffer(c->relay), len);
	else if (!c->server_broken)
		end_deliver(c, &c->ends[RELAY_SERVER], data, len);
}

/* One read from one end to the other. */
static void step(struct relay_conn *c, struct relay_end *from)
{
	uint8_t *data;
	bool all;
	ssize_t n;

	if (!end_flush(c, other_end(c, from)) || !from->readable || from->eof ||
	    c->state != RELAY_OPEN)
		return;
	n = read_end(c, from, &data, &all);
	if (n > 0) {
		/* Less than there was room for: the next byte makes an event
		 * (epoll(7)), but an end that was already told of does not. */
		if (all && !from->hung_up)
			from->readable = false;
		c->host_spoke_late |= from->shut;
		pass_on(c, from, data, (size_t)n);
	} else if (n == 0) {
		on_end_of(c, from);
	} else if (would_block(errno)) {
		from->readable = false;
	} else {
		on_read_failed(c, from);
	}
}

/* An end of file goes on when everything before it has. */
static void pass_end(struct relay_conn *c, struct relay_end *from)
{
	struct relay_end *to = other_end(c, from);

	if (c->state != RELAY_OPEN || !from->eof || to->shut || to->pending)
		return;
	if (to == &c->ends[RELAY_HOST]) {
		send_reply(c);
		if (c->state != RELAY_OPEN || to->pending)
			return;
	}
	to->shut = true;
	if (to == &c->ends[RELAY_HOST]) {
		shutdown(to->fd, SHUT_WR);
		relay_host_let_go(c);
	} else if (!from->shut) {	/* else both have ended: close() tells the server */
		shutdown(to->fd, SHUT_WR);
	}
}

static bool can_go_on(struct relay_conn *c, const struct relay_end *from)
{
	const struct relay_end *to = other_end(c, from);

	if (to->pending)
		return to->writable;
	return from->readable && !from->eof;
}

/* An end cannot be read while the server takes nothing, but a reset is worth
 * knowing at once, for the server may never read again; likewise one that follows
 * an end of file. Not with our side shut down, where looking is an event itself. */
static void look_for_reset(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];

	if (!host->look || host->shut || c->state != RELAY_OPEN)
		return;
	host->look = false;
	if ((host->eof || c->ends[RELAY_SERVER].pending) && relay_host_has_reset(c))
		relay_conn_reset(c);
}

static bool run_open(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST], *server = &c->ends[RELAY_SERVER];

	step(c, server);
	step(c, host);
	pass_end(c, server);
	pass_end(c, host);
	look_for_reset(c);
	if (c->state == RELAY_OPEN && host->shut && server->shut)
		close_both(c);
	return c->state == RELAY_OPEN && (can_go_on(c, host) || can_go_on(c, server));
}

static bool run_draining(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];

	send_reply(c);
	if (c->state == RELAY_DRAINING && end_flush(c, host))
		relay_conn_reset(c);
	return false;
}

bool relay_conn_run(struct relay_conn *c)
{
	bool more = false;

	if (c->state == RELAY_HELLO && c->ends[RELAY_HOST].readable)
		read_hello(c);
	if (c->state == RELAY_OPEN)
		more = run_open(c);
	if (c->state == RELAY_DRAINING)
		more = run_draining(c);
	return more;
}

/* --- what relay.c calls ------------------------------------------------------ */

void relay_conn_event(struct relay_conn *c, enum relay_side side, uint32_t events)
{
	struct relay_end *e = &c->ends[side];

	if (c->state == RELAY_DEAD)
		return;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->hung_up = e->look = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		e->writable = true;
	if (c->state == RELAY_CONNECTING && side == RELAY_SERVER)
		check_connect(c);
	else if (c->state == RELAY_CONNECTING && e->hung_up && relay_host_has_reset(c))
		relay_conn_reset(c);
}

void relay_conn_timeout(struct relay_conn *c)
{
	switch (c->wait) {
	case RELAY_WAIT_HELLO: close_both(c); break;
	case RELAY_WAIT_CONNECT: refuse(c, ETIMEDOUT); break;
	case RELAY_WAIT_REPLY: send_reply(c); break;
	case RELAY_WAIT_END: on_doubt_over(c); break;
	default: assert(0);
	}
}
