/* vsock_device.h - what the files of the vsock device share; nobody else's
 *
 *	vsock.c			the device: rings start and stop, turns, timers
 *	vsock_conn.c		connections: table, states, credit we give, callbacks
 *	vsock_to_guest.c	rx ring: control packets, clients' bytes
 *	vsock_from_guest.c	tx ring: packets checked, bytes to clients
 *	vsock_frame.c		frames of one stream after another
 *
 * Work is done in turns. A turn takes what the guest sent, gives it what there is,
 * and only then, with nothing of ours on the stack, runs the callbacks that came
 * up (notices). What is freed meanwhile stays readable until the turn's end.
 */
#pragma once

#include <sys/queue.h>
#include <sys/uio.h>
#include <uv.h>

#include "lib/base/buf.h"
#include "lib/virtio/vhost_user.h"
#include "lib/virtio/vsock.h"
#include "lib/virtio/vsock_frame.h"
#include "lib/virtio/vsock_packet.h"

enum { RING_RX, RING_TX };		/* named by the guest; virtio 1.2 §5.10.2 */

enum conn_state {
	CONN_CONNECTING,	/* REQUEST queued or sent */
	CONN_OPEN,		/* no client yet */
	CONN_RELAY,
	CONN_REST,		/* framed: the client is served, the guest is not yet done */
	CONN_LINGER,		/* both directions ended; the guest has not closed it */
	CONN_RESETTING,		/* our RST waits for a buffer of the guest */
	CONN_GONE,		/* not in the table any more */
};

enum {				/* control packets to be sent, in this order */
	WANT_REQUEST = 1,
	WANT_UPDATE = 2,
	WANT_CREDIT = 4,
	WANT_SHUTDOWN = 8,
	WANT_RST = 16,
	WANT_SAY = 32,		/* what is in `say` goes, whether or not there is a client */
};

enum {
	NOTICE_OPENED = 1, NOTICE_PROLOGUE = 2, NOTICE_FINISHED = 4, NOTICE_IDLE = 8, NOTICE_ENDED = 16,
};

enum conn_queue { QUEUE_NONE, QUEUE_LIGHT, QUEUE_BULK };

struct vsock_conn {
	struct vsock *v;
	TAILQ_ENTRY(vsock_conn) in_queue;	/* light or bulk: has bytes for the guest */
	TAILQ_ENTRY(vsock_conn) in_control;	/* want != 0; of farewells too */
	TAILQ_ENTRY(vsock_conn) in_notices;	/* notices != 0 */
	TAILQ_ENTRY(vsock_conn) in_timed;	/* connecting or lingering, by deadline */
	TAILQ_ENTRY(vsock_conn) in_buffered;	/* buf.len > 0; also the graveyard's link */

	struct vsock_conn_callbacks cb;
	int code;			/* of NOTICE_ENDED */
	const char *text;
	uint64_t deadline;

	uint32_t guest_port, host_port;
	uint8_t state, queue, want, notices;
	bool attached : 1;		/* the owner has not been told the end */
	bool readable : 1, writable : 1;	/* as epoll's edges left the client's socket */
	bool hung_up : 1;		/* the client sent FIN: read on to the end */
	bool client_eof : 1;		/* read the client's end; ours is wanted, said or sent */
	bool guest_eof : 1;		/* SHUTDOWN(SEND) came, or a frame that is an end */
	bool guest_deaf : 1;		/* SHUTDOWN(RCV) came */
	bool guest_gone : 1;		/* closed in order; what is buffered goes to the client */
	bool client_shut : 1;		/* FIN sent to the client */
	bool judged : 1;		/* what precedes the client's bytes is through */
	bool moved : 1;
	bool framed : 1;
	bool guest_done : 1;		/* FRAME_DONE came */
	bool can_wait : 1;		/* want is in farewells and not in control */
	bool asked : 1;			/* lingering: CREDIT_REQUEST sent, deadline passed once */

	/* to the guest */
	uint32_t sent, peer_alloc, peer_fwd;	/* bytes sent; the guest's buffer, and consumed */
	uint32_t burst;			/* bytes since the client's socket was last empty */
	/* from the guest */
	uint32_t received, fwd;		/* bytes received; of these, gone to the client */
	uint32_t window, told_fwd;	/* as last told */
	uint32_t edge;			/* received may not pass this */

	int fd;				/* the client's; -1 */
	uint64_t *to_guest, *from_guest;
	struct buf buf;			/* for the client; its first buf_off are gone */
	size_t buf_off;
	int (*prologue)(void *arg, const uint8_t *bytes);
	struct frame_reader frame;
	/* what we say before the client's bytes go on: the last client's end, a hello */
	uint8_t say_len, say_off, prologue_len, prologue_have;
	uint8_t say[FRAME_HEAD + VSOCK_PROLOGUE_MAX], prologue_bytes[VSOCK_PROLOGUE_MAX];
};

TAILQ_HEAD(conn_list, vsock_conn);

struct reset_reply {			/* RST for a packet of no connection */
	uint32_t guest_port, host_port;
	uint16_t type;
};

enum { REPLIES_MAX = 1024 };	/* more are left out: the guest's own timers stand for them */

struct vsock {
	struct loop *loop;
	uint32_t guest_cid;
	uint64_t config;		/* guest_cid, little-endian: the configuration space */
	struct vsock_limits limits;
	void (*up)(void *arg);
	void (*down)(void *arg, const struct error *why);
	void *arg;

	struct vhost_user *vu;
	struct vring *rx, *tx;
	bool driver;			/* the guest's driver is there (rings run, or paused) */
	bool closing;
	bool in_turn;
	bool notice_up, notice_down;
	struct error why_down;
	struct vsock_stats stats;

	/* handles */
	int clients;			/* epoll of all clients' sockets, edge-triggered */
	uv_poll_t clients_poll;
	uv_timer_t timer;
	uv_timer_t later;		/* for what was put off: farewells, tx's interrupt */
	uv_idle_t more;			/* active: a turn is owed */
	unsigned handles;
	void (*closed)(void *arg);
	void *closed_arg;

	/* connections: the low bits of a host port are its slot */
	struct vsock_conn **slots;
	uint32_t *free_slots;		/* ring of n_slots: first in, first out */
	unsigned n_slots, free_first, n_free;
	uint32_t generation;		/* high bits of the next host port */
	uint64_t promised;		/* sum of all windows */

	/* Control packets nobody waits for go behind those of others, or by a timer:
	 * each alone would cost the guest an interrupt. */
	struct conn_list farewells;
	bool farewells_due;
	struct conn_list light, bulk, control, notices, connecting, lingering, buffered, graves;
	struct reset_reply replies[REPLIES_MAX];
	unsigned first_reply, n_replies;
};

/* vsock.c */
bool vsock_running(const struct vsock *v);	/* both rings run, unbroken */
void vsock_schedule(struct vsock *v);		/* a turn soon */
void vsock_arm_timer(struct vsock *v);
/* All connections end, and the owner is told that the device is down. */
void vsock_drop_all(struct vsock *v, const struct error *why);

/* vsock_conn.c */
void conn_table_init(struct vsock *v);
void conn_table_done(struct vsock *v);
struct vsock_conn *conn_find(const struct vsock *v, uint32_t host_port, uint32_t guest_port);
/* The end, as the owner will be told. @tell: the guest gets an RST. With code 0 it
 * lingers. @text: static. */
void conn_end(struct vsock_conn *c, int code, const char *text, bool tell);
void conn_rst(struct vsock_conn *c);		/* RST, then conn_forget() */
void conn_rst_later(struct vsock_conn *c);	/* … as a farewell */
void conn_forget(struct vsock_conn *c);		/* takes it out of the table */
void conn_opened(struct vsock_conn *c);
void conn_notify(struct vsock_conn *c, unsigned notice);
void conn_want(struct vsock_conn *c, unsigned want);
void conn_want_later(struct vsock_conn *c, unsigned want);
void conn_unwant(struct vsock_conn *c, unsigned want);
void conn_drop(struct vsock_conn *c);		/* no owner and no guest: to the graveyard */
/* Puts it into the right queue when it has something for the guest and credit. */
void conn_ready(struct vsock_conn *c);
void conn_say(struct vsock_conn *c, const void *bytes, size_t len);
void conn_unready(struct vsock_conn *c);
uint32_t conn_credit(const struct vsock_conn *c);
/* Bytes went to the client: the guest is told now and then. */
void conn_forwarded(struct vsock_conn *c, uint32_t len);
/* The two directions have ended: is it over? */
void conn_check_done(struct vsock_conn *c);
void conn_guest_done(struct vsock_conn *c);
void conn_deliver(struct vsock *v);		/* runs the callbacks */
void conn_expire(struct vsock *v, uint64_t now);
void conn_give_time(struct vsock *v);		/* after a pause: who waits has all of its time */
void conn_bury(struct vsock *v);

/* vsock_to_guest.c: does at least one thing, then stops after @budget bytes. true:
 * work is left that needs no event. */
bool to_guest(struct vsock *v, uint32_t budget);
/* vsock_from_guest.c */
bool from_guest(struct vsock *v, uint32_t budget);
/* What waits for the client goes on its way; also its FIN. */
void conn_flush(struct vsock_conn *c);
void conn_client_event(struct vsock_conn *c, uint32_t events);
