/* vsock_guest.h - QEMU and the guest's vsock driver, played in one thread
 *
 * Speaks vhost-user as QEMU 7.2 does, owns a memfd as the guest's memory, and
 * drives the rings as Linux's driver does: 128 entries, receive buffers of
 * 44 + 4096 bytes posted again when half of them are used, packets of up to
 * 64 KiB. Sockets behave as the port's service says. Nothing is slowed down, so
 * what a benchmark measures is the device.
 *
 * The device runs on the test's loop; everything here on the guest's own thread,
 * where vsock_guest_run() calls a script. Blocking is fine there.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "lib/virtio/vsock_packet.h"

enum {
	VSOCK_GUEST_CID = 7,
	VSOCK_GUEST_RX_BUFFER = 4096,
	VSOCK_GUEST_MEMORY = 32 << 20,
	VSOCK_GUEST_RING = 128,
};

/* What listens at a port of the guest. */
enum guest_service {
	GUEST_REFUSE,		/* RST */
	GUEST_ECHO,		/* sends back; shuts down when its peer did */
	GUEST_SINK,		/* reads to the end, answers the count as 8 bytes, shuts down */
	GUEST_SOURCE,		/* reads 8 bytes, sends as many as they say, shuts down */
	GUEST_SILENT,		/* does not even answer a request */
	GUEST_STUCK,		/* accepts, never reads */
	GUEST_CLOSE,		/* closes on the first byte: shutdown of both at once */
	GUEST_RESET,		/* RST on the first byte */
	GUEST_RELAY,		/* a hello of 24 bytes, a reply of 8 zeros, then echo */
	GUEST_RELAY_REFUSE,	/* a hello of 24 bytes, a reply of 111, then closes */
	GUEST_GREEDY,		/* sends without looking at the credit */
	GUEST_LATE,		/* bytes after it has shut down */
	GUEST_FULL_CREDIT,	/* echo, but says that it read what was never sent */
	GUEST_HALF,		/* shuts down sending at once, then reads to the end */
	GUEST_KEEP,		/* echo that does not close after the end */
	GUEST_DEAF,		/* shuts down receiving at once */
};

struct vsock_guest;
struct guest_sock;

struct guest_ring {
	unsigned index;
	uint16_t size, last_used, added, published;
	int kick_fd, call_fd;
	uint64_t at;			/* guest address of its descriptors */
	uint16_t free_slots[VSOCK_GUEST_RING];	/* tx: not in flight; rx: to be posted again */
	unsigned free;
};

struct guest_packet {
	STAILQ_ENTRY(guest_packet) next;
	struct vsock_packet head;
	uint8_t data[];
};

struct vsock_guest {
	/* set before vsock_guest_run() */
	const char *path;		/* the device's socket */
	enum guest_service (*service)(uint32_t port);
	uint64_t features_off;		/* not to be negotiated: bits 28 indirect, 29 event_idx */
	uint32_t buf_alloc;		/* of a socket; 0: 256 KiB, as Linux */

	/* counters, for any thread */
	atomic_uint_least64_t bytes_in, bytes_out;
	atomic_uint requests, resets, sockets, shutdowns;

	pthread_t thread;
	atomic_bool done;
	bool running;
	void (*script)(struct vsock_guest *g, void *arg);
	void *arg;
	int stop_fd;

	int qemu;			/* the vhost-user connection; -1 */
	int memfd;
	uint8_t *memory;
	uint64_t features;
	struct guest_ring rx, tx;
	STAILQ_HEAD(, guest_packet) waiting;	/* for a free tx slot */
	unsigned n_waiting;
	struct guest_sock *socks[1 << 16];	/* by host port */
	TAILQ_HEAD(, guest_sock) all, busy;
	struct vsock_packet received;		/* of vsock_guest_receive() */
};

/* --- the test's thread ---------------------------------------------------- */

void vsock_guest_init(struct vsock_guest *g, const char *path);
/* script(g, arg) in a thread of its own; `done` when it has returned. */
void vsock_guest_run(struct vsock_guest *g, void (*script)(struct vsock_guest *g, void *arg),
		     void *arg);
/* Makes vsock_guest_serve() return. */
void vsock_guest_stop(struct vsock_guest *g);
/* Joins the thread, which must be about to end, and frees everything. */
void vsock_guest_done(struct vsock_guest *g);

/* --- QEMU, on the guest's thread ------------------------------------------ */

void vsock_guest_connect(struct vsock_guest *g);	/* and what QEMU says at realize */
/* Rings in fresh memory, buffers posted: the driver was loaded. */
void vsock_guest_boot(struct vsock_guest *g);
void vsock_guest_pause(struct vsock_guest *g);		/* QMP stop … */
void vsock_guest_resume(struct vsock_guest *g);		/* … and cont */
void vsock_guest_hang_up(struct vsock_guest *g);
/* One message; with @reply_max the answer is read, its length returned. -1: the
 * device hung up. */
int vsock_guest_message(struct vsock_guest *g, uint32_t request, const void *payload, uint32_t len,
			const int *fds, unsigned n_fds, void *reply, uint32_t reply_max);
int vsock_guest_raw(struct vsock_guest *g, const void *bytes, size_t len, const int *fds,
		    unsigned n_fds);
/* The device has closed the connection (waits for it). */
bool vsock_guest_hung_up_on(struct vsock_guest *g);

/* --- the driver, on the guest's thread ------------------------------------ */

void vsock_guest_serve(struct vsock_guest *g);
/* Takes what has come and answers it; false: there was nothing. */
bool vsock_guest_step(struct vsock_guest *g);
/* Sleeps until the device interrupts, the guest is stopped, or @ms passed. */
void vsock_guest_wait(struct vsock_guest *g, int ms);
/* The next packet off the rx ring, with its payload; NULL: none within @ms. Instead
 * of serve and step. */
const struct vsock_packet *vsock_guest_receive(struct vsock_guest *g, const uint8_t **ret_payload,
					       int ms);
/* Asks for an interrupt at g->tx.call_fd when the next packet sent is through. */
void vsock_guest_want_sent(struct vsock_guest *g);
void vsock_guest_send(struct vsock_guest *g, const struct vsock_packet *p, const void *payload);
/* A packet of @op from @guest_port to @host_port. */
void vsock_guest_say(struct vsock_guest *g, enum vsock_op op, uint32_t guest_port,
		     uint32_t host_port, uint32_t flags);
/* Writes a descriptor into a ring's table and offers it; kicks always. */
void vsock_guest_offer(struct vsock_guest *g, struct guest_ring *r, uint16_t slot, uint64_t addr,
		       uint32_t len, uint16_t flags, uint16_t next);

/* The usual script: boot, serve until stopped, hang up. */
static inline void vsock_guest_live(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}
