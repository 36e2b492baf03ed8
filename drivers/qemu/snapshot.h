/* snapshot.h - snapshots of a running QEMU
 *
 *	list	query-named-block-nodes, of which one is the disk
 *	change	what is left of an earlier job is dismissed; snapshot-save, -load or
 *		-delete begins a job; its end is an event; query-jobs tells how it
 *		went; job-dismiss
 *
 * (QEMU docs: qapi/migration.json, qapi/job.json; jobs have been there since 6.0.)
 * The job does its work in QEMU's main loop: the vCPUs stand still, no QMP command
 * is answered, not even the one that asked for it, and it cannot be cancelled. So
 * the deadline is that of the whole, and grows with the guest's memory.
 *
 * A load that fails leaves the vCPUs stopped (QEMU 7.2 to 10 do). When nothing was
 * changed they are let go on. Otherwise the disk may be set back already and the memory
 * is not, so they are reset first: the guest boots from the disk it has now, as after a
 * power cut at that time. One that was paused before is reset and stays paused.
 */
#pragma once

#include "drivers/driver.h"
#include "drivers/qemu/qmp.h"

struct qemu_snapshot_options {
	struct loop *loop;
	struct qmp *qmp;		/* NULL: it fails; borrowed until qemu_snapshot_free() */
	unsigned job_ms;		/* for the whole change */
	driver_snapshots_fn listed;	/* the one that is called is by which begin */
	driver_done_fn done;
	void *arg;
};

struct qemu_snapshot;

/* -ENOTSUP this disk cannot, -EBUSY an earlier job still runs, -ETIMEDOUT,
 * -EREMOTEIO what QEMU says. Never before this returned; the caller frees it then. */
struct qemu_snapshot *qemu_snapshot_list(const struct qemu_snapshot_options *o);
struct qemu_snapshot *qemu_snapshot_change(const struct qemu_snapshot_options *o,
					   enum snapshot_change change, const char *tag);
/* QMP's events are passed on. */
void qemu_snapshot_event(struct qemu_snapshot *s, const char *name, json_t *data);
/* The connection is gone: ends with -ECONNRESET, if it did not end yet. */
void qemu_snapshot_qmp_lost(struct qemu_snapshot *s);
/* It ended and its job perhaps did not: the deadline passed, or the connection was lost.
 * QEMU answers nothing until it did. */
bool qemu_snapshot_job_goes_on(const struct qemu_snapshot *s);
/* Any time, also inside its callbacks; none follows. A job that runs goes on. */
void qemu_snapshot_free(struct qemu_snapshot *s);
