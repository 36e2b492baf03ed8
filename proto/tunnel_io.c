#include "proto/tunnel_io.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

enum {
	/* Up to this many data bytes are cheaper copied behind their head than carried
	 * as a slice of their own: one iovec less, no reference count. */
	COPY_MAX = 1024,
	WHOLE_MAX = 1024,	/* received in pieces, delivered in one */
	MESSAGE_COST = 64,	/* counted for each message beside its data */
};

struct tunnel_send {
	struct tunnel_send *next;
	grpc_byte_buffer *message;
	size_t len;
};

/* Around the handling of a completion: callbacks into the owner may make it want
 * to free itself, which has to wait for the last line here. */
static void enter(struct tunnel_io *io)
{
	io->nested++;
}

static void leave(struct tunnel_io *io)
{
	io->nested--;
	io->ops->settled(io);
}

static void on_sent(struct rpc_tag *tag, bool ok);
static void on_received(struct rpc_tag *tag, bool ok);

void tunnel_io_init(struct tunnel_io *io, const struct tunnel_io_ops *ops, struct rpc *rpc,
		    grpc_call *call)
{
	*io = (struct tunnel_io){ .ops = ops, .rpc = rpc, .call = call };
	io->send_tail = &io->send_head;
	io->finish_text = grpc_empty_slice();
	rpc_tag_init(&io->send_tag, on_sent);
	rpc_tag_init(&io->recv_tag, on_received);
}

bool tunnel_io_idle(const struct tunnel_io *io)
{
	return !io->send_tag.busy && !io->recv_tag.busy && !io->resume_posted && io->nested == 0;
}

static void count_queued(struct tunnel_io *io, size_t more, size_t less)
{
	io->queued_bytes += more - less;
	if (io->all_queued)
		*io->all_queued += more - less;
}

bool tunnel_io_crowded(const struct tunnel_io *io)
{
	return io->all_queued && *io->all_queued > TUNNEL_ALL_HIGH;
}

static void drop_queue(struct tunnel_io *io)
{
	while (io->send_head) {
		struct tunnel_send *item = io->send_head;

		io->send_head = item->next;
		grpc_byte_buffer_destroy(item->message);
		count_queued(io, 0, item->len);
		free(item);
	}
	io->send_tail = &io->send_head;
}

static void drop_inbox(struct tunnel_io *io)
{
	if (io->inbox)
		grpc_byte_buffer_destroy(io->inbox);
	io->inbox = NULL;
	io->inbox_read = false;
}

void tunnel_io_done(struct tunnel_io *io)
{
	assert(tunnel_io_idle(io));
	drop_queue(io);
	drop_inbox(io);
	grpc_slice_unref(io->finish_text);
	if (io->call)
		grpc_call_unref(io->call);
	io->call = NULL;
}

/* --- sending ------------------------------------------------------------- */

/* Hands the next message, or the end, to gRPC. */
static void send_next(struct tunnel_io *io)
{
	struct tunnel_send *item = io->send_head;
	bool finish = io->finish_wanted && !io->finished && (!item || !item->next);
	grpc_op ops[3] = { 0 };
	size_t n = 0;

	if (io->send_tag.busy || io->send_failed || (!item && !finish))
		return;
	if (!io->headers_sent) {
		ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
		io->headers_sent = true;
	}
	if (item) {
		io->send_head = item->next;
		if (!io->send_head)
			io->send_tail = &io->send_head;
		io->sending = item->message;
		io->sending_len = item->len;
		free(item);
		ops[n].op = GRPC_OP_SEND_MESSAGE;
		ops[n].data.send_message.send_message = io->sending;
		ops[n++].flags = io->send_head ? GRPC_WRITE_BUFFER_HINT : 0;
	}
	if (finish) {
		ops[n++] = io->finish;
		io->finished = true;
	}
	rpc_start(io->rpc, io->call, ops, n, &io->send_tag);
}

static void on_sent(struct rpc_tag *tag, bool ok)
{
	struct tunnel_io *io = container_of(tag, struct tunnel_io, send_tag);

	enter(io);
	if (io->sending)
		grpc_byte_buffer_destroy(io->sending);
	io->sending = NULL;
	count_queued(io, 0, io->sending_len);
	io->sending_len = 0;
	if (!ok) {	/* the call is over; how it ended is told by other means */
		io->send_failed = true;
		drop_queue(io);
	}
	send_next(io);
	if (io->want_writable && !io->send_failed && io->queued_bytes < TUNNEL_QUEUE_LOW) {
		io->want_writable = false;
		if (!io->detached)
			io->ops->writable(io);
	}
	leave(io);
}

static void queue_message(struct tunnel_io *io, grpc_slice *slices, size_t n, size_t len)
{
	struct tunnel_send *item = xnew(struct tunnel_send);

	len += MESSAGE_COST;
	item->message = grpc_raw_byte_buffer_create(slices, n);
	item->len = len;
	for (size_t i = 0; i < n; i++)
		grpc_slice_unref(slices[i]);
	*io->send_tail = item;
	io->send_tail = &item->next;
	count_queued(io, len, 0);
}

static bool can_send(const struct tunnel_io *io)
{
	return !io->finish_wanted && !io->send_failed;
}

bool tunnel_io_write(struct tunnel_io *io, uint8_t *data, size_t len)
{
	grpc_slice whole;

	if (!can_send(io) || (io->udp && len > TUNNEL_DATAGRAM_MAX) || (!io->udp && len == 0)) {
		free(data);
		return true;
	}
	/* as a full socket does */
	if (io->udp && io->queued_bytes > (size_t)(tunnel_io_crowded(io) ? 0 : TUNNEL_QUEUE_HIGH)) {
		free(data);
		io->want_writable = true;
		return false;
	}
	if (len <= COPY_MAX) {
		grpc_slice head = tunnel_wire_head(&io->head, len);
		size_t head_len = GRPC_SLICE_LENGTH(head);

		whole = grpc_slice_malloc(head_len + len);
		memcpy(GRPC_SLICE_START_PTR(whole), GRPC_SLICE_START_PTR(head), head_len);
		if (len > 0)
			memcpy(GRPC_SLICE_START_PTR(whole) + head_len, data, len);
		free(data);
		grpc_slice_unref(head);
		queue_message(io, &whole, 1, len);
	} else {
		whole = grpc_slice_new(data, len, free);
		for (size_t at = 0; at < len; at += TUNNEL_CHUNK_MAX) {
			size_t part = MIN(len - at, (size_t)TUNNEL_CHUNK_MAX);
			grpc_slice slices[2] = { tunnel_wire_head(&io->head, part),
						 grpc_slice_sub(whole, at, at + part) };

			queue_message(io, slices, 2, part);
		}
		grpc_slice_unref(whole);
	}
	send_next(io);
	if (io->queued_bytes <= TUNNEL_QUEUE_HIGH && !tunnel_io_crowded(io))
		return true;
	io->want_writable = true;
	return false;
}

void tunnel_io_send(struct tunnel_io *io, const struct tunnel_head *head)
{
	grpc_slice slice;

	if (!can_send(io))
		return;
	slice = tunnel_wire_head(head, 0);
	queue_message(io, &slice, 1, 0);
	send_next(io);
}

void tunnel_io_send_headers(struct tunnel_io *io)
{
	grpc_op op = { .op = GRPC_OP_SEND_INITIAL_METADATA };

	if (io->headers_sent)
		return;
	io->headers_sent = true;
	rpc_start(io->rpc, io->call, &op, 1, &io->send_tag);
}

void tunnel_io_finish_client(struct tunnel_io *io)
{
	if (io->finish_wanted)
		return;
	io->finish_wanted = true;
	io->finish = (grpc_op){ .op = GRPC_OP_SEND_CLOSE_FROM_CLIENT };
	send_next(io);
}

void tunnel_io_finish_server(struct tunnel_io *io, grpc_status_code status, const char *text)
{
	if (io->finish_wanted)
		return;
	io->finish_wanted = true;
	io->finish = (grpc_op){ .op = GRPC_OP_SEND_STATUS_FROM_SERVER };
	io->finish_text = grpc_slice_from_copied_string(text);
	io->finish.data.send_status_from_server.status = status;
	io->finish.data.send_status_from_server.status_details = &io->finish_text;
	send_next(io);
}

/* --- receiving ----------------------------------------------------------- */

static void tell_bad(struct tunnel_io *io, const struct error *err)
{
	drop_inbox(io);
	io->ended = io->end_told = true;	/* receive nothing further */
	io->ops->bad(io, err);
}

/* All that is left of the data: where it lies, or put together when it lies in several
 * slices; @ret_joined is the caller's to free. */
static const uint8_t *in_one_piece(struct tunnel_io *io, const grpc_slice *slices,
				   uint8_t **ret_joined)
{
	const uint8_t *piece = (const uint8_t *)"";
	size_t len = io->data.len, part = 0, at = 0;

	tunnel_wire_next(slices, &io->data, &piece, &part);
	if (part == len)
		return piece;
	*ret_joined = xmalloc(len);
	do {
		memcpy(*ret_joined + at, piece, part);
		at += part;
	} while (tunnel_wire_next(slices, &io->data, &piece, &part));
	return *ret_joined;
}

static void deliver_whole(struct tunnel_io *io, const grpc_slice *slices)
{
	scoped_free uint8_t *joined = NULL;
	size_t len = io->data.len;

	if (io->udp && len > TUNNEL_DATAGRAM_MAX) {
		struct error err = { 0 };

		error_set(&err, -EMSGSIZE, "datagram of %zu bytes", len);
		tell_bad(io, &err);
		return;
	}
	io->ops->data(io, in_one_piece(io, slices, &joined), len);
}

/* A small message may straddle two reads of the link. It stays in one piece: programs
 * that ask once for a short answer are wrong, but work over loopback. */
static void deliver_stream(struct tunnel_io *io, const grpc_slice *slices)
{
	const uint8_t *piece;
	size_t len;

	if (io->data.len > 0 && io->data.len <= WHOLE_MAX) {
		deliver_whole(io, slices);
		return;
	}
	while (!io->paused && !io->detached && tunnel_wire_next(slices, &io->data, &piece, &len))
		io->ops->data(io, piece, len);
}

/* Handles the head of a message; false when there is no data to deliver. */
static bool read_inbox(struct tunnel_io *io)
{
	const grpc_slice_buffer *sb = &io->inbox->data.raw.slice_buffer;
	struct tunnel_head head;
	struct error err = { 0 };

	io->inbox_read = true;
	if (io->inbox->data.raw.compression != GRPC_COMPRESS_NONE)
		error_set(&err, -EPROTO, "tunnel message is compressed");
	else
		tunnel_wire_read(sb->slices, sb->count, &head, &io->data, &err);
	if (err.code) {
		tell_bad(io, &err);
		return false;
	}
	return io->ops->message(io, &head) && !io->detached;
}

static void deliver_inbox(struct tunnel_io *io)
{
	const grpc_slice *slices = io->inbox->data.raw.slice_buffer.slices;

	if (!io->inbox_read && !read_inbox(io)) {
		drop_inbox(io);
		return;
	}
	if (io->paused || io->detached)
		return;		/* `message` did that: the rest waits */
	if (io->udp)
		deliver_whole(io, slices);
	else
		deliver_stream(io, slices);
	if (io->udp || io->data.len == 0)
		drop_inbox(io);
}

static void deliver(struct tunnel_io *io)
{
	if (io->delivering)
		return;
	io->delivering = true;
	if (io->inbox && !io->paused && !io->detached)
		deliver_inbox(io);
	if (io->detached)
		drop_inbox(io);
	if (io->ended && !io->inbox && !io->end_told && !io->paused && !io->detached) {
		io->end_told = true;
		io->ops->end(io);
	}
	io->delivering = false;
	tunnel_io_receive(io);
}

void tunnel_io_receive(struct tunnel_io *io)
{
	grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

	if (io->recv_tag.busy || io->inbox || io->ended || io->paused || io->detached ||
	    io->delivering)
		return;
	op.data.recv_message.recv_message = &io->received;
	rpc_start(io->rpc, io->call, &op, 1, &io->recv_tag);
}

static void on_received(struct rpc_tag *tag, bool ok)
{
	struct tunnel_io *io = container_of(tag, struct tunnel_io, recv_tag);

	enter(io);
	io->inbox = steal_ptr(&io->received);
	if (!io->inbox || !ok)
		io->ended = true;
	deliver(io);
	leave(io);
}

void tunnel_io_pause(struct tunnel_io *io)
{
	io->paused = true;
}

static void on_resume(void *arg)
{
	struct tunnel_io *io = arg;

	enter(io);
	io->resume_posted = false;
	loop_unref(rpc_loop(io->rpc));
	deliver(io);
	leave(io);
}

/* Delivery goes on in a turn of its own: never inside the caller's frame. */
void tunnel_io_resume(struct tunnel_io *io)
{
	if (!io->paused)
		return;
	io->paused = false;
	if (io->resume_posted || io->delivering)
		return;
	io->resume_posted = true;
	loop_ref(rpc_loop(io->rpc));
	loop_post(rpc_loop(io->rpc), on_resume, io);
}

void tunnel_io_detach(struct tunnel_io *io, bool drop)
{
	io->detached = true;
	io->paused = false;
	if (drop)
		drop_queue(io);
	if (!io->delivering)
		drop_inbox(io);
}
