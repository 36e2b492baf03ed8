#include <assert.h>
#include <errno.h>

#include "drivers/qemu/driver_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	SETTLE_LOOK_MS = 1000,
	JOB_BASE_MS = 120 * 1000,
	SLOW_DISK_BYTES_PER_MS = (8 << 20) / 1000,	/* 8 MiB/s: a disk that is busy with
							 * other things as well */
};

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	struct qemu_vm *vm = arg;
	struct qemu_snapshot *s = steal_ptr(&vm->snapshot.under_way);

	vm->snapshot.listed(vm->snapshot.arg, list, err);
	qemu_snapshot_free(s);	/* the list was its */
}

static unsigned job_ms(const struct qemu_vm *vm)
{
	uint64_t ms = JOB_BASE_MS + vm->spec->config->memory_bytes / SLOW_DISK_BYTES_PER_MS;

	return vm->snapshot.job_ms ? vm->snapshot.job_ms : (unsigned)MIN(ms, UINT64_C(24) * 3600 * 1000);
}

/* --- a job whose end nobody saw ------------------------------------------------------ */

static void on_settled(struct qemu_vm *vm)
{
	uv_timer_stop(&vm->settle);
	vm->snapshot.unsettled = false;
	vm_snapshot_is_over(vm);
}

static void on_status(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_vm *vm = arg;

	vm->snapshot.asking = false;
	if (vm->closing || err->code)	/* the timer asks again */
		return;
	vm_look_at_status(vm, ret);
	on_settled(vm);
}

static void on_settle_timer(uv_timer_t *timer)
{
	struct qemu_vm *vm = timer->data;
	uint64_t now = uv_now(timer->loop), until = vm->snapshot.settle_until_ms;

	if (vm->closing)
		return;
	if (now >= until) {
		log_warn("driver: QEMU still answers nothing after a snapshot, pid %d", vm->info.pid);
		on_settled(vm);
	} else if (vm->qmp && !vm->snapshot.asking) {
		vm->snapshot.asking = true;
		qmp_call(vm->qmp, "query-status", NULL, (unsigned)(until - now), on_status, vm);
	}
}

static void settle(struct qemu_vm *vm)
{
	vm->snapshot.unsettled = true;
	vm->snapshot.settle_until_ms = uv_now(&vm->loop->uv) + job_ms(vm);
	uv_timer_start(&vm->settle, on_settle_timer, 0, SETTLE_LOOK_MS);
}

/* --- for the driver's table --------------------------------------------------------- */

static void on_done(void *arg, const struct error *err)
{
	struct qemu_vm *vm = arg;
	struct qemu_snapshot *s = steal_ptr(&vm->snapshot.under_way);

	if (qemu_snapshot_job_goes_on(s) && vm->process && !vm->closing)
		settle(vm);
	vm->snapshot.done(vm->snapshot.arg, err);
	qemu_snapshot_free(s);
	vm_snapshot_is_over(vm);
}

static struct qemu_snapshot_options options(struct qemu_vm *vm)
{
	return (struct qemu_snapshot_options){
		.loop = vm->loop,
		.qmp = vm->state == VM_RUNNING ? vm->qmp : NULL,
		.job_ms = job_ms(vm),
		.listed = on_listed,
		.done = on_done,
		.arg = vm,
	};
}

void vm_snapshots(struct driver *d, driver_snapshots_fn listed, void *arg)
{
	struct qemu_vm *vm = (struct qemu_vm *)d;
	const struct qemu_snapshot_options o = options(vm);

	assert(!vm->snapshot.under_way);
	vm->snapshot.listed = listed;
	vm->snapshot.done = NULL;
	vm->snapshot.arg = arg;
	vm->snapshot.under_way = qemu_snapshot_list(&o);
}

void vm_snapshot(struct driver *d, enum snapshot_change change, const char *tag,
		 driver_done_fn done, void *arg)
{
	struct qemu_vm *vm = (struct qemu_vm *)d;
	const struct qemu_snapshot_options o = options(vm);

	assert(!vm->snapshot.under_way);
	vm->snapshot.done = done;
	vm->snapshot.arg = arg;
	vm->snapshot.under_way = qemu_snapshot_change(&o, change, tag);
}

bool vm_snapshot_changes(const struct qemu_vm *vm)
{
	return vm->snapshot.unsettled || (vm->snapshot.under_way && vm->snapshot.done);
}

unsigned vm_snapshot_wait_ms(struct qemu_vm *vm)
{
	uint64_t now = uv_now(&vm->loop->uv);

	if (!vm->snapshot.unsettled)
		return 2 * job_ms(vm);	/* and as long again for an end that was not seen */
	return (unsigned)(vm->snapshot.settle_until_ms - MIN(now, vm->snapshot.settle_until_ms));
}

void vm_snapshot_event(struct qemu_vm *vm, const char *name, json_t *data)
{
	if (vm->snapshot.under_way)
		qemu_snapshot_event(vm->snapshot.under_way, name, data);
}

void vm_snapshot_lost(struct qemu_vm *vm)
{
	if (vm->snapshot.under_way)
		qemu_snapshot_qmp_lost(vm->snapshot.under_way);
}

void vm_snapshot_cancel(struct qemu_vm *vm)
{
	const struct snapshot_list none = { 0 };
	struct error canceled = ERROR_NONE;

	if (!vm->snapshot.under_way)
		return;
	error_set(&canceled, -ECANCELED, "driver closed");
	if (vm->snapshot.done)
		on_done(vm, &canceled);
	else
		on_listed(vm, &none, &canceled);
}
