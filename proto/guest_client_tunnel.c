#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/guest_client_impl.h"
#include "proto/status.h"
#include "proto/tunnel_io.h"

struct guest_tunnel {	/* owner: its user until `closed`, reset or close; then itself
			 * until its operations completed */
	struct tunnel_io io;
	struct guest_client *c;
	struct guest_tunnel *next, **pprev;
	struct guest_tunnel_callbacks cb;
	bool user_gone;
	bool opened;
	bool eof_told;
	bool turn_posted;

	struct rpc_tag status_tag;
	bool status_known;
	grpc_metadata_array initial, trailing;
	grpc_status_code status;
	grpc_slice status_text;
	struct error in_band;		/* what REFUSED or RESET said */
};

static struct guest_tunnel *from_io(struct tunnel_io *io)
{
	return container_of(io, struct guest_tunnel, io);
}

/* --- the end --------------------------------------------------------------- */

static void check_done(struct guest_tunnel *t)
{
	struct guest_client *c = t->c;

	if (!t->user_gone || t->status_tag.busy || t->turn_posted || !tunnel_io_idle(&t->io))
		return;
	*t->pprev = t->next;
	if (t->next)
		t->next->pprev = t->pprev;
	c->tunnel_count--;
	tunnel_io_done(&t->io);
	grpc_metadata_array_destroy(&t->initial);
	grpc_metadata_array_destroy(&t->trailing);
	grpc_slice_unref(t->status_text);
	free(t);
	heap_trim_later(c->loop);
	client_check_done(c);
}

static void on_turn(void *arg);

static void post_turn(struct guest_tunnel *t)
{
	if (t->turn_posted)
		return;
	t->turn_posted = true;
	loop_ref(t->c->loop);
	loop_post(t->c->loop, on_turn, t);
}

/* No callback any more. The rest happens in turns of its own. */
static void let_go(struct guest_tunnel *t)
{
	t->user_gone = true;
	tunnel_io_detach(&t->io, true);
	if (!t->status_known)
		grpc_call_cancel(t->io.call, NULL);
	post_turn(t);
}

static void abort_with(struct guest_tunnel *t, const struct error *why)
{
	if (t->user_gone)
		return;
	let_go(t);
	t->cb.closed(t->cb.arg, why);
}

/* The call ended: tell it, once all that came before was delivered. */
static void check_finished(struct guest_tunnel *t)
{
	struct error err = { 0 };
	char text[STATUS_TEXT_MAX];

	if (t->user_gone || !t->status_known || t->io.recv_tag.busy)
		return;
	if (t->status == GRPC_STATUS_OK && !t->in_band.code && !t->io.end_told)
		return;		/* paused, or a message is being delivered */
	rpc_slice_text(t->status_text, text, sizeof(text));
	if (t->in_band.code)
		err = t->in_band;
	else if (t->status != GRPC_STATUS_OK)
		status_set_error(&err, t->status, text);
	else if (!t->opened)
		error_set(&err, -EPROTO, "the guest agent ended the tunnel before it was open");
	if (!err.code && !t->eof_told && !t->io.udp) {
		t->eof_told = true;	/* a peer without kinds: the status is its EOF */
		t->cb.eof(t->cb.arg);
	}
	abort_with(t, &err);
}

static void on_status(struct rpc_tag *tag, bool ok)
{
	struct guest_tunnel *t = container_of(tag, struct guest_tunnel, status_tag);

	t->status_known = true;
	check_finished(t);
	check_done(t);
}

static void on_turn(void *arg)
{
	struct guest_tunnel *t = arg;

	t->turn_posted = false;
	loop_unref(t->c->loop);
	if (!t->user_gone && !t->opened) {	/* a peer without kinds: the stream runs */
		t->opened = true;
		t->cb.opened(t->cb.arg);
	}
	check_finished(t);
	check_done(t);
}

void client_tunnels_abort(struct guest_client *c, const struct error *why)
{
	/* nothing is freed before a later turn, so the list stays walkable */
	for (struct guest_tunnel *t = c->tunnels; t; t = t->next)
		abort_with(t, why);
}

bool client_tunnels_waiting(const struct guest_client *c)
{
	for (const struct guest_tunnel *t = c->tunnels; t; t = t->next) {
		if (!t->user_gone && !t->opened)
			return true;
	}
	return false;
}

/* --- what arrives ----------------------------------------------------------- */

static void protocol_error(struct guest_tunnel *t, const char *what)
{
	struct error err = { 0 };

	error_set(&err, -EPROTO, "guest agent: %s", what);
	abort_with(t, &err);
}

static bool got_data(struct guest_tunnel *t, const struct tunnel_head *head)
{
	if (t->opened && !t->eof_told)
		return true;
	protocol_error(t, t->opened ? "data after the end" : "data before the tunnel is open");
	return false;
}

static bool got_opened(struct guest_tunnel *t, const struct tunnel_head *head)
{
	if (t->opened)
		return false;
	t->opened = true;
	t->cb.opened(t->cb.arg);
	return false;
}

static bool got_eof(struct guest_tunnel *t, const struct tunnel_head *head)
{
	if (!t->opened) {
		protocol_error(t, "end of data before the tunnel is open");
	} else if (!t->eof_told) {
		t->eof_told = true;
		t->cb.eof(t->cb.arg);
	}
	return false;
}

/* Remembered; the status that follows ends the tunnel with it. */
static bool got_failure(struct guest_tunnel *t, const struct tunnel_head *head)
{
	scoped_free char *text = log_escape(head->error, STATUS_TEXT_MAX);
	int code = head->kind == TUNNEL_MESSAGE__KIND__RESET && head->error_number == 0 ?
			   -ECONNRESET :
			   status_errno_from_wire(head->error_number);

	if (*text)
		error_set(&t->in_band, code, "%s", text);
	else
		error_set(&t->in_band, code, "%s", error_text(code));
	return false;
}

static bool on_message(struct tunnel_io *io, const struct tunnel_head *head)
{
	static bool (*const got[])(struct guest_tunnel *t, const struct tunnel_head *head) = {
		[TUNNEL_MESSAGE__KIND__DATA] = got_data,
		[TUNNEL_MESSAGE__KIND__OPENED] = got_opened,
		[TUNNEL_MESSAGE__KIND__EOF] = got_eof,
		[TUNNEL_MESSAGE__KIND__RESET] = got_failure,
		[TUNNEL_MESSAGE__KIND__REFUSED] = got_failure,
	};
	struct guest_tunnel *t = from_io(io);

	t->c->heard = true;
	if ((unsigned)head->kind >= ARRAY_SIZE(got) || !got[head->kind])
		return false;	/* a kind of a later version: means nothing to us */
	return got[head->kind](t, head);
}

static void on_data(struct tunnel_io *io, const uint8_t *data, size_t len)
{
	struct guest_tunnel *t = from_io(io);

	t->cb.data(t->cb.arg, data, len);
}

static void on_end(struct tunnel_io *io)
{
	/* check_finished() follows when the operation settles */
}

static void on_bad(struct tunnel_io *io, const struct error *err)
{
	struct error why = *err;

	error_wrap(&why, "guest agent");
	abort_with(from_io(io), &why);
}

static void on_writable(struct tunnel_io *io)
{
	struct guest_tunnel *t = from_io(io);

	t->cb.writable(t->cb.arg);
}

static void on_settled(struct tunnel_io *io)
{
	struct guest_tunnel *t = from_io(io);

	check_finished(t);
	check_done(t);
}

static const struct tunnel_io_ops io_ops = {
	.message = on_message,
	.data = on_data,
	.end = on_end,
	.bad = on_bad,
	.writable = on_writable,
	.settled = on_settled,
};

/* --- the user's side --------------------------------------------------------- */

static void start_call(struct guest_tunnel *t)
{
	grpc_op ops[2] = {
		{ .op = GRPC_OP_RECV_INITIAL_METADATA },
		{ .op = GRPC_OP_RECV_STATUS_ON_CLIENT },
	};

	grpc_metadata_array_init(&t->initial);
	grpc_metadata_array_init(&t->trailing);
	t->status_text = grpc_empty_slice();
	rpc_tag_init(&t->status_tag, on_status);
	ops[0].data.recv_initial_metadata.recv_initial_metadata = &t->initial;
	ops[1].data.recv_status_on_client.trailing_metadata = &t->trailing;
	ops[1].data.recv_status_on_client.status = &t->status;
	ops[1].data.recv_status_on_client.status_details = &t->status_text;
	rpc_start(t->c->rpc, t->io.call, ops, ARRAY_SIZE(ops), &t->status_tag);
}

static void send_open(struct guest_tunnel *t, const char *protocol, const char *guest_addr)
{
	static uint64_t serial;
	struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__OPEN };

	snprintf(head.protocol, sizeof(head.protocol), "%s", protocol);
	snprintf(head.guest_addr, sizeof(head.guest_addr), "%s", guest_addr);
	if (t->c->legacy) {	/* the same fields in every message, no kind */
		head.kind = TUNNEL_MESSAGE__KIND__DATA;
		snprintf(head.id, sizeof(head.id), "%s-%s-%llu", protocol, guest_addr,
			 (unsigned long long)++serial);
		t->io.head = head;
	}
	tunnel_io_send(&t->io, &head);
}

int guest_tunnel_open(struct guest_client *c, int proto, const char *guest_addr,
		      const struct guest_tunnel_callbacks *cb, struct guest_tunnel **ret,
		      struct error *err)
{
	struct guest_tunnel *t;
	grpc_call *call;

	assert(proto == IPPROTO_TCP || proto == IPPROTO_UDP);
	if (c->state != CLIENT_READY)
		return error_set(err, -ENOTCONN, "tunnel to %s: no connection to the guest agent",
				 guest_addr);
	if (strlen(guest_addr) >= TUNNEL_ADDR_SIZE)
		return error_set(err, -EINVAL, "tunnel to %.64s…: address is too long", guest_addr);
	if (c->tunnel_count >= RPC_TUNNELS_MAX)
		return error_set(err, -EMFILE, "tunnel to %s: %d tunnels are open already",
				 guest_addr, RPC_TUNNELS_MAX);
	t = xnew(struct guest_tunnel);
	t->c = c;
	t->cb = *cb;
	call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
					rpc_queue(c->rpc),
					grpc_slice_from_static_string("/GuestService/Tunnel"), NULL,
					gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
	tunnel_io_init(&t->io, &io_ops, c->rpc, call);
	t->io.udp = proto == IPPROTO_UDP;
	t->next = c->tunnels;
	t->pprev = &c->tunnels;
	if (t->next)
		t->next->pprev = &t->next;
	c->tunnels = t;
	c->tunnel_count++;
	start_call(t);
	send_open(t, proto == IPPROTO_TCP ? "tcp" : "udp", guest_addr);
	tunnel_io_receive(&t->io);
	if (c->legacy)
		post_turn(t);
	else
		client_watch(c);
	*ret = t;
	return 0;
}

bool guest_tunnel_write(struct guest_tunnel *t, uint8_t *data, size_t len)
{
	return tunnel_io_write(&t->io, data, len);
}

void guest_tunnel_eof(struct guest_tunnel *t)
{
	const struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__EOF };

	if (!t->c->legacy)
		tunnel_io_send(&t->io, &head);
	tunnel_io_finish_client(&t->io);
}

void guest_tunnel_pause(struct guest_tunnel *t)
{
	tunnel_io_pause(&t->io);
}

void guest_tunnel_resume(struct guest_tunnel *t)
{
	tunnel_io_resume(&t->io);
}

void guest_tunnel_reset(struct guest_tunnel *t)
{
	assert(!t->user_gone);
	let_go(t);
}

void guest_tunnel_close(struct guest_tunnel *t)
{
	assert(!t->user_gone);
	let_go(t);
}
