#include <stdio.h>
#include <sys/statvfs.h>

#include "drivers/qemu/args.h"
#include "drivers/qemu/driver_impl.h"
#include "drivers/qemu/run_state.h"
#include "lib/base/log.h"
#include "lib/base/log_file.h"
#include "lib/base/mem.h"

enum { ROOM_CHECK_MS = 5000 };
#define ROOM_MIN_BYTES (UINT64_C(256) << 20)	/* before a VM paused by a full disk goes on */

/* --- a full disk ----------------------------------------------------------------- */

/* What keeps it standing may be something else by now. */
static void on_room_status(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_vm *vm = arg;
	const char *why = run_state_forbids(ret);

	/* the timer asks again; a snapshot that began meanwhile would get our `cont` at its end */
	if (vm->closing || err->code || vm_snapshot_changes(vm) ||
	    !uv_is_active((uv_handle_t *)&vm->room))
		return;
	uv_timer_stop(&vm->room);
	if (why) {
		vm_notice(vm, "there is room on the disk again, but %s and must not run", why);
		return;
	}
	qmp_call(vm->qmp, "cont", NULL, QMP_CALL_MS, NULL, NULL);
	vm_notice(vm, "there is room on the disk again: the guest continues");
}

static void on_room_timer(uv_timer_t *timer)
{
	struct qemu_vm *vm = timer->data;
	struct statvfs fs;

	if (vm->closing || !vm->qmp || vm_snapshot_changes(vm) || statvfs(vm->spec->dir, &fs) < 0 ||
	    (uint64_t)fs.f_bavail * fs.f_frsize < ROOM_MIN_BYTES)
		return;
	qmp_call(vm->qmp, "query-status", NULL, QMP_CALL_MS, on_room_status, vm);
}

/* --- logs that grow ---------------------------------------------------------------- */

static void on_logs_timer(uv_timer_t *timer)
{
	static const enum instance_file files[] = { FILE_SERIAL_LOG, FILE_QEMU_LOG };
	struct qemu_vm *vm = timer->data;

	for (size_t i = 0; !vm->closing && i < ARRAY_SIZE(files); i++) {
		scoped_free char *path = vm_file(vm, files[i]);
		struct error err = ERROR_NONE;

		if (log_file_trim(path, LOG_FILE_MAX_BYTES, LOG_FILE_KEEP_BYTES,
				  "[… earlier lines were dropped]\n", &err) < 0)
			log_warn_limited("driver: %s, ignoring", err.msg);
	}
}

void vm_watch_logs(struct qemu_vm *vm)
{
	uv_timer_start(&vm->logs, on_logs_timer, LOG_FILE_LOOK_MS, LOG_FILE_LOOK_MS);
}

/* --- QMP events -------------------------------------------------------------------- */

static void on_shutdown(struct qemu_vm *vm, json_t *data)
{
	const char *reason = json_string_value(json_object_get(data, "reason"));
	bool guest = json_is_true(json_object_get(data, "guest"));

	snprintf(vm->shutdown, sizeof(vm->shutdown), "%s",
		 reason ? reason : (guest ? "guest-shutdown" : "host-qmp-quit"));
	if (guest)
		vm_event(vm, DRIVER_SHUTDOWN, vm->shutdown);
}

static void on_reset(struct qemu_vm *vm, json_t *data)
{
	const char *reason = json_string_value(json_object_get(data, "reason"));

	/* the guest's driver starts anew; not every QEMU tells of the port then */
	if (vm->agent_open) {
		vm->agent_open = false;
		vm_event(vm, DRIVER_AGENT_PORT_CLOSED, "reset");
	}
	vm_event(vm, DRIVER_RESET, reason ? reason : "");
}

void vm_tell_paused(struct qemu_vm *vm, bool paused)
{
	vm->paused = paused;
	if (!paused)
		uv_timer_stop(&vm->room);
	vm_event(vm, paused ? DRIVER_PAUSED : DRIVER_RESUMED, "");
}

void vm_look_at_status(struct qemu_vm *vm, const json_t *status)
{
	bool half = run_state_is_half_loaded(status);

	if (half && !vm->half_told)
		vm_notice(vm, "a snapshot could not be applied whole: the guest stands still with half of "
			  "its memory and must not run. limactl stop %s ends it, limactl start %s then "
			  "boots from the disk, which is the snapshot's", vm->spec->name,
			  vm->spec->name);
	vm->half_told = half;
}

static void on_paused(struct qemu_vm *vm, json_t *data)
{
	vm_tell_paused(vm, true);
}

static void on_resumed(struct qemu_vm *vm, json_t *data)
{
	vm_tell_paused(vm, false);
}

static void on_serial_port(struct qemu_vm *vm, json_t *data)
{
	const char *id = json_string_value(json_object_get(data, "id"));
	bool open = json_is_true(json_object_get(data, "open"));

	if (!id || !streq(id, QEMU_AGENT_PORT_ID) || open == vm->agent_open)
		return;
	vm->agent_open = open;
	vm_event(vm, open ? DRIVER_AGENT_PORT_OPEN : DRIVER_AGENT_PORT_CLOSED, "");
}

/* QEMU docs: BLOCK_IO_ERROR; with the default werror=enospc a full disk pauses
 * the guest instead of giving its file system an error. */
static void on_block_error(struct qemu_vm *vm, json_t *data)
{
	static struct log_limit limit;
	const char *reason = json_string_value(json_object_get(data, "reason"));
	const char *what = json_string_value(json_object_get(data, "operation"));
	scoped_free char *shown = log_escape(reason ? reason : "unknown", 200);

	if (json_is_true(json_object_get(data, "nospace"))) {
		if (uv_is_active((uv_handle_t *)&vm->room))
			return;
		uv_timer_start(&vm->room, on_room_timer, ROOM_CHECK_MS, ROOM_CHECK_MS);
		vm_notice(vm, "no space left for %s/%s: the guest is paused and goes on by itself "
		       "once 256 MiB are free", vm->spec->dir, layout_file_name(FILE_DISK));
	} else if (log_limit_pass(&limit)) {
		vm_notice(vm, "the host could not %s %s/%s for the guest: %s",
		       what && streq(what, "write") ? "write" : "read", vm->spec->dir,
		       layout_file_name(FILE_DISK), shown);
	}
}

static const struct {
	const char *name;
	void (*fn)(struct qemu_vm *vm, json_t *data);
} qmp_events[] = {
	{ "SHUTDOWN", on_shutdown },
	{ "RESET", on_reset },
	{ "STOP", on_paused },
	{ "RESUME", on_resumed },
	{ "VSERPORT_CHANGE", on_serial_port },
	{ "BLOCK_IO_ERROR", on_block_error },
};

void vm_qmp_event(void *arg, const char *name, json_t *data)
{
	struct qemu_vm *vm = arg;

	log_debug("driver: QMP event `%s`", name);
	vm_changes_event(vm, name, data);
	vm_snapshot_event(vm, name, data);
	for (size_t i = 0; i < ARRAY_SIZE(qmp_events); i++)
		if (streq(qmp_events[i].name, name)) {
			qmp_events[i].fn(vm, data);
			return;
		}
}
