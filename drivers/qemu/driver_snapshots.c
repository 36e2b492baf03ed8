#include <assert.h>
#include <errno.h>

#include "drivers/qemu/driver_impl.h"
#include "lib/base/mem.h"

enum {
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

static void on_done(void *arg, const struct error *err)
{
	struct qemu_vm *vm = arg;
	struct qemu_snapshot *s = steal_ptr(&vm->snapshot.under_way);

	vm->snapshot.done(vm->snapshot.arg, err);
	qemu_snapshot_free(s);
	vm_snapshot_is_over(vm);
}

static struct qemu_snapshot_options options(struct qemu_vm *vm)
{
	uint64_t ms = JOB_BASE_MS + vm->spec->config->memory_bytes / SLOW_DISK_BYTES_PER_MS;

	return (struct qemu_snapshot_options){
		.loop = vm->loop,
		.qmp = vm->state == VM_RUNNING ? vm->qmp : NULL,
		.job_ms = (unsigned)MIN(ms, UINT64_C(24) * 3600 * 1000),
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
	return vm->snapshot.under_way && vm->snapshot.done;
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
