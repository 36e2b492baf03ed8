/* change.h - a change to a running QEMU: some QMP commands in a row
 *
 *	vsock in	what is left of earlier ones is removed, chardev-add, device_add
 *	vsock out	device_del, the guest lets go of it, chardev-remove
 *	ssh on, off	the user network's forward to the guest's port 22
 *
 * The guest has a say in "out": it takes a tenth of a second, with PCIe's own
 * hot-plug (aarch64) five seconds, and for ever when its kernel does not run or
 * does not want to. So there is a deadline over the whole, and a device that
 * goes later is simply not there any more when the next change looks.
 *
 * QEMU connects to the vsock's socket and asks its questions inside device_add,
 * with its main loop standing still: who listens there must be answering.
 */
#pragma once

#include <stdint.h>

#include "drivers/driver.h"
#include "drivers/qemu/qmp.h"
#include "lib/base/loop.h"

enum change_kind { CHANGE_VSOCK_IN, CHANGE_VSOCK_OUT, CHANGE_SSH_ON, CHANGE_SSH_OFF };

struct change_options {
	struct loop *loop;
	struct qmp *qmp;		/* NULL: it fails; borrowed until change_free() */
	const char *vsock_socket;	/* for "in"; as QEMU shall see it; static */
	uint16_t ssh_port;		/* for "ssh" */
	unsigned guest_ms;		/* the guest's time in "out"; 0: 30 s */
};

struct change;

/* @done: -ENOTSUP this QEMU has no place for the device, -EEXIST one is in it,
 * -ETIMEDOUT the guest did not let go, -EREMOTEIO what QEMU says. Out with none
 * in is no error, nor is a forward that is as it should be. Never before this
 * returned; the caller frees it then. */
struct change *change_begin(const struct change_options *o, enum change_kind kind,
			    driver_done_fn done, void *arg);
/* QMP's events are passed on. */
void change_event(struct change *c, const char *name, json_t *data);
/* The connection is gone: ends with -ECONNRESET, if it did not end yet. */
void change_qmp_lost(struct change *c);
/* Any time, also inside done; no callback follows. */
void change_free(struct change *c);
