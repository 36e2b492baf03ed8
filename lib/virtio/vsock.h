/* vsock.h - the guest's vsock device, played by this process
 *
 * QEMU's vhost-user-vsock-pci hands us the guest's memory and its two rings over
 * a unix socket (vhost_user.h); from then on packets go between the guest's
 * driver and this process without QEMU (virtio 1.2 §5.10; QEMU docs/interop/
 * vhost-user). We are the host of that vsock, CID 2, all of it: no kernel module
 * and no privilege is needed, and nobody but this process sees the connections.
 *
 *	guest driver ──tx ring──▶ vsock ──writev──▶ client's socket
 *	guest driver ◀──rx ring── vsock ◀──readv─── client's socket
 *
 * Bytes of a relayed connection go from the socket right into the guest's posted
 * buffers and back. Only what a slow client does not take at once is copied, and
 * bounded by the credit that we gave.
 *
 * Everything in memory shared with the guest is read once, checked, then used. A
 * packet that breaks the rules costs its connection; a ring that does, the
 * device: it stops until the guest resets it (`down`).
 *
 * All calls and callbacks on the loop thread. No callback runs before the call
 * that asked for it returned.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

enum {
	VSOCK_CID_HOST = 2,
	VSOCK_CID_GUEST_MIN = 3,
	VSOCK_PROLOGUE_MAX = 64,
};

struct vsock;
struct vsock_conn;

struct vsock_limits {			/* 0: the default */
	unsigned max_connections;	/* 16384 */
	uint32_t buffer_bytes;		/* credit we give to one connection; 1 MiB */
	uint64_t buffered_max;		/* what all connections may have waiting for their
					 * clients; 256 MiB. Beyond it the fullest is reset */
	unsigned connect_ms;		/* the guest answers a request; 5 s */
	unsigned close_ms;		/* … and a shutdown; 10 s, then it is reset */
};

struct vsock_options {
	struct loop *loop;
	uint32_t guest_cid;
	struct vsock_limits limits;
	/* The guest's driver runs: connections can be made. / It was started anew,
	 * broke a ring, or QEMU hung up: all connections end, then this says why.
	 * A machine that is paused stays up: what runs goes on after it. */
	void (*up)(void *arg);
	void (*down)(void *arg, const struct error *why);
	void *arg;
};

struct vsock_stats {
	unsigned connections;
	uint64_t buffered;		/* waiting for clients now */
	uint64_t to_guest, from_guest;	/* payload bytes */
	uint64_t rejected;		/* packets and descriptors that broke the rules */
};

/* @listen_fd: listening unix socket for QEMU to connect to; taken, also on
 * failure. One QEMU at a time; after it hung up the next one may come. */
int vsock_new(const struct vsock_options *opts, int listen_fd, struct vsock **ret,
	      struct error *err);
bool vsock_is_up(const struct vsock *v);
/* The machine was reset or powered off (QMP RESET, SHUTDOWN). A pause looks the
 * same on the rings, so without this, connections of a guest that reboots end
 * only when its driver is back. */
void vsock_guest_was_reset(struct vsock *v);
void vsock_get_stats(const struct vsock *v, struct vsock_stats *ret);
/* Resets all connections (no callback of theirs follows); @closed when all
 * handles are gone, then it is freed. */
void vsock_close(struct vsock *v, void (*closed)(void *arg), void *arg);

/* --- connections ---------------------------------------------------------- */

/* A connection is being made until `opened`, idle until vsock_conn_relay(), then
 * relays. `ended` comes at most once, last, and frees the connection; it does not
 * come after vsock_conn_reset(), which frees as well. */
struct vsock_conn_callbacks {
	void (*opened)(void *arg);
	/* A framed relay: both directions ended in order, as far as the client sees. */
	void (*finished)(void *arg);
	/* … and the guest's end is through with it as well: as after `opened`. */
	void (*idle)(void *arg);
	/* why->code: 0 both directions ended in order, -ECONNREFUSED nobody listens,
	 * -ECONNRESET reset by the guest, -ETIMEDOUT, -ECANCELED the device went
	 * down, -EPIPE or another errno of the client's socket: the guest was reset. */
	void (*ended)(void *arg, const struct error *why);
	void *arg;
};

/* To @port of the guest. -ENOTCONN: not up; -EMFILE: max_connections. */
int vsock_connect(struct vsock *v, uint32_t port, const struct vsock_conn_callbacks *cb,
		  struct vsock_conn **ret, struct error *err);

struct vsock_relay {
	int fd;			/* non-blocking stream socket of the client, in no other loop
				 * handle; borrowed until `ended` or reset. Whoever closes it
				 * decides by why->code between FIN and RST */
	const void *hello;	/* sent to the guest first, copied; at most VSOCK_PROLOGUE_MAX */
	size_t hello_len;
	/* The first bytes from the guest are not the client's: so many of them go
	 * to @prologue instead, which says 0, or an errno to reset with (`ended` gets
	 * it). The client's bytes go to the guest without waiting for them. */
	size_t prologue_len;
	int (*prologue)(void *arg, const uint8_t *bytes);	/* arg: the callbacks' */
	/* Behind hello and prologue both directions are frames (vsock_frame.h), whose
	 * ends are those of the client's stream. An end of the connection itself is a
	 * reset then, unless both have come before. */
	bool framed;
	uint64_t *to_guest, *from_guest;	/* counted up; the client's bytes; may be NULL */
};

/* After `opened` or `idle`. From here on the client's FIN becomes SHUTDOWN(SEND),
 * the guest's SHUTDOWN(SEND) FIN, and a reset on one side one on the other.
 *
 * A guest that shuts down both directions at once, its sending one not having
 * ended before, means a reset: that is what close() without shutdown() does
 * there, the only way a Linux program has to say so. */
void vsock_conn_relay(struct vsock_conn *c, const struct vsock_relay *relay);
/* Bytes were taken from the client (of a framed relay: from the last one). In `ended`,
 * too. */
bool vsock_conn_has_moved(const struct vsock_conn *c);
void vsock_conn_reset(struct vsock_conn *c);
