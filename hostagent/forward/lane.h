/* lane.h - how bytes get into the guest
 *
 * An ops table so that forwards do not know what carries them:
 *
 *	vsock	a connection of the guest's vsock each (lane_vsock.h)
 *	grpc	tunnels of GuestService, the one that is always there
 *	ssh	`ssh -L` through the master connection (lane_ssh.h)
 *	direct	a socket to the guest's own address (lane_direct.h)
 *
 * A lane either relays, which is taking the client's socket and moving bytes by
 * itself, or has connections that are written to, whose callbacks mean the same as
 * those of guest_client.h's tunnel.
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
#include "lib/config/config.h"

struct lane_conn;

struct lane_callbacks {
	void (*opened)(void *arg); /* the guest side is connected */
	void (*data)(void *arg, const uint8_t *data, size_t len);
	void (*eof)(void *arg);
	void (*writable)(void *arg);
	/* last; conn freed after. code 0: both directions ended in order */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

struct lane_relay {
	/* Non-blocking stream socket, in no handle of libuv; borrowed until `closed`
	 * or reset(). Its owner closes it: FIN or RST by why->code. */
	int fd;
	const char *guest_addr;         /* borrowed as long */
	uint64_t *bytes_in, *bytes_out; /* counted up: into, out of the guest */
	void (*opened)(void *arg);      /* the guest side is connected */
	/* As in lane_callbacks. lane_is_gone(code): nothing was taken from the
	 * client, another lane may have it. */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

struct lane;
struct lane_ops {
	const char *name; /* "grpc" */
	/* Can it carry this at all? NULL: whatever comes. May change with time. */
	bool (*can)(const struct lane *lane, int proto, const char *guest_addr);
	/* TCP only; NULL: this lane has open(), write() and the rest. A lane with
	 * relay() may leave all others but reset NULL. */
	int (*relay)(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
		     struct error *err);
	int (*open)(struct lane *lane, int proto, const char *guest_addr,
		    const struct lane_callbacks *cb, struct lane_conn **ret, struct error *err);
	/* Takes @data (malloc'd). false: no more until `writable` (what is given
	 * all the same is kept). UDP: one datagram, @len may be 0. */
	bool (*write)(struct lane_conn *c, uint8_t *data, size_t len);
	void (*eof)(struct lane_conn *c);   /* the client half-closed */
	void (*pause)(struct lane_conn *c); /* no data, no eof until resume */
	void (*resume)(struct lane_conn *c);
	void (*reset)(struct lane_conn *c); /* the client was reset: so the guest's socket */
	void (*close)(struct lane_conn *c); /* ends without an error */
};

struct lane { /* embedded first in each lane's own struct */
	const struct lane_ops *ops;
};

/* Did the lane itself go away, not the guest's server? What was not open yet may
 * be tried on another lane. */
static inline bool lane_is_gone(int code)
{
	return code == -ECANCELED || code == -ENOTCONN;
}

enum { LANE_COUNT = CONFIG_LANE_DIRECT + 1 };

struct lanes {
	struct lane *of[LANE_COUNT]; /* by enum config_lane; NULL: down. Borrowed */
	const char *missing[LANE_COUNT]; /* static: why it never comes; NULL: it may */
};

/* The lane for a new connection, NULL: none now, may be later. AUTO and DIRECT fall
 * back to others, the rest wait for theirs; UDP goes over gRPC whatever was
 * wanted, but never over ssh, which cannot (as in Lima, reference/port-forwarding.md
 * §4). @tried: bit 1 << N set for each lane not to try again. */
struct lane *lanes_choose(const struct lanes *lanes, enum config_lane wanted, int proto,
			  const char *guest_addr, unsigned tried, enum config_lane *ret);

struct guest_client;
/* Borrows @client. */
struct lane *lane_grpc_new(struct guest_client *client);
void lane_grpc_free(struct lane *lane);
