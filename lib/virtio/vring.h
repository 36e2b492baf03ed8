/* vring.h - a split virtqueue, seen from the device (virtio 1.2 §2.7)
 *
 * The driver offers chains of buffers, the device takes them, fills or reads
 * them, and gives them back. Chains are parsed ahead into a queue here, so that
 * one system call can serve many of them; what was parsed but not used is given
 * back when the ring stops.
 *
 *	avail ──vring_fetch──▶ queue ──vring_push──▶ used ──vring_publish──▶ driver
 *
 * Everything in the ring is written by the guest, at any moment: each word is
 * read once into a local, checked, then used. A chain that breaks the rules
 * breaks the ring (`broken`): nothing more is taken until it is started again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/base/error.h"
#include "lib/virtio/memory.h"

enum {
	VRING_SIZE_MAX = 1024,		/* QEMU's VIRTQUEUE_MAX_SIZE */
	VRING_SEGMENTS_MAX = 64,	/* of a chain; Linux uses up to MAX_SKB_FRAGS + 2 = 19 */
	VRING_AHEAD = 64,		/* chains parsed ahead */
};

struct vring_chain {
	uint16_t head;			/* its first descriptor: what is given back */
	uint8_t n_out, n_in;		/* pieces the device reads, then pieces it writes */
	uint32_t out_len, in_len;
	struct iovec iov[VRING_SEGMENTS_MAX];
};

struct vring_addr {			/* in QEMU's address space */
	uint64_t desc, avail, used;
};

struct vring {
	/* set by the owner before it starts */
	const struct memory *mem;
	struct vring_addr addr;
	uint16_t size;			/* a power of two */
	bool event_idx, indirect;	/* as negotiated */
	uint32_t in_min;		/* not 0: chains are only for us to write, at least
					 * so many bytes; others break the ring */
	bool lazy;			/* interrupts are put off until vring_call_due() */
	int call_fd;			/* eventfd, non-blocking, or -1; the owner's */

	/* from here on only vring.c writes */
	bool running;
	struct error broken;		/* code 0: it is not */
	volatile struct vring_desc *desc;
	volatile uint16_t *avail, *used;	/* as arrays of 16-bit words: flags, idx, … */
	uint16_t avail_next;		/* entry of avail that is fetched next */
	uint16_t avail_seen;		/* avail->idx as last read */
	uint16_t used_next;		/* entry of used that is written next */
	uint16_t used_published;	/* used->idx as last written */
	bool call_due;			/* an interrupt was put off … */
	uint16_t due_from;		/* … that entries from here on are worth */
	bool kicks;			/* the driver was asked for kicks */
	unsigned first, fetched;	/* the queue, a ring of VRING_AHEAD */
	struct vring_chain ahead[VRING_AHEAD];
};

/* Finds the ring in memory; @base: the entry of avail to begin with. Kicks are
 * off. -EINVAL when size, alignment or place are wrong. */
int vring_start(struct vring *r, uint16_t base, struct error *err);
/* Returns the base to go on with. Harmless when not running. */
uint16_t vring_stop(struct vring *r);
/* What the guest sees as used->idx; 0 for a ring that no driver used yet. */
uint16_t vring_used_idx(const struct vring *r);

/* Parses until @want chains (at most VRING_AHEAD) are in the queue or no more are
 * offered; returns how many there are, 0 too when broken. */
unsigned vring_fetch(struct vring *r, unsigned want);
/* The @i-th of the queue. Valid until it is pushed. */
struct vring_chain *vring_peek(struct vring *r, unsigned i);
/* Gives the first of the queue back, @written bytes of it filled by us. */
void vring_push(struct vring *r, uint32_t written);
/* Lets the driver see what was pushed, and interrupts it if it asked for that. With
 * `lazy` and event_idx that waits until a quarter of the ring is worth it, or for
 * vring_call_due(): of buffers that it only wants back, the driver need not hear at
 * once. */
void vring_publish(struct vring *r);
/* The interrupt that was put off, unless the driver looks by itself: when it has taken
 * something since the last call here, what is left stays put off. */
void vring_call_due(struct vring *r);
/* Interrupts the driver, whatever it asked for. */
void vring_call(const struct vring *r);

/* Asks the driver to kick when it offers more. true: it did already, fetch again. */
bool vring_kicks_on(struct vring *r);
void vring_kicks_off(struct vring *r);
