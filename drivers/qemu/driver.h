/* driver.h - QEMU behind the driver interface
 *
 * One struct qemu_vm per instance. What it holds while the VM runs: the process
 * (watched, not owned: it outlives us), the QMP connection, and the sequence
 * that ends it. Start is a chain on the loop:
 *
 *   ask the version (child, 25 ms) → choose KVM or TCG → build argv → listen on
 *   the three sockets → spawn → QMP greets → query-status → pid file → done
 *
 * with one deadline over each wait, so a start ends in words, never in silence.
 * A QEMU that cannot have the vsock device ends at once, and is spawned again
 * without it. Adopting begins at the pid file or at who listens on qmp.sock, and joins the
 * chain at "QMP greets".
 */
#pragma once

#include "drivers/driver.h"
#include "drivers/qemu/stop.h"

extern const struct driver_ops qemu_driver_ops;

/* Shorter waits, for tests; before stop(). */
void qemu_driver_set_waits(struct driver *d, const struct stop_waits *waits);
/* For a snapshot's job; 0: what the memory takes. */
void qemu_driver_set_job_wait(struct driver *d, unsigned ms);
/* For the guest to let go of a device; 0: change.h's. */
void qemu_driver_set_unplug_wait(struct driver *d, unsigned ms);
