#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/guest_server_impl.h"
#include "proto/status.h"
#include "proto/tunnel_io.h"

enum stream_state {
	STREAM_FIRST,		/* waits for the first message */
	STREAM_CONNECTING,	/* the agent was asked to connect */
	STREAM_OPEN,
};

struct guest_stream {	/* owner: the agent until `closed` or reset; then itself until its
			 * operations completed */
	struct tunnel_io io;
	struct guest_server *server;
	struct guest_stream *next, **pprev;
	struct guest_stream_callbacks cb;
	enum stream_state state;
	bool kinds;		/* the peer knows TunnelMessage.kind */
	bool user_gone;
	bool user_paused;
	bool eof_received, eof_sent;
	bool turn_posted;
	int end_code;		/* what `closed` tells when the call ended in order */

	struct rpc_tag close_tag;
	bool call_over;
	int cancelled;
};

static struct guest_stream *from_io(struct tunnel_io *io)
{
	return container_of(io, struct guest_stream, io);
}

/* --- the end --------------------------------------------------------------------- */

static void check_done(struct guest_stream *st)
{
	struct guest_server *s = st->server;

	if (!st->user_gone || !st->call_over || st->turn_posted || !tunnel_io_idle(&st->io))
		return;
	*st->pprev = st->next;
	if (st->next)
		st->next->pprev = st->pprev;
	s->stream_count--;
	tunnel_io_done(&st->io);
	free(st);
	heap_trim_later(s->loop);
	server_check_done(s);
}

/* What waits to be sent still goes. */
static void tell_closed(struct guest_stream *st, int code, const char *text)
{
	struct error err = { 0 };

	if (st->user_gone)
		return;
	st->user_gone = true;
	tunnel_io_detach(&st->io, false);
	if (code)
		error_set(&err, code, "%s", text);
	if (st->cb.closed)
		st->cb.closed(st->cb.arg, &err);
}

static void on_call_over(struct rpc_tag *tag, bool ok)
{
	struct guest_stream *st = container_of(tag, struct guest_stream, close_tag);

	st->call_over = true;
	if (st->server->closing)
		tell_closed(st, -ECANCELED, "the server is closing");
	else if (st->end_code)
		tell_closed(st, st->end_code, error_text(st->end_code));
	else if (st->cancelled && !st->io.udp)
		tell_closed(st, -ECONNRESET, "reset by the host, or the link to it is gone");
	else
		tell_closed(st, 0, "");
	check_done(st);
}

void server_streams_abort(struct guest_server *s)
{
	/* nothing is freed before the operations completed: the list stays walkable */
	for (struct guest_stream *st = s->streams; st; st = st->next)
		tell_closed(st, -ECANCELED, "the server is closing");
}

/* Both directions have ended: so does the call, after what is queued. */
static void check_both_ended(struct guest_stream *st)
{
	if (st->eof_received && st->eof_sent)
		tunnel_io_finish_server(&st->io, GRPC_STATUS_OK, "");
}

static void refuse_message(struct guest_stream *st, int code, const char *text)
{
	tunnel_io_finish_server(&st->io, status_from_errno(code), text);
	tell_closed(st, code, text);
}

/* --- what arrives ------------------------------------------------------------------ */

static bool addr_printable(const char *s)
{
	if (!*s)
		return false;
	for (; *s; s++) {
		if (!isgraph((unsigned char)*s))
			return false;
	}
	return true;
}

/* The first message: what to connect to. Nothing further is received until the
 * agent has. */
static bool got_first(struct guest_stream *st, const struct tunnel_head *head)
{
	struct guest_server *s = st->server;

	if (head->kind != TUNNEL_MESSAGE__KIND__OPEN && head->kind != TUNNEL_MESSAGE__KIND__DATA) {
		refuse_message(st, -EINVAL, "the first message of a tunnel must open it");
		return false;
	}
	if ((!streq(head->protocol, "tcp") && !streq(head->protocol, "udp")) ||
	    !addr_printable(head->guest_addr)) {
		refuse_message(st, -EINVAL, "a tunnel needs protocol tcp or udp and an address");
		return false;
	}
	st->kinds = head->kind == TUNNEL_MESSAGE__KIND__OPEN;
	if (!st->kinds)		/* Lima's host finds its own id in each answer */
		snprintf(st->io.head.id, sizeof(st->io.head.id), "%s", head->id);
	st->io.udp = streq(head->protocol, "udp");
	st->state = STREAM_CONNECTING;
	tunnel_io_pause(&st->io);
	s->cb.tunnel(s->cb.arg, st, st->io.udp ? IPPROTO_UDP : IPPROTO_TCP, head->guest_addr);
	return !st->kinds && st->io.data.len > 0;
}

static void got_eof(struct guest_stream *st)
{
	if (st->eof_received)
		return;
	st->eof_received = true;
	if (st->io.udp) {	/* no halves there: the flow is over */
		tunnel_io_finish_server(&st->io, GRPC_STATUS_OK, "");
		return;
	}
	st->cb.eof(st->cb.arg);
	if (!st->user_gone)
		check_both_ended(st);
}

static bool on_message(struct tunnel_io *io, const struct tunnel_head *head)
{
	struct guest_stream *st = from_io(io);

	if (st->state == STREAM_FIRST)
		return got_first(st, head);
	switch (head->kind) {
	case TUNNEL_MESSAGE__KIND__DATA:
		if (!st->eof_received)
			return true;
		refuse_message(st, -EPROTO, "data after the end");
		return false;
	case TUNNEL_MESSAGE__KIND__EOF:
		got_eof(st);
		return false;
	case TUNNEL_MESSAGE__KIND__RESET:
		tunnel_io_finish_server(io, GRPC_STATUS_ABORTED, "reset by the client");
		tell_closed(st, -ECONNRESET, "reset by the client");
		return false;
	default:
		return false;	/* a kind of a later version: means nothing to us */
	}
}

static void on_data(struct tunnel_io *io, const uint8_t *data, size_t len)
{
	struct guest_stream *st = from_io(io);

	st->cb.data(st->cb.arg, data, len);
}

static void on_turn(void *arg)
{
	struct guest_stream *st = arg;

	st->turn_posted = false;
	loop_unref(st->server->loop);
	if (!st->user_gone && !st->call_over)
		got_eof(st);
	check_done(st);
}

/* The client closed its side, or the call was cancelled, which looks the same
 * here. With kinds EOF was a message of its own. Without, end of file is told a
 * turn later: on_call_over() comes first if it was a cancellation, and a reset
 * must not reach the guest's server as a clean end. */
static void on_end(struct tunnel_io *io)
{
	struct guest_stream *st = from_io(io);

	if (st->state == STREAM_FIRST) {
		refuse_message(st, -EINVAL, "a tunnel without a first message");
	} else if (!st->kinds && !st->call_over) {
		st->turn_posted = true;
		loop_ref(st->server->loop);
		loop_post(st->server->loop, on_turn, st);
	}
}

static void on_bad(struct tunnel_io *io, const struct error *err)
{
	refuse_message(from_io(io), -EINVAL, err->msg);
}

static void on_writable(struct tunnel_io *io)
{
	struct guest_stream *st = from_io(io);

	st->cb.writable(st->cb.arg);
}

static void on_settled(struct tunnel_io *io)
{
	check_done(from_io(io));
}

static const struct tunnel_io_ops io_ops = {
	.message = on_message,
	.data = on_data,
	.end = on_end,
	.bad = on_bad,
	.writable = on_writable,
	.settled = on_settled,
};

void server_tunnel(struct guest_server *s, grpc_call *call)
{
	struct guest_stream *st = xnew(struct guest_stream);
	grpc_op op = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER };

	st->server = s;
	tunnel_io_init(&st->io, &io_ops, s->rpc, call);
	st->io.all_queued = &s->queued_bytes;
	rpc_tag_init(&st->close_tag, on_call_over);
	st->next = s->streams;
	st->pprev = &s->streams;
	if (st->next)
		st->next->pprev = &st->next;
	s->streams = st;
	op.data.recv_close_on_server.cancelled = &st->cancelled;
	rpc_start(s->rpc, call, &op, 1, &st->close_tag);
	if (s->stream_count++ >= RPC_TUNNELS_MAX)
		refuse_message(st, -EMFILE, "too many tunnels");
	else
		tunnel_io_receive(&st->io);
}

/* --- the agent's side ---------------------------------------------------------------- */

void guest_stream_set_callbacks(struct guest_stream *st, const struct guest_stream_callbacks *cb)
{
	st->cb = *cb;
}

void guest_stream_opened(struct guest_stream *st)
{
	const struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__OPENED };

	assert(st->state == STREAM_CONNECTING && !st->user_gone);
	st->state = STREAM_OPEN;
	if (st->kinds)
		tunnel_io_send(&st->io, &head);
	else
		tunnel_io_send_headers(&st->io);
	if (!st->user_paused)
		tunnel_io_resume(&st->io);
}

/* REFUSED or RESET: the kind says the number and the text to a peer that knows
 * it, the status that ends the call says them to any other. */
static void send_failure(struct guest_stream *st, TunnelMessage__Kind kind, int code,
			 grpc_status_code status)
{
	struct tunnel_head head = { .kind = kind, .error_number = status_errno_to_wire(code) };

	snprintf(head.error, sizeof(head.error), "%s", error_text(code));
	st->end_code = code;
	if (st->kinds)
		tunnel_io_send(&st->io, &head);
	tunnel_io_finish_server(&st->io, status, head.error);
}

void guest_stream_refused(struct guest_stream *st, int code)
{
	assert(code < 0 && !st->user_gone);
	send_failure(st, TUNNEL_MESSAGE__KIND__REFUSED, code, status_from_errno(code));
}

bool guest_stream_write(struct guest_stream *st, uint8_t *data, size_t len)
{
	return tunnel_io_write(&st->io, data, len);
}

bool guest_stream_crowded(const struct guest_stream *st)
{
	return tunnel_io_crowded(&st->io);
}

void guest_stream_eof(struct guest_stream *st)
{
	const struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__EOF };

	if (st->eof_sent)
		return;
	st->eof_sent = true;
	if (st->kinds) {
		tunnel_io_send(&st->io, &head);
		check_both_ended(st);
	} else {	/* a server cannot close its side alone, and the client waits for
			 * the end: it is the end of both */
		tunnel_io_finish_server(&st->io, GRPC_STATUS_OK, "");
	}
}

void guest_stream_pause(struct guest_stream *st)
{
	st->user_paused = true;
	tunnel_io_pause(&st->io);
}

void guest_stream_resume(struct guest_stream *st)
{
	st->user_paused = false;
	if (st->state == STREAM_OPEN)
		tunnel_io_resume(&st->io);
}

void guest_stream_reset(struct guest_stream *st, int code)
{
	assert(code < 0 && !st->user_gone);
	st->user_gone = true;
	send_failure(st, TUNNEL_MESSAGE__KIND__RESET, code, GRPC_STATUS_ABORTED);
	tunnel_io_detach(&st->io, false);
}
