#include "lib/virtio/vsock_device.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "lib/base/mem.h"

enum {
	RUN_MAX = 16,			/* packets of one connection given to its client at once */
	PIECES_MAX = RUN_MAX + VRING_SEGMENTS_MAX,
};

struct run {				/* payload of packets in a row */
	struct iovec iov[PIECES_MAX];
	unsigned n_iov, n_packets;
	uint32_t len;
};

/* --- to the client -------------------------------------------------------- */

static void end_to_client(struct vsock_conn *c)
{
	if (c->guest_eof && c->prologue_have < c->prologue_len) {
		conn_end(c, -ECONNRESET, "the guest ended before its answer", true);
		return;
	}
	if (!c->guest_eof || c->client_shut || c->buf.len || !c->judged || c->fd < 0)
		return;
	shutdown(c->fd, SHUT_WR);	/* ENOTCONN: it is gone, and its event is coming */
	c->client_shut = true;
	conn_check_done(c);
}

/* Writes what the socket takes; the number of bytes. */
static uint32_t write_client(struct vsock_conn *c, struct iovec *iov, unsigned n_iov, uint32_t len)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n_iov };
	ssize_t n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		n = 0;
	if (n < 0) {
		conn_end(c, -errno, "write to the client", true);
		return 0;
	}
	if ((uint32_t)n < len)
		c->writable = false;	/* until the next edge */
	c->v->stats.from_guest += (uint32_t)n;
	if (c->from_guest)
		*c->from_guest += (uint32_t)n;
	conn_forwarded(c, (uint32_t)n);
	return (uint32_t)n;
}

/* Over the bound of all buffers together, the fullest pays for it. */
static void bound_buffers(struct vsock *v)
{
	struct vsock_conn *c, *fullest = NULL;

	if (v->stats.buffered <= v->limits.buffered_max)
		return;
	TAILQ_FOREACH(c, &v->buffered, in_buffered)
		if (!fullest || c->buf.len - c->buf_off > fullest->buf.len - fullest->buf_off)
			fullest = c;
	conn_end(fullest, -ENOBUFS, "the client reads too slowly", true);
}

/* Keeps what the client does not take now: bytes of @iov from @skip on. */
static void keep(struct vsock_conn *c, const struct iovec *iov, unsigned n_iov, size_t skip)
{
	size_t before = c->buf.len;

	if (c->buf_off > c->buf.len / 2) {
		buf_consume(&c->buf, c->buf_off);
		before -= c->buf_off;
		c->buf_off = 0;
	}
	if (!c->buf.len)
		TAILQ_INSERT_TAIL(&c->v->buffered, c, in_buffered);
	for (unsigned i = 0; i < n_iov; i++) {
		size_t n = MIN(skip, iov[i].iov_len);

		skip -= n;
		buf_add(&c->buf, (uint8_t *)iov[i].iov_base + n, iov[i].iov_len - n);
	}
	c->v->stats.buffered += c->buf.len - before;
	bound_buffers(c->v);
}

void conn_flush(struct vsock_conn *c)
{
	size_t len = c->buf.len - c->buf_off;

	if (c->state == CONN_RELAY && c->judged && c->writable && len > 0) {
		struct iovec iov = { c->buf.data + c->buf_off, len };
		uint32_t n = write_client(c, &iov, 1, (uint32_t)len);

		if (c->state != CONN_RELAY)
			return;
		c->v->stats.buffered -= n;
		c->buf_off += n;
		if (c->buf_off == c->buf.len) {
			TAILQ_REMOVE(&c->v->buffered, c, in_buffered);
			buf_done(&c->buf);
			c->buf_off = 0;
		}
	}
	if (c->state == CONN_RELAY)
		end_to_client(c);
}

void conn_client_event(struct vsock_conn *c, uint32_t events)
{
	socklen_t len = sizeof(int);
	int error = 0;

	if (c->fd < 0)		/* ended earlier in this batch */
		return;
	if (events & (EPOLLERR | EPOLLHUP) &&
	    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error) {
		conn_end(c, -error, "the client", true);
		return;
	}
	if (events & EPOLLOUT) {
		c->writable = true;
		conn_flush(c);
	}
	if (c->fd >= 0 && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) {
		c->readable = true;
		c->hung_up |= (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
		conn_ready(c);
	}
}

/* --- bytes from the guest ------------------------------------------------- */

static void break_rule(struct vsock_conn *c, const char *rule)
{
	c->v->stats.rejected++;
	conn_end(c, -ECONNRESET, rule, true);
	if (c->state == CONN_LINGER)
		conn_rst(c);
}

/* The first bytes are the prologue's; returns how many. */
static uint32_t take_prologue(struct vsock_conn *c, const struct run *run)
{
	uint32_t done = 0;

	for (unsigned i = 0; i < run->n_iov && c->prologue_have < c->prologue_len; i++) {
		size_t n = MIN(run->iov[i].iov_len, (size_t)(c->prologue_len - c->prologue_have));

		memcpy(c->prologue_bytes + c->prologue_have, run->iov[i].iov_base, n);
		c->prologue_have = (uint8_t)(c->prologue_have + n);
		done += (uint32_t)n;
	}
	if (done && c->prologue_have == c->prologue_len)
		conn_notify(c, NOTICE_PROLOGUE);
	conn_forwarded(c, done);
	return done;
}

/* The client's bytes. */
static void pass_on(struct vsock_conn *c, struct iovec *iov, unsigned n_iov)
{
	size_t len = 0, done = 0;

	for (unsigned i = 0; i < n_iov; i++)
		len += iov[i].iov_len;
	if (len && c->state == CONN_RELAY && c->judged && c->writable && !c->buf.len)
		done = write_client(c, iov, n_iov, (uint32_t)len);
	if (done < len && c->state <= CONN_RELAY)
		keep(c, iov, n_iov, done);
}

/* NULL, or the rule that was broken. */
static const char *hear_frame(struct vsock_conn *c, enum frame_event event, const char *late)
{
	if (event == FRAME_BAD)
		return "a frame of that length";
	if (event == FRAME_IS_END && c->guest_eof)
		return late;
	c->guest_done |= event == FRAME_IS_DONE;
	c->guest_eof |= event == FRAME_IS_DONE || event == FRAME_IS_END;
	return NULL;
}

static void pass_frames(struct vsock_conn *c, struct iovec *iov, unsigned n_iov)
{
	static const char late[] = "bytes after the end";
	struct iovec pieces[PIECES_MAX];
	const char *rule = NULL;
	enum frame_event event;
	unsigned n;
	uint32_t heads;

	do {
		event = frame_read(&c->frame, &iov, &n_iov, pieces, PIECES_MAX, &n, &heads);
		if (c->guest_done || (n && c->guest_eof)) {
			rule = event == FRAME_ALL_READ && !heads && !n ? NULL : late;
			break;
		}
		if (heads)
			conn_forwarded(c, heads);
		pass_on(c, pieces, n);
		rule = hear_frame(c, event, late);
	} while (!rule && event != FRAME_ALL_READ && c->state <= CONN_REST);
	if (rule)
		break_rule(c, rule);
	else if (c->state == CONN_RELAY)
		end_to_client(c);
	else if (c->guest_done)
		conn_guest_done(c);
}

static void take_bytes(struct vsock_conn *c, struct run *run)
{
	struct iovec *iov = run->iov;
	uint32_t skip = 0;

	c->received += run->len;
	if (c->state == CONN_RELAY && c->prologue_have < c->prologue_len)
		skip = take_prologue(c, run);
	for (unsigned i = 0; i < run->n_iov && skip; i++) {
		size_t n = MIN((size_t)skip, iov[i].iov_len);

		iov[i].iov_base = (uint8_t *)iov[i].iov_base + n;
		iov[i].iov_len -= n;
		skip -= (uint32_t)n;
	}
	if (c->framed && (c->state == CONN_RELAY || c->state == CONN_REST))
		pass_frames(c, iov, run->n_iov);
	else
		pass_on(c, iov, run->n_iov);
}

/* What every packet says of the guest's buffer. A packet may have been overtaken
 * by another that a second CPU sent; only what was never sent is a lie. */
static bool hear_credit(struct vsock_conn *c, const struct vsock_packet *p)
{
	uint32_t moved = p->fwd_cnt - c->peer_fwd;

	if (moved > c->sent - c->peer_fwd)
		return (int32_t)moved < 0 && c->peer_fwd - p->fwd_cnt <= c->peer_alloc;
	c->peer_alloc = p->buf_alloc;
	c->peer_fwd = p->fwd_cnt;
	conn_ready(c);
	return true;
}

/* --- packets -------------------------------------------------------------- */

static void on_response(struct vsock_conn *c, const struct vsock_packet *p)
{
	if (c->state == CONN_CONNECTING && !(c->want & WANT_REQUEST))
		conn_opened(c);
	else
		break_rule(c, "a response to nothing");
}

static void on_reset(struct vsock_conn *c, const struct vsock_packet *p)
{
	if (c->state == CONN_CONNECTING)
		conn_end(c, -ECONNREFUSED, "nobody listens", false);
	else
		conn_end(c, -ECONNRESET, "reset by the guest", false);
	conn_forget(c);
}

static void reply_reset(struct vsock *v, const struct vsock_packet *p)
{
	if (p->op == VSOCK_OP_RST || v->n_replies == REPLIES_MAX)
		return;
	v->replies[(v->first_reply + v->n_replies++) % REPLIES_MAX] = (struct reset_reply){
		.guest_port = p->src_port, .host_port = p->dst_port, .type = p->type,
	};
}

/* Closed by the guest: it wants an RST back, else it waits for 8 s
 * (Linux virtio_transport_close). */
static void on_closed(struct vsock_conn *c, const struct vsock_packet *p, bool in_order)
{
	bool guest_knows = c->client_eof && !(c->want & WANT_SHUTDOWN) && c->say_off == c->say_len;

	if (c->state == CONN_RELAY && in_order && guest_knows) {
		/* Both have said all; a slow client has yet to take it. The guest
		 * need not wait, and must not hear more of what it will not know. */
		c->guest_gone = true;
		conn_unwant(c, c->want);
		reply_reset(c->v, p);
	} else if (c->state <= CONN_REST) {
		conn_end(c, -ECONNRESET, in_order ? "closed by the guest" : "reset by the guest", true);
	} else if (c->state == CONN_LINGER) {
		conn_rst_later(c);
	}
}

static void on_shutdown(struct vsock_conn *c, const struct vsock_packet *p)
{
	bool had_ended = c->guest_eof;

	if (c->state == CONN_CONNECTING) {
		break_rule(c, "shutdown before a response");
		return;
	}
	if (c->framed && (c->state == CONN_RELAY || c->state == CONN_REST) &&
	    p->flags != (VSOCK_SHUTDOWN_SEND | VSOCK_SHUTDOWN_RCV)) {
		break_rule(c, "half an end, of frames");
		return;
	}
	c->guest_eof |= (p->flags & VSOCK_SHUTDOWN_SEND) != 0;
	c->guest_deaf |= (p->flags & VSOCK_SHUTDOWN_RCV) != 0;
	if (c->guest_eof && c->guest_deaf)
		on_closed(c, p, had_ended);
	else if (c->state == CONN_RELAY)
		end_to_client(c);
}

static void on_credit_update(struct vsock_conn *c, const struct vsock_packet *p)
{
}

static void on_credit_request(struct vsock_conn *c, const struct vsock_packet *p)
{
	if (c->state <= CONN_LINGER)
		conn_want(c, WANT_UPDATE);
}

static void on_request(struct vsock_conn *c, const struct vsock_packet *p)
{
	break_rule(c, "a request on a connection");
}

static void (*const handlers[VSOCK_OP_COUNT])(struct vsock_conn *c, const struct vsock_packet *p) = {
	[VSOCK_OP_REQUEST] = on_request,
	[VSOCK_OP_RESPONSE] = on_response,
	[VSOCK_OP_RST] = on_reset,
	[VSOCK_OP_SHUTDOWN] = on_shutdown,
	[VSOCK_OP_CREDIT_UPDATE] = on_credit_update,
	[VSOCK_OP_CREDIT_REQUEST] = on_credit_request,
};

/* The header, and where the payload is. false: there is none, or it is not for us. */
static bool read_packet(const struct vsock *v, const struct vring_chain *ch, struct vsock_packet *p)
{
	uint8_t bytes[VSOCK_PACKET_HEADER];
	size_t have = 0;

	if (ch->out_len < sizeof(bytes) || ch->n_in)
		return false;
	for (unsigned i = 0; have < sizeof(bytes); i++) {
		size_t n = MIN(ch->iov[i].iov_len, sizeof(bytes) - have);

		memcpy(bytes + have, ch->iov[i].iov_base, n);
		have += n;
	}
	vsock_packet_decode(bytes, p);
	return p->src_cid == v->guest_cid && p->dst_cid == VSOCK_CID_HOST;
}

static void add_payload(struct run *run, const struct vring_chain *ch, uint32_t len)
{
	size_t skip = VSOCK_PACKET_HEADER;
	uint32_t left = len;

	for (unsigned i = 0; i < ch->n_out && left > 0; i++) {
		struct iovec v = ch->iov[i];
		size_t n = MIN(skip, v.iov_len);

		skip -= n;
		v.iov_base = (uint8_t *)v.iov_base + n;
		v.iov_len = MIN(v.iov_len - n, (size_t)left);
		if (v.iov_len == 0)
			continue;
		run->iov[run->n_iov++] = v;
		left -= (uint32_t)v.iov_len;
	}
	run->len += len;
	run->n_packets++;
}

/* May these bytes come, after those of the run? NULL, or the rule they break. */
static const char *bytes_allowed(const struct vsock_conn *c, const struct run *run, uint32_t len)
{
	if (c->state == CONN_CONNECTING)
		return "bytes before a response";
	if (c->framed ? c->guest_done : c->guest_eof)
		return "bytes after the end";
	if ((int32_t)(c->edge - (c->received + run->len + len)) < 0)
		return "more bytes than it had credit for";
	return NULL;
}

/* The packets behind the first that go on with the same connection. Whatever is
 * odd about one ends the run; it is looked at again as a first. */
static void extend_run(struct vsock_conn *c, struct run *run, unsigned have)
{
	struct vsock *v = c->v;

	while (run->n_packets < MIN(have, (unsigned)RUN_MAX)) {
		const struct vring_chain *ch = vring_peek(v->tx, run->n_packets);
		struct vsock_packet p;

		if (run->n_iov + ch->n_out > PIECES_MAX || !read_packet(v, ch, &p) ||
		    vsock_packet_check(&p, ch->out_len - VSOCK_PACKET_HEADER) ||
		    p.op != VSOCK_OP_RW || p.dst_port != c->host_port ||
		    p.src_port != c->guest_port || bytes_allowed(c, run, p.len) ||
		    !hear_credit(c, &p))
			return;
		add_payload(run, ch, p.len);
	}
}

static void on_bytes(struct vsock_conn *c, const struct vsock_packet *p, unsigned have,
		     struct run *run)
{
	const char *rule = bytes_allowed(c, run, p->len);

	if (rule) {
		break_rule(c, rule);
		return;
	}
	add_payload(run, vring_peek(c->v->tx, 0), p->len);
	if (c->state == CONN_RELAY && c->judged)
		extend_run(c, run, have);
	if (run->len)
		take_bytes(c, run);
}

static void on_packet(struct vsock *v, const struct vsock_packet *p, unsigned have, struct run *run)
{
	struct vsock_conn *c = conn_find(v, p->dst_port, p->src_port);
	const char *rule = vsock_packet_check(p, vring_peek(v->tx, 0)->out_len - VSOCK_PACKET_HEADER);

	if (!c || p->type != VSOCK_STREAM) {
		v->stats.rejected += rule != NULL;
		reply_reset(v, p);	/* also the answer to who wants to connect to us */
	} else if (c->state == CONN_RESETTING && p->op != VSOCK_OP_RST) {
		return;			/* it crossed our RST */
	} else if (c->guest_gone) {
		/* Our RST crossed this, or came after the guest's 8 s. What the
		 * client has yet to take is here. */
		reply_reset(v, p);
	} else if (rule) {
		break_rule(c, rule);
	} else if (!hear_credit(c, p)) {
		break_rule(c, "credit for bytes that were not sent");
	} else if (p->op == VSOCK_OP_RW) {
		on_bytes(c, p, have, run);
	} else {
		handlers[p->op](c, p);
	}
}

/* One packet, or a run of them; how many bytes of payload. */
static uint32_t take_packets(struct vsock *v, unsigned have)
{
	struct run run;
	struct vsock_packet p;

	run.n_iov = run.n_packets = 0;
	run.len = 0;
	if (read_packet(v, vring_peek(v->tx, 0), &p))
		on_packet(v, &p, have, &run);
	else
		v->stats.rejected++;
	for (unsigned i = 0; i < MAX(run.n_packets, 1u); i++)
		vring_push(v->tx, 0);
	vring_publish(v->tx);
	return run.len;
}

bool from_guest(struct vsock *v, uint32_t budget)
{
	uint32_t done = 0;

	/* However many answers wait for receive buffers: Linux takes nothing from us while
	 * too many of its own wait for us (virtio_transport_more_replies). */
	while (vsock_running(v)) {
		unsigned have;

		if (done >= budget)
			return true;
		have = vring_fetch(v->tx, VRING_AHEAD);
		if (have)
			done += VSOCK_PACKET_HEADER + take_packets(v, have);
		else if (!vring_kicks_on(v->tx))
			return false;
	}
	return false;
}
