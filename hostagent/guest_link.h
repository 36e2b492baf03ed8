/* guest_link.h - keeps a connection to the guest's agent
 *
 * There are two ways to it: the virtio-serial port of the driver, with the
 * link handshake, and the agent's unix socket in the guest, forwarded by the
 * ssh master (Lima's own agent; a guest without the port). Both are wanted; the
 * first that answers is used and the other one closed, and after a loss both
 * are tried again, with back-off. So a guest reboot, an agent that is restarted
 * or upgraded and a host that slept all end in: ready, again, with a snapshot.
 *
 * Around a connection this keeps what belongs to it: the tunnel lane of the
 * forwards, the guest's clock, the latest BootProgress. It judges nothing; the
 * host agent does, from the callbacks.
 */
#pragma once

#include <stdbool.h>

#include "drivers/driver.h"
#include "hostagent/forward/forward.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "proto/guest_client.h"
#include "proto/relay.h"

struct guest_link;

struct guest_link_options {
	struct loop *loop;
	struct rpc *rpc;
	struct forward *forward;	/* fed with ports and lanes; borrowed */
	const struct driver_ops *driver_ops;
	struct driver *driver;		/* borrowed */
	const uint8_t *secret;		/* GUEST_LINK_SECRET_SIZE bytes, NULL: no serial way */
	const char *ssh_socket;		/* host end of the forwarded agent socket */
	/* Connected. Everything known is in guest_link_info(). */
	void (*ready)(void *arg);
	/* BootProgress changed. */
	void (*progress)(void *arg);
	void (*lost)(void *arg, const struct error *why);
	void *arg;
};

struct guest_link_info {	/* of the latest connection; "" before the first */
	char agent_version[64];
	char kernel[128];
	char boot_id[64];
	bool up;
	const char *way;	/* "serial", "ssh"; "" when not up */
	bool has_ports;		/* a full list of ports came on this connection, or the
				 * agent does not send such */
	struct relay_ports relay;	/* of the guest's vsock; first 0: none */
	bool tells_boot;	/* the agent sends BootProgress */
	bool ssh_ready, boot_done;
	char instance_id[128];
	char step[256];		/* "system 1/2: install-tools.sh"; "" none */
	unsigned n_failed;	/* boot scripts that failed … */
	char failed[8][128];	/* … and the first of their names */
};

struct guest_link *guest_link_new(const struct guest_link_options *opts);
void guest_link_start(struct guest_link *l);
/* The ssh master forwards the agent's socket from now on (or no longer). */
void guest_link_set_ssh(struct guest_link *l, bool usable);
const struct guest_link_info *guest_link_info(const struct guest_link *l);
/* Passed on from the driver: the guest resets, its agent closed or opened the port, or
 * the machine stands still and goes on. How an agent that died is noticed at once, and
 * one that merely cannot answer is waited for. */
void guest_link_driver_event(struct guest_link *l, enum driver_event event);
/* The guest is another one than a moment ago (a snapshot was applied): connects anew. */
void guest_link_guest_was_set_back(struct guest_link *l);
/* Sends the host's time now (it also goes every 30 s and on each connection). */
void guest_link_sync_time(struct guest_link *l);
/* Closes connections; @closed runs when all are gone, then frees. */
void guest_link_close(struct guest_link *l, void (*closed)(void *arg), void *arg);
