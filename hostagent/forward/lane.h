/* lane.h - how bytes get into the guest
 *
 * An ops table so that forwards do not know what carries them: gRPC tunnels
 * (lane_grpc) now, vsock and ssh lanes later. A lane connection mirrors
 * guest_client.h's tunnel: same callbacks, same ownership, same half-close.
 */
#pragma once

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
	void (*closed)(void *arg, const struct error *why);	/* last; conn freed after */
	void *arg;
};

struct lane;
struct lane_ops {
	const char *name;	/* "grpc" */
	int (*open)(struct lane *lane, int proto, const char *guest_addr,
		    const struct lane_callbacks *cb, struct lane_conn **ret, struct error *err);
	bool (*write)(struct lane_conn *c, uint8_t *data, size_t len);	/* takes @data */
	void (*eof)(struct lane_conn *c);
	void (*pause)(struct lane_conn *c);
	void (*resume)(struct lane_conn *c);
	void (*reset)(struct lane_conn *c);
	void (*close)(struct lane_conn *c);
};

struct lane {		/* embedded first in each lane's own struct */
	const struct lane_ops *ops;
};

struct guest_client;
/* Borrows @client. */
struct lane *lane_grpc_new(struct guest_client *client);
void lane_grpc_free(struct lane *lane);
