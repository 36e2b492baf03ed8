/* relay.h - from a vsock connection of the host's to a TCP server in the guest
 *
 * One connection of the vsock per forwarded TCP connection, one after the other. The
 * host opens it ahead of time; when it has a client it sends where to (proto/relay.h)
 * and the client's first bytes. We connect, answer, and copy both ways:
 *
 *	what happens on one side		what the other side sees
 *	host's frame of length 0		FIN to the server
 *	server ends sending: read() gives 0	a frame of length 0
 *	server resets				what it sent before, then the vsock is
 *						closed
 *	the vsock ends				RST to the server
 *
 * All connections are served by one thread with an epoll of its own, because a
 * wake-up is what costs most here (under emulation a tenth of a millisecond, and
 * there are three per request): events are edge-triggered, a descriptor is
 * registered once, and one wake-up does all it can, from reading the request to
 * the server having it. Asking for room to write is put off until a write found
 * none: a vsock tells of room with every packet that comes in.
 *
 * What one connection holds is bounded: 128 KiB each way, and only while the
 * receiving socket is full; reading stops then and the kernel's window holds the
 * sender. One read per connection and turn, so that none starves another. What the
 * heap keeps of connections that ended goes back when all have been quiet for a
 * while, once: an idle thread sleeps without a deadline.
 */
#pragma once

#include <stdint.h>

#include "guestagent/dial.h"
#include "lib/base/error.h"
#include "proto/relay.h"

struct relay;

enum {
	RELAY_CONNECTIONS_MAX = 16384,
	RELAY_FRESH_MS = 1000,		/* idle for less: the host may just have a client for it */
	RELAY_REPLY_MS = 5,		/* "connected" waits for the server's first bytes */
	RELAY_MEMORY_MS = 50,		/* until it is tried again, … */
	RELAY_MEMORY_TRIES = 200,	/* … and so often without a byte that went */
	RELAY_QUIET_MS = 2000,		/* nothing moved for so long: memory is given back */
};

struct relay_options {		/* 0: the default */
	/* Fewer where RLIMIT_NOFILE allows fewer. One more closes the one that is idle for
	 * longest, or, when that is not long or there is none, itself. Idle ones have no limit
	 * of their own: the host gives clients to them and closes what it has too many of, and
	 * what it has just said to one is not here yet. */
	unsigned connections_max;
	/* Adds to where a connection may go besides the address itself, in front or
	 * behind. On the relay's thread. NULL: nowhere else. */
	void (*dial_more)(void *arg, struct dial *d);
	/* The CPU the thread is to run on, -1: any. On the relay's thread, every few
	 * seconds in which it has work. NULL: on any. */
	int (*cpu)(void *arg);
	void *arg;
};

struct relay_stats {
	unsigned connections, idle;	/* idle is part of connections */
	uint64_t accepted, relayed;	/* since the start */
	unsigned trims;			/* times memory was given back */
};

/* Starts the thread. */
int relay_new(const struct relay_options *opts, struct relay **ret, struct error *err);
/* A listening socket, taken. Of AF_VSOCK peers only the host is let in: no other
 * process of this guest gets a way from us to any address. RELAY_VSOCK_PORTS at most. */
void relay_listen(struct relay *r, int listen_fd);
/* A connected stream socket in the host's place, taken. */
void relay_add(struct relay *r, int fd);
/* Any thread. */
struct relay_stats relay_get_stats(struct relay *r);
/* Resets all connections; waits for the thread, which ends with its turn. */
void relay_free(struct relay *r);
