/* lane.h - how bytes get into the guest
 *
 * An ops table so that forwards do not know what carries them: gRPC tunnels
 * (lane_grpc) now, vsock and ssh lanes later. A lane connection mirrors
 * guest_client.h's tunnel: same callbacks, same ownership, same half-close.
 *
 * No callback runs before the call that asked for it returned; each op may be
 * called inside a callback. `closed` comes at most once, and not after reset()
 * or close(), which free the connection.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"

struct lane_conn;

struct lane_callbacks {
	void (*opened)(void *arg);	/* the guest side is connected */
	void (*data)(void *arg, const uint8_t *data, size_t len);
	void (*eof)(void *arg);
	void (*writable)(void *arg);
	void (*closed)(void *arg, const struct error *why);	/* last; conn freed after.
						 * code 0: both directions ended in order */
	void *arg;
};

/* A lane that takes the client's socket and moves its bytes by itself. */
struct lane_relay {
	int fd;			/* non-blocking stream socket, in no handle of libuv; borrowed until
				 * `closed` or reset(). Its owner closes it: FIN or RST by why->code */
	const char *guest_addr;
	uint64_t *bytes_in, *bytes_out;	/* counted up: into, out of the guest */
	void (*opened)(void *arg);	/* the guest side is connected */
	/* As in lane_callbacks; conn freed after. lane_is_gone(code) with *bytes_in
	 * unchanged: nothing was taken from the client, another lane may have it. */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

struct lane;
struct lane_ops {
	const char *name;	/* "grpc" */
	/* TCP only; NULL: this lane has open(), write() and the rest. A lane with
	 * relay() may leave all others but reset NULL. */
	int (*relay)(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
		     struct error *err);
	int (*open)(struct lane *lane, int proto, const char *guest_addr,
		    const struct lane_callbacks *cb, struct lane_conn **ret, struct error *err);
	/* Takes @data (malloc'd). false: no more until `writable` (what is given
	 * all the same is kept). UDP: one datagram, @len may be 0. */
	bool (*write)(struct lane_conn *c, uint8_t *data, size_t len);
	void (*eof)(struct lane_conn *c);	/* the client half-closed */
	void (*pause)(struct lane_conn *c);	/* no data, no eof until resume */
	void (*resume)(struct lane_conn *c);
	void (*reset)(struct lane_conn *c);	/* the client was reset: so the guest's socket */
	void (*close)(struct lane_conn *c);	/* ends without an error */
};

struct lane {		/* embedded first in each lane's own struct */
	const struct lane_ops *ops;
};

/* Did the lane itself go away, not the guest's server? What was not open yet may
 * be tried on another lane. */
static inline bool lane_is_gone(int code)
{
	return code == -ECANCELED || code == -ENOTCONN;
}

struct guest_client;
/* Borrows @client. */
struct lane *lane_grpc_new(struct guest_client *client);
void lane_grpc_free(struct lane *lane);
