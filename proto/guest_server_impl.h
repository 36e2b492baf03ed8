/* guest_server_impl.h - what the guest_server*.c files share
 *
 * Each accepted call belongs to an object of its own (a plain call, an event
 * listener, a stream) that frees itself when its operations completed and then
 * calls server_check_done().
 */
#pragma once

#include "proto/guest_server.h"
#include "proto/link_guest.h"
#include "proto/rpc_queue.h"

enum {
	SERVER_CALLS_AHEAD = 8,		/* calls asked for before they come */
	SERVER_LISTENERS = 4,		/* listening sockets */
};

struct server_incoming {
	struct rpc_tag tag;
	struct guest_server *server;
	grpc_call *call;
	grpc_call_details details;
	grpc_metadata_array metadata;
};

struct server_socket {
	uv_poll_t poll;
	struct guest_server *server;
	int fd;
	int spare_fd;	/* given up for a moment when there are no more */
	bool vsock;
};

struct event_listener;
struct server_call;

struct guest_server {	/* owner: the caller of new until close, then itself */
	struct loop *loop;
	struct rpc *rpc;
	struct guest_server_callbacks cb;
	grpc_server *server;
	struct server_incoming incoming[SERVER_CALLS_AHEAD];
	struct server_socket *sockets[SERVER_LISTENERS];
	unsigned sockets_open;		/* handles not closed yet */
	struct link_guest *link;

	struct event_listener *listeners;
	struct guest_stream *streams;
	unsigned stream_count;
	size_t queued_bytes;		/* that wait in all streams together */
	unsigned calls;			/* plain calls under way */

	bool closing;
	struct rpc_tag shutdown_tag;
	bool shut_down;
	void (*closed)(void *arg);
	void *closed_arg;
};

void server_check_done(struct guest_server *s);

/* Each takes @call. */
void server_get_info(struct guest_server *s, grpc_call *call);
void server_sync_time(struct guest_server *s, grpc_call *call);
void server_post_inotify(struct guest_server *s, grpc_call *call);
void server_unknown_method(struct guest_server *s, grpc_call *call);
void server_get_events(struct guest_server *s, grpc_call *call);
void server_tunnel(struct guest_server *s, grpc_call *call);

/* Ends every stream: `closed` with -ECANCELED. */
void server_streams_abort(struct guest_server *s);
