/* memory.h - the guest's memory as QEMU shares it with us
 *
 * A handful of regions, each part of a memfd: where it is for the guest (gpa),
 * for QEMU (uva, what SET_VRING_ADDR speaks in), and in this process. Every
 * address that comes from outside becomes a pointer here and nowhere else, with
 * its whole length checked.
 *
 * Only memory that cannot shrink is taken (F_SEAL_SHRINK, which QEMU's
 * memory-backend-memfd sets unless told not to): a page that is cut off would
 * kill us by SIGBUS at the next access.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/base/error.h"

enum { MEMORY_REGIONS_MAX = 8 };	/* QEMU docs/interop/vhost-user: at most 8 */

struct memory_region {
	uint64_t gpa, uva, size;
	uint8_t *at;		/* of its first byte, here */
	void *map;		/* what is to be unmapped */
	size_t map_len;
};

struct memory {
	unsigned n;
	struct memory_region regions[MEMORY_REGIONS_MAX];
};

struct memory_range {		/* a region as a message describes it */
	uint64_t gpa, size, uva, offset;
};

/* Maps @range of @fd, which stays the caller's. */
int memory_add(struct memory *m, const struct memory_range *range, int fd, struct error *err);
void memory_done(struct memory *m);

/* @len bytes at QEMU's address @uva, within one region, aligned to @align (a power
 * of two); NULL if they are not. */
void *memory_at_uva(const struct memory *m, uint64_t uva, uint64_t len, size_t align);

/* Describes @len bytes at the guest's address @gpa by at most @max pieces; a range
 * may run over from one region to the next. Returns how many pieces, or -EFAULT. */
int memory_at_gpa(const struct memory *m, uint64_t gpa, uint64_t len, struct iovec *pieces,
		  int max);
