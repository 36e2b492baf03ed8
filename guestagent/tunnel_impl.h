/* tunnel_impl.h - what tunnel.c lends to tunnel_tcp.c and tunnel_udp.c
 *
 * Each kind embeds `struct tunnel`, which keeps it in the owner's list from
 * tunnel_join() to tunnel_leave(); a kind leaves when its handles are closed.
 */
#pragma once

#include "guestagent/dial.h"
#include "guestagent/tunnel.h"

struct tunnel {
	struct tunnels *owner;
	struct tunnel *prev, *next;
	void (*abort)(struct tunnel *t);	/* reset and close, the stream is gone */
};

void tunnel_join(struct tunnels *owner, struct tunnel *t, void (*abort)(struct tunnel *t));
void tunnel_leave(struct tunnel *t);
struct loop *tunnel_loop(struct tunnels *owner);

/* Where a read goes. All tunnels share one buffer: libuv asks for it right
 * before read() and hands it back right after. */
void tunnel_read_buffer(struct tunnels *owner, uv_buf_t *ret);
/* The @len bytes just read there, as memory of their own for
 * guest_stream_write(). Large reads give the buffer away, small ones copy. */
uint8_t *tunnel_take_read(struct tunnels *owner, size_t len);

/* Answers -@code; the stream's end is nobody's business after. */
void tunnel_refuse(struct guest_stream *s, int code);

void tunnel_tcp_open(struct tunnels *owner, struct guest_stream *s, const struct dial *to);
void tunnel_udp_open(struct tunnels *owner, struct guest_stream *s, const struct dial *to);
