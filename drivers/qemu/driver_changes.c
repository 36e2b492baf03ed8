#include <assert.h>
#include <errno.h>

#include "drivers/qemu/driver_impl.h"
#include "lib/base/mem.h"
#include "lib/base/scoped.h"

static void is_done(struct vm_change *v, const struct error *err)
{
	driver_done_fn done = v->done;

	change_free(steal_ptr(&v->change));
	done(v->arg, err);
}

static void on_done(void *arg, const struct error *err)
{
	is_done(arg, err);
}

static void begin(struct driver *d, int slot, enum change_kind kind, driver_done_fn done, void *arg)
{
	struct qemu_vm *vm = (struct qemu_vm *)d;
	struct vm_change *v = &vm->changes[slot];
	const struct change_options o = {
		.loop = vm->loop,
		.qmp = vm->state == VM_RUNNING ? vm->qmp : NULL,
		.vsock_socket = layout_file_name(FILE_VSOCK_SOCK),	/* QEMU's working directory
									 * is the instance's */
		.ssh_port = vm->spec->ssh_port,
		.guest_ms = vm->unplug_ms,
	};

	assert(!v->change);
	v->vm = vm;
	v->done = done;
	v->arg = arg;
	v->change = change_begin(&o, kind, on_done, v);
}

void vm_vsock_plug(struct driver *d, driver_done_fn done, void *arg)
{
	begin(d, VM_CHANGE_VSOCK, CHANGE_VSOCK_IN, done, arg);
}

void vm_vsock_unplug(struct driver *d, driver_done_fn done, void *arg)
{
	begin(d, VM_CHANGE_VSOCK, CHANGE_VSOCK_OUT, done, arg);
}

void vm_ssh_forward(struct driver *d, bool on, driver_done_fn done, void *arg)
{
	begin(d, VM_CHANGE_SSH, on ? CHANGE_SSH_ON : CHANGE_SSH_OFF, done, arg);
}

void vm_changes_event(struct qemu_vm *vm, const char *name, json_t *data)
{
	for (size_t i = 0; i < VM_CHANGES; i++)
		if (vm->changes[i].change)
			change_event(vm->changes[i].change, name, data);
}

void vm_changes_lost(struct qemu_vm *vm)
{
	for (size_t i = 0; i < VM_CHANGES; i++)
		if (vm->changes[i].change)
			change_qmp_lost(vm->changes[i].change);
}

void vm_changes_cancel(struct qemu_vm *vm)
{
	struct error canceled = ERROR_NONE;

	error_set(&canceled, -ECANCELED, "driver closed");
	for (size_t i = 0; i < VM_CHANGES; i++)
		if (vm->changes[i].change)
			is_done(&vm->changes[i], &canceled);
}
