/* guest_client_impl.h - what guest_client.c and guest_client_tunnel.c share */
#pragma once

#include "proto/guest_client.h"
#include "proto/link_host.h"
#include "proto/rpc_queue.h"
#include "proto/unary.h"

enum client_state {	/* only ever goes down this list */
	CLIENT_LINKING,		/* handshake on the serial channel */
	CLIENT_GREETING,	/* GetInfo is under way */
	CLIENT_READY,
	CLIENT_LOST,		/* `lost` was called; waits for guest_client_close() */
	CLIENT_CLOSING,		/* waits for operations to complete */
};

enum { CLIENT_UNARY_MAX = 8 };

struct client_events {
	grpc_call *call;
	struct rpc_tag whole_tag;	/* request sent … status received */
	struct rpc_tag recv_tag;
	grpc_byte_buffer *request, *received;
	grpc_metadata_array initial, trailing;
	grpc_status_code status;
	grpc_slice status_text;
	uint64_t revision;	/* of the last event; 0: the peer does not count */
	bool again;		/* the call is being ended, to make it once more */
	uint64_t again_ms;	/* when that was last done, 0: never */
};

struct guest_client {	/* owner: the caller of new until close, then itself until all
			 * operations completed */
	struct loop *loop;
	struct rpc *rpc;
	struct guest_client_callbacks cb;
	enum client_state state;
	unsigned features;
	bool legacy;			/* Lima's agent: none of our features */

	struct link_host *link;
	grpc_channel *channel;
	uv_timer_t timer;		/* connect timeout; from ready on: the probe */
	bool timer_closed;
	unsigned patience_ms;
	bool paused;			/* the machine: no answer can come */
	bool asking;			/* a question that finds out if it is still there */
	bool heard;			/* something came since it was asked */

	struct unary *unary[CLIENT_UNARY_MAX];	/* under way, to cancel them */
	struct client_events events;
	struct guest_tunnel *tunnels;	/* all that are not freed */
	unsigned tunnel_count;

	void (*closed)(void *arg);
	void *closed_arg;
};

/* Frees the client when it is closing and nothing is under way. Last use. */
void client_check_done(struct guest_client *c);
/* Somebody waits for the guest: find out soon if it is still there. */
void client_watch(struct guest_client *c);

/* Ends every tunnel with @why. */
void client_tunnels_abort(struct guest_client *c, const struct error *why);
bool client_tunnels_waiting(const struct guest_client *c);
