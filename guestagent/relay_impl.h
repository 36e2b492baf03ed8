/* relay_impl.h - what relay.c (thread, turns, waits) and relay_conn.c (one
 * connection) share; all of it belongs to the relay's thread
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "guestagent/relay.h"
#include "proto/relay.h"

/* One read: larger ones gain nothing (prototypes/vsock.md). With what is put around it
 * no more than two of the vsock's packets of 64 KiB. */
enum { RELAY_CHUNK = 128 * 1024 - sizeof(struct relay_reply) - 2 * RELAY_FRAME_HEAD };

enum relay_side { RELAY_HOST, RELAY_SERVER };

enum relay_state {
	RELAY_HELLO,		/* idle until the host says where to */
	RELAY_CONNECTING,	/* to the server */
	RELAY_OPEN,		/* bytes go both ways */
	RELAY_DRAINING,		/* the server was reset: what it sent goes to the host first */
	RELAY_DEAD,		/* freed at the end of this turn */
};

/* What a connection waits for by time. Each has its own queue in order of
 * deadlines, for each has one length. */
enum relay_wait {
	RELAY_WAIT_HELLO,	/* without a deadline: bounded by number */
	RELAY_WAIT_CONNECT,
	RELAY_WAIT_CONNECT_OR_NEXT,	/* another address is left */
	RELAY_WAIT_REPLY,
	RELAY_WAIT_MEMORY,	/* of the kernel's, for the host's bytes */
	RELAY_WAITS,
	RELAY_WAIT_NONE = RELAY_WAITS,
};

struct relay_end {
	int fd;			/* -1: none */
	bool readable, writable;
	bool asked_for_room;	/* EPOLLOUT is registered */
	bool hung_up;		/* an event told of an end: read on until it shows */
	bool failed;		/* … and that it was a reset */
	bool eof;		/* it will send no more */
	bool shut;		/* it was told that no more comes, or it is pending */
	uint8_t *pending;	/* what it did not take; NULL: nothing */
	uint32_t pending_at, pending_len;
};

struct relay_conn {
	struct relay *relay;
	struct relay_end ends[2];	/* by relay_side */
	enum relay_state state;
	enum relay_wait wait;
	bool reply_due;		/* goes in front of what the host gets first */
	bool server_broken;	/* does not take any more; what it sent is still read */
	bool done;		/* the host was told that all is through */
	bool bulk;		/* the host's last bytes were more than a small message */
	uint8_t held_reads;
	uint16_t held;		/* bytes in the host's queue that were passed on: relay_host.h */
	bool queued;		/* in `busy` */
	uint8_t dialled;	/* addresses tried */
	uint8_t silent;		/* the first that had to give way, counted from 1; 0: none yet */
	uint8_t starved;	/* times in a row that there was no memory for a byte */
	uint8_t hello_len;
	uint8_t frame_have, frame_head[RELAY_FRAME_HEAD];	/* of the host's next frame */
	uint32_t frame_left;	/* bytes of the host's frame still to come */
	struct relay_hello hello;
	uint64_t deadline_ms;
	TAILQ_ENTRY(relay_conn) waiting, busy;
	LIST_ENTRY(relay_conn) all;
};

TAILQ_HEAD(relay_queue, relay_conn);

struct relay_buffer {		/* the thread's one, for a read that is passed on at once */
	struct relay_reply reply;	/* right before it, to go in one write */
	uint8_t head[RELAY_FRAME_HEAD];
	uint8_t bytes[RELAY_CHUNK];
	uint8_t end[RELAY_FRAME_HEAD];	/* room for one, wherever the bytes end */
};

/* --- relay_conn.c ---------------------------------------------------------- */

/* @events: of epoll, on one side. */
void relay_conn_event(struct relay_conn *c, enum relay_side side, uint32_t events);
/* One read per direction; true: there is more to do at once. */
bool relay_conn_run(struct relay_conn *c);
/* What it waited for has not come. */
void relay_conn_timeout(struct relay_conn *c);
/* Both sides see a reset. */
void relay_conn_reset(struct relay_conn *c);

/* --- relay.c --------------------------------------------------------------- */

/* relay_new() is relay_open() and a thread that takes turns until it is told to stop;
 * relay_free() ends that, then relay_release() resets and frees. A fuzz target takes
 * the turns itself. */
int relay_open(const struct relay_options *opts, struct relay **ret, struct error *err);
/* Waits for events that long, -1: for ever. True: it had something to do, or has. */
bool relay_turn(struct relay *r, int timeout_ms);
void relay_release(struct relay *r);

struct relay_buffer *relay_get_buffer(struct relay *r);
/* A TCP socket of that family without delay, non-blocking; -errno. IPv4's is made ahead,
 * when nobody waits: making one takes an emulated guest a tenth of a millisecond. */
int relay_get_socket(struct relay *r, int family);
/* Registers the descriptor of one side, edge-triggered. -errno. */
int relay_watch(struct relay_conn *c, enum relay_side side, bool room);
/* … and that it wants to hear of room as well. */
void relay_watch_room(struct relay_conn *c, enum relay_side side);
void relay_wait_for(struct relay_conn *c, enum relay_wait wait);
void relay_dial_more(struct relay *r, struct dial *d);
void relay_count_relayed(struct relay *r);
/* A client was served: the heap may have something to give back. */
void relay_trim_later(struct relay *r);
/* Connections that are not idle. */
unsigned relay_count_busy(const struct relay *r);
/* Off all queues; freed when this turn's events are through. */
void relay_bury(struct relay_conn *c);
