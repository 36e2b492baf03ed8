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

/* A killed agent closes with RST, relay.c's new_socket(): half an upload must not look
 * whole. An end in order takes that back. */
static void close_server_in_order(struct relay_conn *c)
{
	struct linger off = { .l_onoff = 0 };

	setsockopt(c->ends[RELAY_SERVER].fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
	end_close(&c->ends[RELAY_SERVER]);
}

void relay_conn_reset(struct relay_conn *c)
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
	if (to->eof)	/* all of that has been read: it closed, and does not want more */
		c->state = RELAY_DRAINING;
}

/* As much as there is room for; *ret_code: the errno that ended it, or 0 when all went.
 * A vsock wants its packet of up to 64 KiB in one piece of memory, and fails where the
 * guest's memory has none of that size (Linux 6.1, virtio_transport_alloc_pkt()). Single
 * pages there are. Less than was asked for says nothing: a vsock that sent one packet
 * hides that there was no memory for the next. So it is asked until it says why. */
static size_t send_now(int fd, const uint8_t *data, size_t len, int *ret_code)
{
	enum { PAGE = 4096 };
	size_t sent = 0, piece = len;

	*ret_code = 0;
	while (sent < len) {
		size_t ask = MIN(len - sent, piece);
		ssize_t n = send(fd, data + sent, ask, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == ENOMEM && piece > PAGE) {
			piece = PAGE;
			continue;
		}
		if (n < 0) {
			*ret_code = errno;
			break;
		}
		sent += (size_t)n;
	}
	return sent;
}

/* No event tells of it: the host's end is tried again by time, and nothing else is
 * waited for while something is written to it. False: it has been long enough. */
static bool wait_for_memory(struct relay_conn *c)
{
	if (c->starved >= RELAY_MEMORY_TRIES)
		return false;
	if (c->wait != RELAY_WAIT_MEMORY)
		relay_wait_for(c, RELAY_WAIT_MEMORY);
	return true;
}

/* Bytes written, or -1: it failed and was dealt with. */
static ssize_t end_write(struct relay_conn *c, struct relay_end *to, const uint8_t *data, size_t len)
{
	bool to_host = to == &c->ends[RELAY_HOST];
	int code;
	size_t sent = send_now(to->fd, data, len, &code);

	if (to_host && sent)
		c->starved = 0;
	if (code == ENOMEM && to_host && wait_for_memory(c)) {
		to->writable = false;
		return (ssize_t)sent;
	}
	if (code && !would_block(code)) {
		on_write_failed(c, to);
		return -1;
	}
	if (sent < len) {
		to->writable = false;
		relay_watch_room(c, side_of(c, to));
	}
	return (ssize_t)sent;
}

static void try_memory_again(struct relay_conn *c)
{
	relay_wait_for(c, RELAY_WAIT_NONE);
	c->starved++;
	c->ends[RELAY_HOST].writable = true;
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

/* The server's end: that of all, if the client's has been passed on. */
static uint32_t end_mark(struct relay_conn *c)
{
	c->ends[RELAY_HOST].shut = true;
	c->done = c->ends[RELAY_SERVER].shut;
	return c->done ? RELAY_FRAME_DONE : 0;
}

/* @len bytes of the server's in the thread's buffer, and its end behind them. */
static void pass_to_host(struct relay_conn *c, struct relay_buffer *b, size_t len, bool end)
{
	uint8_t *first = b->head, *last = b->bytes + len;
	uint32_t head = htonl((uint32_t)len);

	memcpy(b->head, &head, sizeof(head));
	if (c->reply_due) {
		c->reply_due = false;
		relay_wait_for(c, RELAY_WAIT_NONE);
		b->reply = make_reply(0);
		first = (uint8_t *)&b->reply;
	}
	if (end) {
		head = end_mark(c);
		memcpy(last, &head, sizeof(head));
		last += RELAY_FRAME_HEAD;
	}
	end_deliver(c, &c->ends[RELAY_HOST], first, (size_t)(last - first));
}

static void send_mark(struct relay_conn *c, uint32_t mark)
{
	end_deliver(c, &c->ends[RELAY_HOST], (const uint8_t *)&mark, sizeof(mark));
}

/* --- the way to the server -------------------------------------------------- */

static void refuse(struct relay_conn *c, int code)
{
	struct relay_reply reply = make_reply(code);

	/* 8 bytes, the first ones: there is room, or the host does not want them. */
	(void)!send(c->ends[RELAY_HOST].fd, &reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT);
	relay_conn_reset(c);
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
static int start_socket(struct relay *r, const union dial_addr *to, bool speaks_first)
{
	socklen_t len = to->sa.sa_family == AF_INET ? sizeof(to->in) : sizeof(to->in6);
	scoped_fd int fd = relay_get_socket(r, to->sa.sa_family);
	int off = 0;

	if (fd < 0)
		return fd;
	if (speaks_first)
		setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off));
	dial_set_buffers(fd, relay_count_busy(r));
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
	int fd = start_socket(c->relay, &to->addrs[c->dialled++], len > 0), rc;

	if (fd < 0)
		return fd;
	server->fd = fd;
	server->readable = server->hung_up = false;
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

/* The others refuse: the one that was silent has the rest of the time. Once. */
static bool dial_back(struct relay_conn *c, struct dial *to)
{
	if (c->dialled < to->len)
		return true;
	if (!c->silent || c->silent > to->len)
		return false;
	to->len = c->silent;
	c->dialled = c->silent - 1;
	c->silent = DIAL_MAX + 1;
	return true;
}

/* Goes through the addresses that are left. @data: the client's first bytes, which
 * are kept as the server's pending ones where they could not be written. */
static void dial(struct relay_conn *c, int last, const uint8_t *data, size_t len)
{
	struct relay_end *server = &c->ends[RELAY_SERVER];
	struct dial to;
	size_t written = 0;

	dial_from_bytes(c->hello.ip, ntohs(c->hello.port), &to);
	relay_dial_more(c->relay, &to);
	while (dial_back(c, &to)) {
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
			relay_wait_for(c, c->dialled < to.len ? RELAY_WAIT_CONNECT_OR_NEXT
							      : RELAY_WAIT_CONNECT);
		}
		return;
	}
	refuse(c, -last);
}

static void dial_on(struct relay_conn *c, int why)
{
	close(c->ends[RELAY_SERVER].fd);
	c->ends[RELAY_SERVER].fd = -1;
	dial(c, why, NULL, 0);
}

/* Something happened to a connect() under way. */
static void check_connect(struct relay_conn *c)
{
	size_t none = 0;
	int rc = try_server(c, NULL, 0, &none);

	if (rc == -EINPROGRESS)
		return;
	if (rc == 0)
		on_connected(c);
	else
		dial_on(c, rc);
}

/* --- from the host ----------------------------------------------------------- */

static bool hello_is_good(const struct relay_hello *h)
{
	return ntohs(h->magic) == RELAY_MAGIC && h->version == RELAY_VERSION &&
	       h->proto == RELAY_TCP && h->port != 0 && h->reserved == 0;
}

struct payload {
	uint8_t *data;
	size_t len;
	bool end;	/* of the direction, behind it */
	bool bad;
};

/* Of frames, up to the end of the direction if that is among them: payload moves
 * together. Returns how much was read. */
static size_t unframe(struct relay_conn *c, uint8_t *data, size_t len, struct payload *ret)
{
	size_t at = 0, n;
	uint32_t head;

	*ret = (struct payload){ .data = data };
	while (at < len && !ret->end && !ret->bad) {
		if (c->frame_left) {
			n = MIN(len - at, (size_t)c->frame_left);
			if (ret->len == 0)
				ret->data = data + at;
			else
				memmove(ret->data + ret->len, data + at, n);
			ret->len += n;
			c->frame_left -= (uint32_t)n;
			at += n;
			continue;
		}
		c->frame_head[c->frame_have++] = data[at++];
		if (c->frame_have < RELAY_FRAME_HEAD)
			continue;
		c->frame_have = 0;
		memcpy(&head, c->frame_head, sizeof(head));
		c->frame_left = ntohl(head);
		ret->end = c->frame_left == 0;
		ret->bad = c->frame_left > RELAY_FRAME_MAX;
	}
	return at;
}

/* … and the client's first bytes, which come with it. */
static size_t take_hello(struct relay_conn *c, uint8_t *data, size_t len)
{
	size_t used = MIN(len, sizeof(c->hello) - c->hello_len);
	struct payload first;

	memcpy((uint8_t *)&c->hello + c->hello_len, data, used);
	c->hello_len += (uint8_t)used;
	if (c->hello_len < sizeof(c->hello))
		return used;
	used += unframe(c, data + used, len - used, &first);
	if (!hello_is_good(&c->hello) || first.bad) {
		relay_conn_reset(c);
		return len;
	}
	c->ends[RELAY_HOST].eof = first.end;
	dial(c, 0, first.data, first.len);
	return used;
}

static void pass_ends(struct relay_conn *c);

static size_t take_frames(struct relay_conn *c, uint8_t *data, size_t len)
{
	struct relay_end *host = &c->ends[RELAY_HOST], *server = &c->ends[RELAY_SERVER];
	struct payload p;
	size_t used;

	if (host->eof || c->state == RELAY_CONNECTING) {	/* it should wait for us */
		relay_conn_reset(c);
		return len;
	}
	used = unframe(c, data, len, &p);
	if (p.bad) {
		relay_conn_reset(c);
		return len;
	}
	if (p.len && !c->server_broken)
		end_deliver(c, server, p.data, p.len);
	host->eof |= p.end;
	pass_ends(c);
	return used;
}

static void read_host(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];
	uint8_t *data;
	bool all;
	ssize_t n = relay_host_recv(c, &data, &all);

	if (n < 0 && would_block(errno)) {
		host->readable = false;
		return;
	}
	if (n <= 0) {	/* reset, or the host does not need it any more */
		relay_conn_reset(c);
		return;
	}
	/* The next byte makes an event (epoll(7)), but an end that was already told of
	 * does not. */
	if (all && !host->hung_up)
		host->readable = false;
	while (n > 0 && c->state != RELAY_DEAD) {
		size_t used = c->state == RELAY_HELLO ? take_hello(c, data, (size_t)n)
						      : take_frames(c, data, (size_t)n);

		data += used;
		n -= (ssize_t)used;
	}
}

/* --- from the server --------------------------------------------------------- */

static void on_server_failed(struct relay_conn *c)
{
	c->state = RELAY_DRAINING;
}

static void on_server_end(struct relay_conn *c)
{
	c->ends[RELAY_SERVER].eof = true;
	c->ends[RELAY_SERVER].readable = false;
	if (c->server_broken)
		c->state = RELAY_DRAINING;
}

/* What there is, and what is behind it if that is likely its end: many servers close
 * after their answer, and one packet tells the host of both. */
static void read_server(struct relay_conn *c)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	struct relay_end *server = &c->ends[RELAY_SERVER];
	ssize_t n = recv(server->fd, b->bytes, sizeof(b->bytes), MSG_DONTWAIT), more = -1;
	bool failed = false;

	if (n < 0 && would_block(errno)) {
		server->readable = false;
		return;
	}
	if (n < 0) {
		on_server_failed(c);
		return;
	}
	if (n == 0) {
		on_server_end(c);
		return;
	}
	if ((size_t)n < sizeof(b->bytes) && (server->hung_up || c->reply_due)) {
		more = recv(server->fd, b->bytes + n, sizeof(b->bytes) - (size_t)n, MSG_DONTWAIT);
		failed = more < 0 && !would_block(errno);
	}
	n += MAX(more, (ssize_t)0);
	if ((size_t)n < sizeof(b->bytes) && !server->hung_up)
		server->readable = false;
	if (more == 0)
		on_server_end(c);
	pass_to_host(c, b, (size_t)n, more == 0 && c->state == RELAY_OPEN);
	if (failed && c->state == RELAY_OPEN)
		on_server_failed(c);
}

/* --- bytes ------------------------------------------------------------------ */

/* Both directions have ended: ready for the next client. */
static void finish(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];

	close_server_in_order(c);
	c->ends[RELAY_SERVER] = (struct relay_end){ .fd = -1 };
	host->eof = host->shut = c->done = false;
	c->hello_len = c->dialled = 0;
	c->server_broken = false;
	c->state = RELAY_HELLO;
	relay_wait_for(c, RELAY_WAIT_HELLO);
	relay_trim_later(c->relay);
}

/* An end goes on when everything before it has. */
static void pass_ends(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST], *server = &c->ends[RELAY_SERVER];

	if (c->state == RELAY_OPEN && host->eof && !server->shut && !server->pending) {
		server->shut = true;
		if (!server->eof)	/* else close() tells it */
			shutdown(server->fd, SHUT_WR);
	}
	if (c->state == RELAY_OPEN && server->eof && !host->shut && !host->pending) {
		send_reply(c);
		if (c->state == RELAY_OPEN && !host->pending)
			send_mark(c, end_mark(c));
	}
	if (c->state != RELAY_OPEN || !host->shut || !server->shut || host->pending)
		return;
	if (!c->done) {
		c->done = true;
		send_mark(c, RELAY_FRAME_DONE);
	}
	if (c->state == RELAY_OPEN && !host->pending)
		finish(c);
}

static bool can_go_on(struct relay_conn *c, const struct relay_end *from)
{
	const struct relay_end *to = other_end(c, from);

	if (to->pending)
		return to->writable;
	return from->readable && !from->eof;
}

/* An end of the vsock is a reset, but it is not seen while nothing is read: the server
 * takes nothing, or the client has said all. */
static void look_for_reset(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST];

	if (c->state == RELAY_OPEN && host->hung_up &&
	    (host->eof || c->ends[RELAY_SERVER].pending))
		relay_conn_reset(c);
}

/* Behind its end nothing is read, so that would not show it. */
static void look_for_late_reset(struct relay_conn *c)
{
	const struct relay_end *server = &c->ends[RELAY_SERVER];

	if (c->state == RELAY_OPEN && server->eof && server->failed)
		c->state = RELAY_DRAINING;
}

static bool run_open(struct relay_conn *c)
{
	struct relay_end *host = &c->ends[RELAY_HOST], *server = &c->ends[RELAY_SERVER];

	if (end_flush(c, host) && c->state == RELAY_OPEN && server->readable && !server->eof)
		read_server(c);
	if (c->state == RELAY_OPEN && end_flush(c, server) && c->state == RELAY_OPEN &&
	    host->readable && !host->eof)
		read_host(c);
	pass_ends(c);
	look_for_reset(c);
	look_for_late_reset(c);
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
		read_host(c);
	if (c->state == RELAY_OPEN)
		more = run_open(c);
	if (c->state == RELAY_DRAINING)
		more = run_draining(c);
	if (c->state == RELAY_HELLO)	/* again */
		more = c->ends[RELAY_HOST].readable;
	return more;
}

/* --- what relay.c calls ------------------------------------------------------ */

void relay_conn_event(struct relay_conn *c, enum relay_side side, uint32_t events)
{
	struct relay_end *e = &c->ends[side];

	if (c->state == RELAY_DEAD || e->fd < 0)	/* of the last client's server */
		return;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->hung_up = true;
	if (events & EPOLLERR && c->state == RELAY_OPEN)	/* of a connect(): another is tried */
		e->failed = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		e->writable = true;
	if (c->state == RELAY_CONNECTING && side == RELAY_SERVER)
		check_connect(c);
	else if (c->state == RELAY_CONNECTING && e->hung_up)
		relay_conn_reset(c);
}

void relay_conn_timeout(struct relay_conn *c)
{
	switch (c->wait) {
	case RELAY_WAIT_HELLO: relay_conn_reset(c); break;
	case RELAY_WAIT_CONNECT: refuse(c, ETIMEDOUT); break;
	case RELAY_WAIT_CONNECT_OR_NEXT:
		c->silent = c->silent ? c->silent : c->dialled;
		dial_on(c, -ETIMEDOUT);
		break;
	case RELAY_WAIT_REPLY: send_reply(c); break;
	case RELAY_WAIT_MEMORY: try_memory_again(c); break;
	default: assert(0);
	}
}
