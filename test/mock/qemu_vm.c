#include "test/mock/qemu_vm.h"

#include <assert.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "lib/base/path.h"

enum { GIVE_UP_MS = 60000, TICK_MS = 20 };

/* ACPI PM1 registers of QEMU's q35 under SeaBIOS: status 0x600, enable 0x602,
 * control 0x604 (QEMU hw/acpi/ich9). 16-bit code at 0x7c00. */
const uint8_t guest_obeys[GUEST_OBEYS_BYTES] = {
	0xba, 0x02, 0x06,	/*	mov dx, 0x602		PM1_EN */
	0xb8, 0x00, 0x01,	/*	mov ax, 0x100		power button */
	0xef,			/*	out dx, ax */
	0xfb,			/* wait: sti */
	0xf4,			/*	hlt			until the next timer tick */
	0xba, 0x00, 0x06,	/*	mov dx, 0x600		PM1_STS */
	0xed,			/*	in ax, dx */
	0xf6, 0xc4, 0x01,	/*	test ah, 1		power button pressed? */
	0x74, 0xf5,		/*	jz wait */
	0xba, 0x04, 0x06,	/*	mov dx, 0x604		PM1_CNT */
	0xb8, 0x00, 0x20,	/*	mov ax, 0x2000		S5 now */
	0xef,			/*	out dx, ax */
	0xf4, 0xeb, 0xfd,	/* off: hlt; jmp off */
};
const struct stop_waits qemu_vm_short_waits = {
	.powerdown_ms = 30000, .ignored_ms = 30000, .again_ms = 200,
	.quit_ms = 5000, .term_ms = 5000, .kill_ms = 5000,
};

/* Ticks, so that a turn of the loop ends also when what it did was a timer's. */
static void on_guard(uv_timer_t *t)
{
	static_assert(GIVE_UP_MS % TICK_MS == 0, "whole ticks");
	t->data = (char *)t->data + TICK_MS;
	if ((uintptr_t)t->data >= GIVE_UP_MS)
		fail_msg("nothing happened for %d ms", GIVE_UP_MS);
}

static void on_event(void *arg, enum driver_event event, const char *detail)
{
	struct vm *vm = arg;

	vm->after_exit |= vm->n_event[DRIVER_EXITED] > 0;
	vm->n_event[event]++;
	if (event == DRIVER_EXITED)
		snprintf(vm->exit_detail, sizeof(vm->exit_detail), "%s", detail);
}

static void on_notice(void *arg, const char *text)
{
	strv_add(&((struct vm *)arg)->notices, text);
}

static void on_delayed(void *arg, const char *text, unsigned ms)
{
	on_notice(arg, text);
	((struct vm *)arg)->delay_ms = ms;
}

void qemu_vm_is_done(void *arg, const struct error *err)
{
	struct done *d = arg;

	d->n++;
	d->err = *err;
}

bool qemu_vm_noticed(const struct vm *vm, const char *part)
{
	const char *text;

	strv_foreach(text, &vm->notices)
		if (strstr(text, part))
			return true;
	return false;
}

char *qemu_vm_file(const struct vm *vm, enum instance_file f)
{
	return layout_instance_file(vm->dir, f);
}

static uint16_t free_port(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	return ntohs(sa.sin_port);
}

void qemu_vm_open_driver(struct vm *vm)
{
	const struct driver_callbacks cb = { on_event, on_notice, on_delayed, vm };
	struct error err = ERROR_NONE;

	assert_int_equal(qemu_driver_ops.open(&vm->loop, &vm->spec, &cb, &vm->driver, &err), 0);
	qemu_driver_set_waits(vm->driver, &qemu_vm_short_waits);
}

void qemu_vm_begin(struct vm *vm, const uint8_t *code, size_t len)
{
	scoped_free uint8_t *disk = xcalloc(1, VM_DISK_BYTES);
	struct error err = ERROR_NONE;

	*vm = (struct vm){
		.dir = "/tmp/lima-driver.XXXXXX",
		.config = { .arch = ARCH_X86_64, .cpus = 1, .memory_bytes = 64 << 20,
			    .firmware = { .legacy_bios = true } },
	};
	assert_non_null(mkdtemp(vm->dir));
	vm->spec = (struct driver_spec){
		.name = "dev", .dir = vm->dir, .config = &vm->config, .ssh_port = free_port(),
	};
	memcpy(disk, code, len);
	disk[510] = 0x55;
	disk[511] = 0xaa;
	scoped_free char *path = qemu_vm_file(vm, FILE_DISK), *seed = qemu_vm_file(vm, FILE_CIDATA);
	assert_int_equal(path_write_file(path, disk, VM_DISK_BYTES, 0600, &err), 0);
	assert_int_equal(path_write_file(seed, disk + VM_SECTOR, 2048, 0600, &err), 0);
	assert_int_equal(loop_init(&vm->loop, &err), 0);
	uv_timer_init(&vm->loop.uv, &vm->guard);
	vm->guard.data = NULL;
	uv_timer_start(&vm->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&vm->guard);
	qemu_vm_open_driver(vm);
}

void qemu_vm_finish(struct vm *vm)
{
	struct error err = ERROR_NONE;

	qemu_driver_ops.close(vm->driver);
	uv_run(&vm->loop.uv, UV_RUN_DEFAULT);	/* a killed child is still to be reaped */
	uv_close((uv_handle_t *)&vm->guard, NULL);
	assert_int_equal(loop_done(&vm->loop), 0);
	assert_false(vm->after_exit);
	strv_done(&vm->notices);
	assert_int_equal(path_remove_tree(vm->dir, &err), 0);
}

void qemu_vm_start(struct vm *vm)
{
	qemu_driver_ops.start(vm->driver, qemu_vm_is_done, &vm->started);
	assert_int_equal(vm->started.n, 0);
	qemu_vm_run_until(vm, vm->started.n);
}

void qemu_vm_start_well(struct vm *vm)
{
	qemu_vm_start(vm);
	if (vm->started.err.code)
		fail_msg("start: %s", vm->started.err.msg);
}

void qemu_vm_stop(struct vm *vm, bool force)
{
	qemu_driver_ops.stop(vm->driver, force, qemu_vm_is_done, &vm->stopped);
	assert_int_equal(vm->stopped.n, 0);
	qemu_vm_run_until(vm, vm->stopped.n);
	assert_int_equal(vm->stopped.err.code, 0);
}

int qemu_vm_skip_code(void)
{
	scoped_free char *program = path_find_program("qemu-system-x86_64");

	return program ? 0 : 77;
}
