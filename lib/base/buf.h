/* buf.h - a growing byte buffer, also used to build text
 *
 * data[len] is always 0 once anything was added, so text needs no extra step.
 * The owner bounds what a peer may make it hold.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct buf {
	uint8_t *data;
	size_t len;
	size_t cap;
};

void buf_done(struct buf *b);		/* frees, leaves an empty buffer */
void buf_reset(struct buf *b);		/* empties, keeps the memory */
void buf_add(struct buf *b, const void *data, size_t len);
void buf_add_str(struct buf *b, const char *s);
void buf_addf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_add_u8(struct buf *b, uint8_t v);
/* Makes room for @len more bytes and returns where they go; buf->len unchanged. */
uint8_t *buf_reserve(struct buf *b, size_t len);
/* Drops @len bytes from the front. */
void buf_consume(struct buf *b, size_t len);
/* The contents as a 0-terminated string the caller frees; b is empty after. */
char *buf_steal_str(struct buf *b);
/* The contents as text, "" when empty; valid until the next change. */
const char *buf_str(const struct buf *b);

#define scoped_buf __attribute__((cleanup(buf_done)))
