/* guest_stream.h - plays the host's end of a tunnel: records what the agent's
 * tunnel did with its stream, and lets the test act as the host
 */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include "lib/base/buf.h"
#include "proto/guest_server.h"

struct guest_stream {
	struct guest_stream_callbacks cb;
	struct buf got;			/* from the guest's socket */
	unsigned messages;		/* writes, datagrams */
	size_t last_len;
	size_t accept_max;		/* writes return false from here on; 0: never */
	bool opened, eof, ended, paused;
	bool crowded;
	int refused, reset;		/* codes, 0: not */
};

void guest_stream_set_callbacks(struct guest_stream *s, const struct guest_stream_callbacks *cb)
{
	s->cb = *cb;
}

void guest_stream_opened(struct guest_stream *s)
{
	assert(!s->opened && !s->ended);
	s->opened = true;
}

/* The real one calls `closed` later; the test does with mock_stream_end(). */
void guest_stream_refused(struct guest_stream *s, int code)
{
	assert(!s->opened && !s->refused && code < 0);
	s->refused = code;
}

bool guest_stream_write(struct guest_stream *s, uint8_t *data, size_t len)
{
	assert(s->opened && !s->eof && !s->ended);
	buf_add(&s->got, data, len);
	s->last_len = len;
	s->messages++;
	free(data);
	return !s->accept_max || s->got.len < s->accept_max;
}

bool guest_stream_crowded(const struct guest_stream *s)
{
	return s->crowded;
}

void guest_stream_eof(struct guest_stream *s)
{
	assert(s->opened && !s->eof && !s->ended);
	s->eof = true;
}

void guest_stream_pause(struct guest_stream *s)
{
	s->paused = true;
}

void guest_stream_resume(struct guest_stream *s)
{
	s->paused = false;
}

void guest_stream_reset(struct guest_stream *s, int code)
{
	assert(!s->ended && code < 0);
	s->ended = true;
	s->reset = code;
}

static inline void mock_stream_end(struct guest_stream *s, int code)
{
	struct error why = { .code = code };

	assert(!s->ended);
	s->ended = true;
	s->cb.closed(s->cb.arg, &why);
}
