/* tunnel.h - from a stream of GuestService to a socket in the guest, and back
 *
 * The host opens a stream for each connection (TCP) or client (UDP); we connect
 * to the address it names and copy both ways. The host is trusted to name any
 * address, as with Lima, but the text is parsed strictly (dial.h).
 *
 * TCP: an end of file in one direction leaves the other open; a reset passes as
 * a reset both ways, and so does a lost link, so that half a transfer never
 * looks whole. Reading stops while the stream or the socket cannot take more:
 * what one tunnel holds is bounded by the stream's 256 KiB, by one host message
 * towards the socket, and by a number of tunnels. Towards the host all tunnels
 * together hold about 128 MiB at most: from half of that on each has one small read
 * under way and no more.
 *
 * UDP: one connected socket per client, so that replies come back to the right
 * one. Datagrams up to 65,507 bytes whole, empty ones too; what a full socket
 * does not take is dropped, as on any wire. The host decides when a flow is idle;
 * ICMP's "unreachable" ends it at once, with the socket's error.
 */
#pragma once

#include "guestagent/dial.h"
#include "lib/base/loop.h"
#include "proto/guest_server.h"
#include "proto/rpc.h"

struct tunnels;

enum { TUNNEL_MAX = RPC_TUNNELS_MAX };

struct tunnels *tunnels_new(struct loop *loop);
/* Adds to what a tunnel is to connect to (ports_dial()). */
typedef void (*tunnel_more_fn)(void *arg, int proto, struct dial *d);
void tunnels_set_more(struct tunnels *t, tunnel_more_fn more, void *arg);
unsigned tunnels_count(const struct tunnels *t);

/* For guest_server_callbacks.tunnel: answers opened or refused, later or now. */
void tunnels_open(struct tunnels *t, struct guest_stream *s, int proto, const char *guest_addr);

/* After the guest server was closed, which ended every stream: resets what is
 * still being delivered. @closed runs when nothing is left. */
void tunnels_close(struct tunnels *t, void (*closed)(void *arg), void *arg);
