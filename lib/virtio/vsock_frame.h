/* vsock_frame.h - frames, in which a connection carries one stream after another
 *
 * Each direction of a framed relay (vsock.h) is frames of a length, 32 bits in
 * network byte order, and so many bytes. Two lengths are none: 0 is the direction's
 * end, and FRAME_DONE, of the guest, says that all of both directions has reached
 * where it should: the connection can serve the next client. It stands for an end as
 * well.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
	FRAME_HEAD = 4,
	FRAME_MAX = 1 << 24,	/* a longer one is garbage */
};

#define FRAME_DONE 0xffffffffu

struct frame_reader {
	uint32_t left;		/* bytes of the frame still to come */
	uint8_t head[FRAME_HEAD], have;
};

enum frame_event {
	FRAME_ALL_READ,
	FRAME_NO_ROOM,		/* *@ret is full; call again */
	FRAME_IS_END,		/* bytes behind it are left in *@in */
	FRAME_IS_DONE,		/* likewise */
	FRAME_BAD,
};

/* Cuts pieces of payload out of *@in, which moves on. Each byte of a head is read
 * once, so the memory may be the guest's. @ret: *@ret_n of them, at most @max.
 * @ret_heads: bytes of heads among what was read. */
enum frame_event frame_read(struct frame_reader *r, struct iovec **in, unsigned *n_in,
			    struct iovec *ret, unsigned max, unsigned *ret_n, uint32_t *ret_heads);
