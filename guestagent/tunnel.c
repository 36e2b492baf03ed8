#include "guestagent/tunnel.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "guestagent/tunnel_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	READ_BYTES = 128 * 1024,	/* 64-256 KiB is where gRPC's cost per message no
					 * longer shows (prototypes/grpc.md) */
	COPY_BELOW = 16 * 1024,
};

struct tunnels {
	struct loop *loop;
	struct tunnel *first;
	unsigned count;
	uint8_t *spare;		/* READ_BYTES, or NULL */
	tunnel_more_fn more;	/* or NULL */
	void *more_arg;
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
};

struct tunnels *tunnels_new(struct loop *loop)
{
	struct tunnels *t = xnew(struct tunnels);

	t->loop = loop;
	return t;
}

void tunnels_set_more(struct tunnels *t, tunnel_more_fn more, void *arg)
{
	t->more = more;
	t->more_arg = arg;
}

unsigned tunnels_count(const struct tunnels *t)
{
	return t->count;
}

struct loop *tunnel_loop(struct tunnels *owner)
{
	return owner->loop;
}

static void finish_close(struct tunnels *t)
{
	void (*closed)(void *arg) = t->closed;
	void *arg = t->closed_arg;

	free(t->spare);
	free(t);
	if (closed)
		closed(arg);
}

static void on_empty(void *arg)
{
	finish_close(arg);
}

void tunnel_join(struct tunnels *owner, struct tunnel *t, void (*abort)(struct tunnel *t))
{
	t->owner = owner;
	t->abort = abort;
	t->next = owner->first;
	if (t->next)
		t->next->prev = t;
	owner->first = t;
	owner->count++;
}

void tunnel_leave(struct tunnel *t)
{
	struct tunnels *owner = t->owner;

	if (t->prev)
		t->prev->next = t->next;
	else
		owner->first = t->next;
	if (t->next)
		t->next->prev = t->prev;
	assert(owner->count > 0);
	if (--owner->count == 0 && owner->closing)
		finish_close(owner);
}

void tunnel_read_buffer(struct tunnels *owner, uv_buf_t *ret)
{
	if (!owner->spare)
		owner->spare = xmalloc(READ_BYTES);
	*ret = uv_buf_init((char *)owner->spare, READ_BYTES);
}

uint8_t *tunnel_take_read(struct tunnels *owner, size_t len)
{
	uint8_t *copy;

	assert(owner->spare && len <= READ_BYTES);
	if (len >= COPY_BELOW)
		return xrealloc(steal_ptr(&owner->spare), len);
	copy = xmalloc(len + 1);	/* an empty datagram needs a pointer too */
	memcpy(copy, owner->spare, len);
	return copy;
}

static void ignore_data(void *arg, const uint8_t *data, size_t len)
{
}

static void ignore(void *arg)
{
}

static void ignore_end(void *arg, const struct error *why)
{
}

void tunnel_refuse(struct guest_stream *s, int code)
{
	static const struct guest_stream_callbacks nobody = {
		.data = ignore_data, .eof = ignore, .writable = ignore, .closed = ignore_end
	};

	guest_stream_set_callbacks(s, &nobody);
	guest_stream_refused(s, code);
}

void tunnels_open(struct tunnels *t, struct guest_stream *s, int proto, const char *guest_addr)
{
	struct dial to;

	if (dial_parse(guest_addr, &to) < 0) {
		scoped_free char *shown = log_escape(guest_addr, 64);

		log_warn_limited("tunnel: `%s` is not ip:port, refused", shown);
		tunnel_refuse(s, -EINVAL);
	} else if (t->count >= TUNNEL_MAX || t->closing) {
		log_warn_limited("tunnel: %u are open already, `%s` refused", t->count, guest_addr);
		tunnel_refuse(s, -EMFILE);
	} else if (proto == IPPROTO_TCP || proto == IPPROTO_UDP) {
		if (t->more)
			t->more(t->more_arg, proto, &to);
		if (proto == IPPROTO_TCP)
			tunnel_tcp_open(t, s, &to);
		else
			tunnel_udp_open(t, s, &to);
	} else {
		tunnel_refuse(s, -EPROTONOSUPPORT);
	}
}

void tunnels_close(struct tunnels *t, void (*closed)(void *arg), void *arg)
{
	struct tunnel *next;

	t->closing = true;
	t->closed = closed;
	t->closed_arg = arg;
	if (t->count == 0) {
		loop_post(t->loop, on_empty, t);	/* never before we returned */
		return;
	}
	for (struct tunnel *one = t->first; one; one = next) {
		next = one->next;
		one->abort(one);
	}
}
