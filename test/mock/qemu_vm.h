/* qemu_vm.h - a real QEMU under the driver, in a directory of its own
 *
 * The guests are boot sectors of a few bytes that do one thing each. Started by
 * SeaBIOS under TCG they are there in about half a second.
 */
#pragma once

#include "drivers/qemu/driver.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

enum {
	VM_SECTOR = 512,
	VM_DISK_BYTES = 1 << 20,
	GUEST_OBEYS_BYTES = 28,
};

/* Waits for the power button, then powers off. */
extern const uint8_t guest_obeys[GUEST_OBEYS_BYTES];
/* In tests nobody waits for a guest's services. */
extern const struct stop_waits qemu_vm_short_waits;

struct done {
	unsigned n;
	struct error err;
};

struct vm {
	struct loop loop;
	uv_timer_t guard;
	char dir[64];
	struct config config;
	struct driver_spec spec;
	struct driver *driver;
	struct done started, stopped;
	unsigned n_event[DRIVER_AGENT_PORT_CLOSED + 1];
	char exit_detail[512];
	struct strv notices;
	unsigned delay_ms;	/* of the stop, as told */
	bool after_exit;	/* an event came after the last one */
};

#define qemu_vm_run_until(vm, cond) \
	while (!(cond))        \
	uv_run(&(vm)->loop.uv, UV_RUN_ONCE)

/* A raw disk that begins with @code; the driver is open. */
void qemu_vm_begin(struct vm *vm, const uint8_t *code, size_t len);
void qemu_vm_finish(struct vm *vm);
/* Again, for a machine that ended. */
void qemu_vm_open_driver(struct vm *vm);
void qemu_vm_start(struct vm *vm);
void qemu_vm_start_well(struct vm *vm);
void qemu_vm_stop(struct vm *vm, bool force);
/* A driver_done_fn; arg: a struct done. */
void qemu_vm_is_done(void *arg, const struct error *err);
bool qemu_vm_noticed(const struct vm *vm, const char *part);
char *qemu_vm_file(const struct vm *vm, enum instance_file f);	/* caller frees */
/* Exit code for a test that needs QEMU and has none; 0: there is one. */
int qemu_vm_skip_code(void);
