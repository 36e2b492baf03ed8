/* tunnel_io.h - one Tunnel call, the part that client and server share
 *
 * Sending: a queue of which one message is in gRPC's hands at a time (it takes
 * no second SEND_MESSAGE on a call). While more waits behind it the message goes
 * with GRPC_WRITE_BUFFER_HINT, which completes it early and keeps the pipe full;
 * the last one goes without, or it would stay buffered.
 *
 * Receiving: one RECV_MESSAGE at a time, none while paused. HTTP/2 flow control
 * then holds back this stream's peer, and only it. A message that arrives while
 * paused waits here, so at most one message per tunnel does.
 *
 * The owner embeds a tunnel_io, supplies the functions below, and may free
 * itself only when tunnel_io_idle() says so. All on the loop thread.
 */
#pragma once

#include <grpc/grpc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/rpc_queue.h"
#include "proto/tunnel_wire.h"

enum {
	TUNNEL_QUEUE_HIGH = 256 << 10,	/* more than this waits: stop writing */
	TUNNEL_QUEUE_LOW = 128 << 10,	/* less again: `writable` */
	TUNNEL_CHUNK_MAX = 256 << 10,	/* data bytes of one message we send */
	TUNNEL_ALL_HIGH = 64 << 20,	/* more than this waits in all tunnels of a server:
					 * each stops after each message */
};

struct tunnel_io;

struct tunnel_io_ops {
	/* A message arrived, in order. True: its data is to be delivered. May
	 * pause or detach. */
	bool (*message)(struct tunnel_io *io, const struct tunnel_head *head);
	/* A piece of a TCP stream, one whole message if that is small, or one whole
	 * datagram. May pause or detach. */
	void (*data)(struct tunnel_io *io, const uint8_t *data, size_t len);
	/* No further message: the peer closed its sending side, or the call is
	 * over. Once. */
	void (*end)(struct tunnel_io *io);
	/* What came is not acceptable; nothing further is received. */
	void (*bad)(struct tunnel_io *io, const struct error *err);
	void (*writable)(struct tunnel_io *io);
	/* An operation completed; the owner may be able to go. Last use of @io. */
	void (*settled)(struct tunnel_io *io);
};

struct tunnel_send;

struct tunnel_io {
	const struct tunnel_io_ops *ops;
	struct rpc *rpc;
	grpc_call *call;
	struct tunnel_head head;	/* goes with every DATA message: empty, or what
					 * a peer without kinds expects there */
	bool udp;

	struct rpc_tag send_tag;
	struct tunnel_send *send_head, **send_tail;
	grpc_byte_buffer *sending;	/* in gRPC's hands */
	size_t sending_len;
	size_t queued_bytes;		/* in the queue and in `sending` */
	size_t *all_queued;		/* the sum of all tunnels'; NULL: not counted */
	bool headers_sent;
	bool finish_wanted;		/* `finish` goes with the last message */
	bool finished;			/* … and was handed to gRPC */
	bool send_failed;
	bool want_writable;
	grpc_op finish;
	grpc_slice finish_text;

	struct rpc_tag recv_tag;
	grpc_byte_buffer *received;	/* written by gRPC */
	grpc_byte_buffer *inbox;	/* being delivered, or waiting for resume */
	struct tunnel_data data;	/* what of inbox is not delivered yet */
	bool inbox_read;		/* its head was handled */
	bool ended, end_told;
	bool paused;
	bool delivering;
	unsigned nested;		/* completions being handled: not idle yet */
	bool detached;			/* the owner wants no more callbacks but settled */
	bool resume_posted;
};

void tunnel_io_init(struct tunnel_io *io, const struct tunnel_io_ops *ops, struct rpc *rpc,
		    grpc_call *call);
/* Frees the queue and drops the call. Only when idle. */
void tunnel_io_done(struct tunnel_io *io);
/* No operation is under way. */
bool tunnel_io_idle(const struct tunnel_io *io);

/* Starts, or goes on, receiving. */
void tunnel_io_receive(struct tunnel_io *io);
void tunnel_io_pause(struct tunnel_io *io);
void tunnel_io_resume(struct tunnel_io *io);

/* Takes @data. False when more than TUNNEL_QUEUE_HIGH waits, or anything while the
 * tunnels are crowded. Dropped silently after finish or failure. */
bool tunnel_io_write(struct tunnel_io *io, uint8_t *data, size_t len);
/* All tunnels together hold more than TUNNEL_ALL_HIGH. */
bool tunnel_io_crowded(const struct tunnel_io *io);
/* A message without data. */
void tunnel_io_send(struct tunnel_io *io, const struct tunnel_head *head);
/* Only the initial metadata, if nothing was sent so far. */
void tunnel_io_send_headers(struct tunnel_io *io);
/* Ends our sending side after what is queued: as client by closing it, as server
 * with a status, which ends the call. */
void tunnel_io_finish_client(struct tunnel_io *io);
void tunnel_io_finish_server(struct tunnel_io *io, grpc_status_code status, const char *text);

/* Forgets the owner's user: no callback but settled from here on, received
 * things are dropped. What is queued is still sent, unless @drop_queue. */
void tunnel_io_detach(struct tunnel_io *io, bool drop_queue);
