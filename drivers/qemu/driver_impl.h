/* driver_impl.h - the state of a QEMU, shared by driver*.c only
 *
 *	driver		life: start, adopt, stop
 *	driver_events	what QEMU tells by itself
 *	driver_changes	what is plugged in and out while it runs
 *	driver_snapshots	its states, taken and gone back to
 */
#pragma once

#include <jansson.h>

#include "drivers/qemu/change.h"
#include "drivers/qemu/driver.h"
#include "drivers/qemu/process.h"
#include "drivers/qemu/qmp.h"
#include "drivers/qemu/snapshot.h"
#include "drivers/qemu/stop.h"
#include "drivers/qemu/version.h"
#include "lib/base/child.h"
#include "lib/base/strv.h"
#include "lib/store/layout.h"

enum { QMP_CALL_MS = 10 * 1000 };

enum vm_state {			/* what is allowed:	start adopt | stop | agent_connect */
	VM_IDLE,		/*			  x     x   |  x   |               */
	VM_ASKING,		/* the version		            |  x   |               */
	VM_CONNECTING,		/* spawned or adopted, no QMP yet   |  x   |               */
	VM_RUNNING,		/*			            |  x   |       x       */
	VM_GONE,		/*			            |  x   |               */
};

enum { VM_CHANGE_VSOCK, VM_CHANGE_SSH, VM_CHANGES };	/* one of each at a time */

struct waiter {			/* a stop() that waits */
	driver_done_fn done;
	void *arg;
	struct waiter *next;
};

struct qemu_vm {		/* owner: the host agent. refs: own handles */
	struct loop *loop;
	const struct driver_spec *spec;
	struct driver_callbacks cb;
	struct stop_waits waits;
	enum vm_state state;
	unsigned refs;
	bool closing;

	uv_timer_t turn;	/* runs `next` at the next turn of the loop, or at a deadline */
	void (*next)(struct qemu_vm *vm);
	uv_timer_t room;	/* paused by a full disk: look for room */
	uv_timer_t logs;	/* while it runs: log_file.h */
	uv_timer_t settle;	/* a snapshot's job may go on: look for its end */

	driver_done_fn start_done;	/* start() or adopt() in flight */
	void *start_arg;
	struct waiter *waiters;
	struct error why;		/* what will be told if QEMU does not say it better */

	struct strv program;
	bool sandbox, sandbox_asked;
	struct child *question;
	struct process *process;
	struct qmp *qmp;
	struct stop *stop;
	bool stop_waits;		/* for a snapshot to be done */
	bool adopted, paused, agent_open, reconnecting;
	bool half_told;			/* what vm_look_at_status() has to say */
	char shutdown[64];		/* reason in QEMU's SHUTDOWN event, "" none */
	struct driver_info info;

	struct qemu_version version;	/* of the program that start() asked */
	bool no_vsock;			/* it did not start with it */
	unsigned unplug_ms;		/* for tests, 0: change.h's */
	struct vm_change {
		struct qemu_vm *vm;
		struct change *change;	/* NULL: none under way */
		driver_done_fn done;
		void *arg;
	} changes[VM_CHANGES];
	struct {
		struct qemu_snapshot *under_way;	/* NULL: none */
		driver_snapshots_fn listed;	/* one of the two */
		driver_done_fn done;
		void *arg;
		/* What nobody waits for any more, but whose end was not seen. */
		bool unsettled, asking;
		uint64_t settle_until_ms;	/* uv_now() time */
		unsigned job_ms;	/* for tests, 0: what the memory takes */
	} snapshot;
};

/* --- driver.c ------------------------------------------------------------ */
void vm_notice(struct qemu_vm *vm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vm_event(struct qemu_vm *vm, enum driver_event what, const char *detail);
char *vm_file(const struct qemu_vm *vm, enum instance_file f);	/* caller frees */

/* No change is under way any more; whoever was told may have closed the driver. */
void vm_snapshot_is_over(struct qemu_vm *vm);

/* --- driver_events.c ------------------------------------------------------ */
void vm_qmp_event(void *arg, const char *name, json_t *data);	/* arg: the vm */
void vm_watch_logs(struct qemu_vm *vm);
/* The vCPUs stand still, as found by asking. */
void vm_tell_paused(struct qemu_vm *vm, bool paused);
/* @status: of query-status. Tells the user, once, of a guest that must not run. */
void vm_look_at_status(struct qemu_vm *vm, const json_t *status);

/* --- driver_changes.c ----------------------------------------------------- */
void vm_vsock_plug(struct driver *d, driver_done_fn done, void *arg);
void vm_vsock_unplug(struct driver *d, driver_done_fn done, void *arg);
void vm_ssh_forward(struct driver *d, bool on, driver_done_fn done, void *arg);
void vm_changes_event(struct qemu_vm *vm, const char *name, json_t *data);
void vm_changes_lost(struct qemu_vm *vm);	/* no QMP any more */
void vm_changes_cancel(struct qemu_vm *vm);	/* tells them so and forgets them */

/* --- driver_snapshots.c --------------------------------------------------- */
void vm_snapshots(struct driver *d, driver_snapshots_fn listed, void *arg);
void vm_snapshot(struct driver *d, enum snapshot_change change, const char *tag,
		 driver_done_fn done, void *arg);
/* One is under way, or may be for all we know: QEMU hears nothing. */
bool vm_snapshot_changes(const struct qemu_vm *vm);
unsigned vm_snapshot_wait_ms(struct qemu_vm *vm);	/* how long at most */
void vm_snapshot_event(struct qemu_vm *vm, const char *name, json_t *data);
void vm_snapshot_lost(struct qemu_vm *vm);	/* no QMP any more */
void vm_snapshot_cancel(struct qemu_vm *vm);	/* tells it so and forgets it */
