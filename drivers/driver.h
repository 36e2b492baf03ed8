/* driver.h - what runs the virtual machine
 *
 * The host agent knows machines only through this table (reference/drivers-mcp.md
 * §1). All calls are made on the loop thread; what takes time takes a callback,
 * which runs exactly once and never before the call returned. close() gives
 * pending ones -ECANCELED before it returns; nothing is called after it.
 *
 * A driver instance is made per VM by ops->open(). The order is
 *   open → validate → start (or adopt) → [running] → stop → close.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"
#include "lib/store/snapshot.h"

enum {	/* struct driver_ops.features; names as in reference/drivers-mcp.md §1 */
	DRIVER_CAN_RUN_GUI		= 1 << 0,
	DRIVER_DYNAMIC_SSH_ADDRESS	= 1 << 1,
	DRIVER_STATIC_SSH_PORT		= 1 << 2,
	DRIVER_SKIP_SOCKET_FORWARDING	= 1 << 3,
	DRIVER_NO_CLOUD_INIT		= 1 << 4,
	DRIVER_CAN_ADOPT		= 1 << 5,	/* adopt() finds a running VM */
	DRIVER_VSOCK			= 1 << 6,	/* the host agent can be its vsock device:
						 * spec.vsock, the three ops */
	DRIVER_SNAPSHOTS		= 1 << 7,	/* of a machine that runs: the two ops */
};

struct driver;			/* opaque, per VM */

struct driver_spec {		/* lives as long as the driver */
	const char *name;		/* instance */
	const char *dir;		/* instance directory, absolute */
	const struct config *config;
	uint16_t ssh_port;		/* host port that leads to the guest's 22 */
	/* Give it a vsock device (vhost-user) at DIR/vsock.sock, where the host agent
	 * listens by then. Where that cannot be, it starts without: info.vsock. */
	bool vsock;
	/* With a vsock device, ssh_port is served by the host agent. */
	bool ssh_over_vsock;
};

enum driver_event {
	DRIVER_EXITED,		/* the VM is gone; last event. @detail: why, "" when asked for */
	DRIVER_RESET,		/* the guest reboots */
	DRIVER_PAUSED, DRIVER_RESUMED,
	DRIVER_SHUTDOWN,	/* the guest began to power off */
	DRIVER_AGENT_PORT_OPEN, DRIVER_AGENT_PORT_CLOSED,	/* VSERPORT_CHANGE: the agent in
				 * the guest opened or closed its virtio-serial port */
};

struct driver_callbacks {
	void (*event)(void *arg, enum driver_event event, const char *detail);
	/* One line for the user, e.g. the notice that TCG is used and why. */
	void (*notice)(void *arg, const char *text);
	/* stop() waits for something else first, for @ms at most. @text: for what, and the
	 * price of not waiting. */
	void (*delayed)(void *arg, const char *text, unsigned ms);
	void *arg;
};

typedef void (*driver_done_fn)(void *arg, const struct error *err);	/* err->code 0: done */

/* @list: borrowed, empty on failure. */
typedef void (*driver_snapshots_fn)(void *arg, const struct snapshot_list *list,
				    const struct error *err);

struct driver_info {		/* for the step line: "kvm, q35, pid 41231" */
	char accel[8];
	char machine[16];
	char version[32];
	pid_t pid;
	char guest_ip[46];	/* its own address, if this host can reach it; "": it cannot,
				 * as with QEMU's user networking */
	bool vsock;		/* it was started with the device; adopted: false, not known */
};

struct driver_ops {
	const char *name;		/* vmType */
	unsigned features;

	/* Blocking, for limactl before the host agent starts: is the program
	 * there and recent enough, does the config fit it. Text goes to the user. */
	int (*validate)(const struct driver_spec *spec, struct strv *warnings, struct error *err);

	int (*open)(struct loop *loop, const struct driver_spec *spec,
		    const struct driver_callbacks *cb, struct driver **ret, struct error *err);
	/* Done when the VM runs and its control channel answers. */
	void (*start)(struct driver *d, driver_done_fn done, void *arg);
	/* A VM that runs already (its host agent died): -ENOENT when there is none,
	 * and start() may follow. A lost pid file does not hide a QEMU. */
	void (*adopt)(struct driver *d, driver_done_fn done, void *arg);
	void (*info)(struct driver *d, struct driver_info *ret);
	/* Connected socket to the guest agent's channel, non-blocking, owned by
	 * the caller. Each call is a new connection; the one before must be
	 * closed. -EAGAIN: not yet. */
	int (*agent_connect)(struct driver *d, int *ret_fd, struct error *err);
	/* DRIVER_VSOCK, while it runs, one at a time. The device dies with the host
	 * agent that was its other end: a new one takes it out and puts it in again.
	 * An online snapshot does the same around savevm, which a vhost-user device
	 * forbids: unplug, savevm, plug. What the guest had open is reset, what
	 * listens there on VMADDR_CID_ANY goes on listening.
	 * -ETIMEDOUT: the guest did not let go of it; plug then says -EEXIST until it
	 * does. -ENOTSUP: a VM that was started without. */
	void (*vsock_plug)(struct driver *d, driver_done_fn done, void *arg);
	void (*vsock_unplug)(struct driver *d, driver_done_fn done, void *arg);	/* none: done */
	/* DRIVER_VSOCK, while it runs: its own network takes what comes to
	 * spec->ssh_port to the guest's 22, or no longer does. */
	void (*ssh_forward)(struct driver *d, bool on, driver_done_fn done, void *arg);
	/* DRIVER_SNAPSHOTS, while it runs, one of them at a time. What may be asked for is
	 * the caller's to see to (snapshot_check_change()), and that the vsock device is
	 * out for create and apply. The guest stands still meanwhile; of an "apply" that
	 * is done it is as it was then, and its clock, its ssh connections and its agent's
	 * link are of that time. */
	void (*snapshots)(struct driver *d, driver_snapshots_fn listed, void *arg);
	void (*snapshot)(struct driver *d, enum snapshot_change change, const char *tag,
			 driver_done_fn done, void *arg);
	/* Asks the guest to power off, then quits, then kills; each with its
	 * wait (qemu/stop.h), and all that after a snapshot that is under way: delayed().
	 * @force starts at quit, now, also when a patient stop is under way already:
	 * both callbacks run. DRIVER_EXITED comes before them; a start() in flight
	 * ends with -ECANCELED. */
	void (*stop)(struct driver *d, bool force, driver_done_fn done, void *arg);
	/* Lets go; a running VM goes on running. Frees when its handles closed. */
	void (*close)(struct driver *d);
};

/* By vmType; NULL when unknown. */
const struct driver_ops *driver_find(const char *vm_type);
/* All of them, NULL-terminated. */
const struct driver_ops *const *driver_all(void);
