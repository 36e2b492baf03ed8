#include "lib/virtio/vsock_frame.h"

#include <stddef.h>

#include "lib/base/mem.h"

static void advance(struct iovec *v, size_t n)
{
	v->iov_base = (uint8_t *)v->iov_base + n;
	v->iov_len -= n;
}

/* One byte of a head; true: it is complete. */
static bool read_head(struct frame_reader *r, struct iovec *v)
{
	r->head[r->have++] = *(const volatile uint8_t *)v->iov_base;
	advance(v, 1);
	if (r->have < FRAME_HEAD)
		return false;
	r->have = 0;
	r->left = (uint32_t)r->head[0] << 24 | (uint32_t)r->head[1] << 16 |
		  (uint32_t)r->head[2] << 8 | r->head[3];
	return true;
}

enum frame_event frame_read(struct frame_reader *r, struct iovec **in, unsigned *n_in,
			    struct iovec *ret, unsigned max, unsigned *ret_n, uint32_t *ret_heads)
{
	*ret_n = 0;
	*ret_heads = 0;
	while (*n_in > 0) {
		struct iovec *v = *in;
		size_t n = MIN(v->iov_len, (size_t)r->left);

		if (v->iov_len == 0) {
			++*in;
			--*n_in;
		} else if (r->left == 0) {
			++*ret_heads;
			if (!read_head(r, v))
				continue;
			if (r->left == 0)
				return FRAME_IS_END;
			if (r->left <= FRAME_MAX)
				continue;
			n = r->left;
			r->left = 0;
			return n == FRAME_DONE ? FRAME_IS_DONE : FRAME_BAD;
		} else if (*ret_n == max) {
			return FRAME_NO_ROOM;
		} else {
			ret[(*ret_n)++] = (struct iovec){ v->iov_base, n };
			advance(v, n);
			r->left -= (uint32_t)n;
		}
	}
	return FRAME_ALL_READ;
}
