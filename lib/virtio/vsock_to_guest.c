#include "lib/virtio/vsock_device.h"

#include <errno.h>
#include <sys/socket.h>

#include "lib/base/mem.h"

enum {
	LIGHT_BYTES = 16 << 10,		/* a client that has sent more at a stretch is bulk */
	LIGHT_BUFFERS = 4,		/* Linux posts buffers of 4 KiB */
	BULK_BUFFERS = 32,		/* a bulk client's turn */
	PIECES_MAX = 128,
};

/* Buffers that bulk leaves for others. Linux refills when half of them are used
 * (virtio_transport_rx_work), so a few may stay behind. */
static unsigned reserve(const struct vring *r)
{
	return MIN(r->size / 16u, VRING_AHEAD / 2u);	/* of those we see */
}

/* --- one packet ----------------------------------------------------------- */

static void write_header(struct vring_chain *ch, const struct vsock_packet *p)
{
	uint8_t bytes[VSOCK_PACKET_HEADER];
	size_t done = 0;

	vsock_packet_encode(p, bytes);
	for (unsigned i = 0; done < sizeof(bytes); i++) {
		size_t n = MIN(ch->iov[i].iov_len, sizeof(bytes) - done);

		memcpy(ch->iov[i].iov_base, bytes + done, n);
		done += n;
	}
}

/* Puts a packet of the connection into the next buffer; its payload is there. */
static void push_packet(struct vsock_conn *c, enum vsock_op op, uint32_t flags, uint32_t len)
{
	struct vring *r = c->v->rx;
	struct vsock_packet p = {
		.src_cid = VSOCK_CID_HOST, .dst_cid = c->v->guest_cid,
		.src_port = c->host_port, .dst_port = c->guest_port, .len = len,
		.type = VSOCK_STREAM, .op = (uint16_t)op, .flags = flags,
		.buf_alloc = c->window, .fwd_cnt = c->fwd,
	};

	c->told_fwd = c->fwd;
	if ((int32_t)(c->fwd + c->window - c->edge) > 0)
		c->edge = c->fwd + c->window;
	conn_unwant(c, WANT_UPDATE);	/* any packet says it */
	write_header(vring_peek(r, 0), &p);
	vring_push(r, VSOCK_PACKET_HEADER + len);
}

static void push_control(struct vsock_conn *c)
{
	unsigned want = c->want & -c->want;

	conn_unwant(c, want);
	if (want == WANT_SAY) {
		conn_ready(c);		/* by way of a queue, for it needs credit */
		return;
	}
	if (want == WANT_REQUEST)
		push_packet(c, VSOCK_OP_REQUEST, 0, 0);
	else if (want == WANT_UPDATE)
		push_packet(c, VSOCK_OP_CREDIT_UPDATE, 0, 0);
	else if (want == WANT_CREDIT)
		push_packet(c, VSOCK_OP_CREDIT_REQUEST, 0, 0);
	else if (want == WANT_SHUTDOWN)
		push_packet(c, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND, 0);
	else
		push_packet(c, VSOCK_OP_RST, 0, 0);
	if (want == WANT_RST)
		conn_forget(c);
}

static void push_reply(struct vsock *v)
{
	const struct reset_reply *r = &v->replies[v->first_reply];
	struct vsock_packet p = {
		.src_cid = VSOCK_CID_HOST, .dst_cid = v->guest_cid, .src_port = r->host_port,
		.dst_port = r->guest_port, .type = r->type, .op = VSOCK_OP_RST,
	};

	v->first_reply = (v->first_reply + 1) % REPLIES_MAX;
	v->n_replies--;
	write_header(vring_peek(v->rx, 0), &p);
	vring_push(v->rx, VSOCK_PACKET_HEADER);
}

/* --- a client's bytes ----------------------------------------------------- */

struct room {				/* payload space of the next buffers */
	struct iovec iov[PIECES_MAX];
	unsigned n_iov, n_buffers;
	uint32_t len;
	uint32_t sizes[BULK_BUFFERS];
};

/* What is behind the header of buffer @ch, at most @max bytes. */
static void add_room(struct room *room, const struct vring_chain *ch, uint32_t max)
{
	size_t skip = VSOCK_PACKET_HEADER;
	uint32_t size = 0;

	for (unsigned i = 0; i < ch->n_in && size < max; i++) {
		struct iovec v = ch->iov[i];
		size_t n = MIN(skip, v.iov_len);

		skip -= n;
		v.iov_base = (uint8_t *)v.iov_base + n;
		v.iov_len = MIN(v.iov_len - n, max - size);
		if (v.iov_len == 0)
			continue;
		room->iov[room->n_iov++] = v;
		size += (uint32_t)v.iov_len;
	}
	room->sizes[room->n_buffers++] = size;
	room->len += size;
}

static void find_room(struct vring *r, unsigned buffers, uint32_t max, struct room *room)
{
	room->n_iov = room->n_buffers = 0;
	room->len = 0;
	for (unsigned i = 0; i < buffers && room->len < max; i++) {
		const struct vring_chain *ch = vring_peek(r, i);

		if (room->n_iov + ch->n_in > PIECES_MAX)
			break;
		add_room(room, ch, MIN(max - room->len, (uint32_t)VSOCK_PACKET_MAX));
	}
}

/* What we say goes in front, in the same packet if it can. */
static uint32_t copy_say(struct vsock_conn *c, struct room *room, struct iovec **rest)
{
	uint32_t done = 0;

	*rest = room->iov;
	while (c->say_off < c->say_len && *rest < room->iov + room->n_iov) {
		struct iovec *v = *rest;
		size_t n = MIN(v->iov_len, (size_t)(c->say_len - c->say_off));

		memcpy(v->iov_base, c->say + c->say_off, n);
		c->say_off = (uint8_t)(c->say_off + n);
		done += (uint32_t)n;
		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		if (v->iov_len == 0)
			(*rest)++;
	}
	return done;
}

/* Nobody waits for the last word. */
static void client_ended(struct vsock_conn *c)
{
	static const uint8_t end[FRAME_HEAD];
	unsigned want = c->framed ? WANT_SAY : WANT_SHUTDOWN;

	c->client_eof = true;
	if (c->framed)
		conn_say(c, end, sizeof(end));
	if (c->guest_eof)
		conn_want_later(c, want);
	else
		conn_want(c, want);
	conn_check_done(c);
}

/* Fills @iov from the client's socket; bytes, and 0 for whatever ends it. */
static uint32_t read_client(struct vsock_conn *c, struct iovec *iov, unsigned n_iov, uint32_t len)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n_iov };
	ssize_t n;

	if (c->fd < 0 || !c->readable || c->client_eof || len == 0)
		return 0;
	n = recvmsg(c->fd, &msg, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		c->readable = errno == EINTR;
		c->burst = 0;
		return 0;
	}
	if (n < 0) {
		conn_end(c, -errno, "read from the client", true);
		return 0;
	}
	if (n == 0) {
		client_ended(c);
		return 0;
	}
	c->moved = true;
	if ((uint32_t)n < len && !c->hung_up) {
		/* drained: the next edge tells of more (epoll(7), question 9) */
		c->readable = false;
		c->burst = 0;
	} else {
		c->burst += MIN((uint32_t)n, UINT32_MAX - c->burst);
	}
	return (uint32_t)n;
}

static void count_to_guest(struct vsock_conn *c, uint32_t n)
{
	c->v->stats.to_guest += n;
	if (c->to_guest)
		*c->to_guest += n;
}

/* As read_client(), with a frame's head before the bytes; the length of both. */
static uint32_t read_frame(struct vsock_conn *c, struct iovec *iov, unsigned n_iov, uint32_t len)
{
	uint8_t *head[FRAME_HEAD];
	uint32_t n;

	if (len <= FRAME_HEAD)
		return 0;
	for (unsigned i = 0; i < FRAME_HEAD; i++) {
		while (iov->iov_len == 0) {
			iov++;
			n_iov--;
		}
		head[i] = iov->iov_base;
		iov->iov_base = head[i] + 1;
		iov->iov_len--;
	}
	n = read_client(c, iov, n_iov, len - FRAME_HEAD);
	for (unsigned i = 0; n && i < FRAME_HEAD; i++)
		*head[i] = (uint8_t)(n >> (24 - 8 * i));
	return n ? n + FRAME_HEAD : 0;
}

static void send_bytes(struct vsock_conn *c, unsigned buffers, uint32_t max)
{
	struct vsock *v = c->v;
	struct room room;
	struct iovec *rest;
	uint32_t say, n, left;
	unsigned n_rest;

	find_room(v->rx, buffers, MIN(max, conn_credit(c)), &room);
	say = copy_say(c, &room, &rest);
	n_rest = (unsigned)(room.iov + room.n_iov - rest);
	left = room.len - say;
	n = c->framed ? read_frame(c, rest, n_rest, left) : read_client(c, rest, n_rest, left);
	if (c->state > CONN_LINGER)
		return;		/* nothing was read, and what we say is pointless now */
	c->sent += say + n;
	count_to_guest(c, n && c->framed ? n - FRAME_HEAD : n);
	n += say;
	for (unsigned i = 0; n > 0; i++) {
		uint32_t part = MIN(n, room.sizes[i]);

		push_packet(c, VSOCK_OP_RW, 0, part);
		n -= part;
	}
}

/* The guest said that it does not read any more. Without a hello it has nowhere to
 * send from either. */
static void send_to_deaf(struct vsock_conn *c)
{
	uint8_t byte;
	struct iovec iov = { &byte, 1 };

	if (c->say_off < c->say_len || read_client(c, &iov, 1, 1) > 0)
		conn_end(c, -EPIPE, "the guest does not read any more", true);
}

static uint32_t serve(struct vsock_conn *c, unsigned buffers, uint32_t max)
{
	uint64_t before = c->v->stats.to_guest;

	if (c->guest_deaf)
		send_to_deaf(c);
	else
		send_bytes(c, buffers, max);
	conn_unready(c);	/* to the end of its queue, or of the other */
	conn_ready(c);
	return (uint32_t)(c->v->stats.to_guest - before) + VSOCK_PACKET_HEADER;
}

/* One thing, the most urgent that @have buffers allow; 0: nothing. */
static uint32_t do_one(struct vsock *v, unsigned have)
{
	struct vsock_conn *c;

	/* answers first: there is room for so many, and a close() waits for 8 s only */
	if (v->n_replies) {
		push_reply(v);
		return VSOCK_PACKET_HEADER;
	}
	if ((c = TAILQ_FIRST(&v->control))) {
		push_control(c);
		return VSOCK_PACKET_HEADER;
	}
	if ((c = TAILQ_FIRST(&v->light)))
		return serve(c, MIN(have, (unsigned)LIGHT_BUFFERS), LIGHT_BYTES);
	if (v->farewells_due && (c = TAILQ_FIRST(&v->farewells))) {
		push_control(c);
		return VSOCK_PACKET_HEADER;
	}
	c = TAILQ_FIRST(&v->bulk);
	if (c && have > reserve(v->rx))
		return serve(c, MIN(have - reserve(v->rx), (unsigned)BULK_BUFFERS), UINT32_MAX);
	return 0;
}

static bool pending(const struct vsock *v)
{
	return v->n_replies || !TAILQ_EMPTY(&v->control) || !TAILQ_EMPTY(&v->light) ||
	       !TAILQ_EMPTY(&v->bulk) || (v->farewells_due && !TAILQ_EMPTY(&v->farewells));
}

bool to_guest(struct vsock *v, uint32_t budget)
{
	uint32_t done = 0;
	bool more = false;

	while (vsock_running(v) && pending(v)) {
		unsigned have = vring_fetch(v->rx, VRING_AHEAD);
		uint16_t told = vring_used_idx(v->rx);
		uint32_t n;

		n = have ? do_one(v, have) : 0;
		if (vring_used_idx(v->rx) != told)
			v->farewells_due = true;	/* the guest is interrupted anyway */
		vring_publish(v->rx);
		if (n == 0 && !vring_kicks_on(v->rx))
			break;
		done += n;
		more = done >= budget && pending(v);
		if (done >= budget)
			break;
	}
	v->farewells_due &= !TAILQ_EMPTY(&v->farewells);
	return more || (v->driver && v->rx->broken.code);	/* the turn says so, once */
}
