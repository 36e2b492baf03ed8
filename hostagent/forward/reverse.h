/* reverse.h - the host's end of sockets in the guest that lead to one of the host
 *
 *	client in the guest - sshd - ssh - our listener - the host's server
 *
 * ssh could connect to the server itself (ssh -R GUEST:HOST). That it connects to a
 * listener of ours is for what only who moves the bytes knows: connections, bytes and
 * errors of each forward, and a bound on what a guest may open.
 *
 * Clients are relayed by what relays the others (tcp.h) over a lane of its own, whose
 * far end is the host's socket: here "the guest" of those interfaces is the server.
 * Loop thread.
 */
#pragma once

#include "hostagent/forward/forward.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct reverse;
struct reverse_set;

enum { REVERSE_CONNECTIONS_MAX = 1024 };	/* of all together; one more is closed */

struct reverse_set *reverse_set_new(struct loop *loop);
/* Listens on @path; who comes is taken to @host, connected to when it is asked for. */
int reverse_new(struct reverse_set *set, const char *path, const char *host, struct reverse **ret,
		struct error *err);
/* Sets what is counted in a forward_row, and its lane. */
void reverse_fill_row(const struct reverse *r, struct forward_row *row);
/* The listener is gone at once, connections stay. */
void reverse_free(struct reverse *r);
/* Frees what is left and ends connections; @closed runs when all handles are gone. */
void reverse_set_close(struct reverse_set *set, void (*closed)(void *arg), void *arg);
