/* guest_server.h - the guest agent's end of GuestService
 *
 * Listens on a UNIX socket or AF_VSOCK, and serves the virtio-serial port
 * through link.h: handshake, then a fresh transport per host connection. Any
 * number of hosts may be connected; each gets its own snapshot and event stream.
 * Lima's host agent is a peer too: it sends no kinds and gets none.
 *
 * All callbacks on the loop thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "proto/guestservice.pb-c.h"
#include "proto/rpc.h"

struct guest_server;
struct guest_stream;		/* one tunnel, server side */

struct guest_server_callbacks {
	/* Fill a message that lives until the next call; the server packs it. */
	const Info *(*get_info)(void *arg);
	/* A full list (snapshot = true, current revision) for a new listener. */
	const Event *(*get_snapshot)(void *arg);
	/* Steps the clock if need be and fills the answer. */
	void (*sync_time)(void *arg, const TimeSyncRequest *req, TimeSyncResponse *res);
	/* A mount path changed on the host; may be NULL. */
	void (*inotify)(void *arg, const Inotify *msg);
	/* The first message of a tunnel; the agent connects and answers with
	 * guest_stream_opened() or guest_stream_refused(). Set callbacks with
	 * guest_stream_set_callbacks() before returning. @guest_addr is bounded
	 * (≤ 64 bytes) but otherwise as the peer sent it. */
	void (*tunnel)(void *arg, struct guest_stream *s, int proto, const char *guest_addr);
	void *arg;
};

int guest_server_new(struct loop *loop, struct rpc *rpc, const struct guest_server_callbacks *cb,
		     struct guest_server **ret, struct error *err);
/* A UNIX socket: stale one removed, 0600, owned by @owner. */
int guest_server_listen_unix(struct guest_server *s, const char *path, uid_t owner,
			     struct error *err);
/* AF_VSOCK @port; peers other than the host (CID 2) are dropped. */
int guest_server_listen_vsock(struct guest_server *s, unsigned port, struct error *err);
/* A character device such as /dev/virtio-ports/NAME; @secret as in link.h. */
int guest_server_serve_port(struct guest_server *s, const char *device, const uint8_t *secret,
			    struct error *err);
/* One connected descriptor, taken also on failure; with @secret (or NULL) the
 * link handshake runs on it as on a port. For tests. */
int guest_server_serve_fd(struct guest_server *s, int fd, const uint8_t *secret,
			  struct error *err);
/* Sends @event to every listener. The caller has set revision. */
void guest_server_publish(struct guest_server *s, const Event *event);
/* Cancels all, closes; @closed runs last. */
void guest_server_close(struct guest_server *s, void (*closed)(void *arg), void *arg);

struct guest_stream_callbacks {
	/* TCP bytes or one UDP datagram; @len may be 0 for UDP. Borrowed. */
	void (*data)(void *arg, const uint8_t *data, size_t len);
	void (*eof)(void *arg);		/* the host's client half-closed */
	void (*writable)(void *arg);	/* after guest_stream_write() returned false */
	/* The end: both sides done (0), reset by the client (-ECONNRESET), or the
	 * link is gone. The stream is freed after this. */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

void guest_stream_set_callbacks(struct guest_stream *s, const struct guest_stream_callbacks *cb);
void guest_stream_opened(struct guest_stream *s);
/* @code: -errno of connect(). Ends the stream; `closed` follows. */
void guest_stream_refused(struct guest_stream *s, int code);
/* As guest_tunnel_write(): takes @data, false when too much waits. */
bool guest_stream_write(struct guest_stream *s, uint8_t *data, size_t len);
/* What waits in all streams together is much (64 MiB): hand over little at a time, one
 * write and then none until `writable`. */
bool guest_stream_crowded(const struct guest_stream *s);
void guest_stream_eof(struct guest_stream *s);
void guest_stream_pause(struct guest_stream *s);
void guest_stream_resume(struct guest_stream *s);
/* The guest's socket was reset: tells the host; no further callback, frees. */
void guest_stream_reset(struct guest_stream *s, int code);
