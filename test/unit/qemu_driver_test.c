/* The driver against a real QEMU. The guests are boot sectors of a few bytes that
 * do one thing each: wait for the power button and obey, power off, reset,
 * nothing. Started by SeaBIOS under TCG they are there in about half a second. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "drivers/qemu/driver.h"
#include "drivers/qemu/endpoint.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"
#include "lib/store/layout.h"
#include "lib/store/pid.h"

enum { GIVE_UP_MS = 60000, TICK_MS = 20, SECTOR = 512, DISK_BYTES = 1 << 20 };

/* ACPI PM1 registers of QEMU's q35 under SeaBIOS: status 0x600, enable 0x602,
 * control 0x604 (QEMU hw/acpi/ich9). 16-bit code at 0x7c00. */
static const uint8_t guest_obeys[] = {
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
static const uint8_t guest_powers_off[] = {
	0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd,
};
static const uint8_t guest_resets[] = {
	0xba, 0xf9, 0x0c,	/*	mov dx, 0xcf9		reset control */
	0xb0, 0x06,		/*	mov al, 6 */
	0xee,			/*	out dx, al */
	0xf4, 0xeb, 0xfd,
};
/* Writes 4 KiB after 4 KiB by the BIOS (int 13h, extended write) until told off. */
static const uint8_t guest_fills_its_disk[] = {
	0x31, 0xc0,		/*	xor ax, ax */
	0x8e, 0xd8,		/*	mov ds, ax */
	0xbe, 0x40, 0x7c,	/*	mov si, packet */
	0xb4, 0x43,		/* next: mov ah, 0x43 */
	0x30, 0xc0,		/*	xor al, al */
	0xb2, 0x80,		/*	mov dl, 0x80		first disk */
	0xcd, 0x13,		/*	int 0x13 */
	0x66, 0x83, 0x06, 0x48, 0x7c, 0x08,	/* add dword [packet + 8], 8 */
	0xeb, 0xf0,		/*	jmp next */
	[0x40] = 16, 0,		/* packet: its size, sectors, buffer 0:7c00, first sector */
	[0x42] = 8, 0, 0x00, 0x7c, 0, 0,
	[0x48] = 8, 0, 0, 0, 0, 0, 0, 0,
};
static const uint8_t guest_sleeps[] = { 0xfb, 0xf4, 0xeb, 0xfc };	/* sti; hlt; again */

/* In tests nobody waits for a guest's services. */
static const struct stop_waits short_waits = {
	.powerdown_ms = 30000, .ignored_ms = 30000, .again_ms = 200,
	.quit_ms = 5000, .term_ms = 5000, .kill_ms = 5000,
};

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
	int n_snapshots;	/* listed last; -1: it failed */
	bool listed;
	bool after_exit;	/* an event came after the last one */
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

static void on_done(void *arg, const struct error *err)
{
	struct done *d = arg;

	d->n++;
	d->err = *err;
}

static bool noticed(const struct vm *vm, const char *part)
{
	const char *text;

	strv_foreach(text, &vm->notices)
		if (strstr(text, part))
			return true;
	return false;
}

static char *file(const struct vm *vm, enum instance_file f)
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

static void open_driver(struct vm *vm)
{
	const struct driver_callbacks cb = { on_event, on_notice, vm };
	struct error err = ERROR_NONE;

	assert_int_equal(qemu_driver_ops.open(&vm->loop, &vm->spec, &cb, &vm->driver, &err), 0);
	qemu_driver_set_waits(vm->driver, &short_waits);
}

static void begin(struct vm *vm, const uint8_t *code, size_t len)
{
	scoped_free uint8_t *disk = xcalloc(1, DISK_BYTES);
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
	scoped_free char *path = file(vm, FILE_DISK), *seed = file(vm, FILE_CIDATA);
	assert_int_equal(path_write_file(path, disk, DISK_BYTES, 0600, &err), 0);
	assert_int_equal(path_write_file(seed, disk + SECTOR, 2048, 0600, &err), 0);
	assert_int_equal(loop_init(&vm->loop, &err), 0);
	uv_timer_init(&vm->loop.uv, &vm->guard);
	vm->guard.data = NULL;
	uv_timer_start(&vm->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&vm->guard);
	open_driver(vm);
}

#define run_until(vm, cond) \
	while (!(cond))     \
	uv_run(&(vm)->loop.uv, UV_RUN_ONCE)

static void finish(struct vm *vm)
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

static void start(struct vm *vm)
{
	qemu_driver_ops.start(vm->driver, on_done, &vm->started);
	assert_int_equal(vm->started.n, 0);
	run_until(vm, vm->started.n);
}

static void start_well(struct vm *vm)
{
	start(vm);
	if (vm->started.err.code)
		fail_msg("start: %s", vm->started.err.msg);
}

static void stop(struct vm *vm, bool force)
{
	qemu_driver_ops.stop(vm->driver, force, on_done, &vm->stopped);
	assert_int_equal(vm->stopped.n, 0);
	run_until(vm, vm->stopped.n);
	assert_int_equal(vm->stopped.err.code, 0);
}

static void assert_no_files_left(const struct vm *vm)
{
	static const enum instance_file gone[] = { FILE_QMP_SOCK, FILE_GA_SOCK, FILE_SERIAL_SOCK,
						   FILE_QEMU_PID };

	for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
		scoped_free char *path = file(vm, gone[i]);
		assert_false(path_exists(path));
	}
}

static pid_t vm_pid(struct vm *vm)
{
	struct driver_info info;

	qemu_driver_ops.info(vm->driver, &info);
	return info.pid;
}

/* --- tests ----------------------------------------------------------------------- */

static void test_driver_start_and_obedient_stop(void **state)
{
	scoped_strv struct strv warnings = { 0 };
	struct error err = ERROR_NONE;
	struct driver_info info;
	struct stat st;
	struct vm vm;
	int fd = -1;

	begin(&vm, guest_obeys, sizeof(guest_obeys));
	assert_int_equal(qemu_driver_ops.validate(&vm.spec, &warnings, &err), 0);
	assert_int_equal(qemu_driver_ops.agent_connect(vm.driver, &fd, &err), -EAGAIN);
	start_well(&vm);

	qemu_driver_ops.info(vm.driver, &info);
	assert_true(streq(info.accel, "tcg") || streq(info.accel, "kvm"));
	assert_int_equal(noticed(&vm, "using TCG (slow): "), streq(info.accel, "tcg"));
	assert_string_equal(info.machine, "q35");
	scoped_free char *pid_path = file(&vm, FILE_QEMU_PID), *log = file(&vm, FILE_SERIAL_LOG);
	scoped_buf struct buf pid_text = { 0 };
	assert_int_equal(pid_file_read(pid_path, NULL), info.pid);
	assert_int_equal(path_read_file(pid_path, 4096, &pid_text, &err), 0);
	assert_non_null(strchr(buf_str(&pid_text), '-'));	/* ours has the boot id */
	assert_int_equal(stat(log, &st), 0);
	assert_int_equal(st.st_mode & 077, 0);
	assert_int_equal(getsid(info.pid), info.pid);
	assert_int_equal(qemu_driver_ops.agent_connect(vm.driver, &fd, &err), 0);
	close(fd);

	stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 1);
	assert_string_equal(vm.exit_detail, "");
	assert_false(noticed(&vm, "did not"));
	assert_int_equal(kill(info.pid, 0), -1);
	assert_no_files_left(&vm);
	vm.stopped.n = 0;
	stop(&vm, false);	/* again: nothing to do, still answered */
	finish(&vm);
}

static void test_driver_second_start_is_refused(void **state)
{
	struct vm vm;
	struct driver *first;
	pid_t pid;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	start_well(&vm);
	pid = vm_pid(&vm);
	first = vm.driver;
	open_driver(&vm);
	vm.started.n = 0;
	start(&vm);
	assert_int_equal(vm.started.err.code, -EBUSY);
	scoped_free char *want = xasprintf("QEMU runs already for `dev` (pid %d)", pid);
	assert_string_equal(vm.started.err.msg, want);
	assert_int_equal(kill(pid, 0), 0);
	qemu_driver_ops.close(vm.driver);
	vm.driver = first;
	stop(&vm, true);
	finish(&vm);
}

static void test_driver_guest_powers_off(void **state)
{
	struct vm vm;

	begin(&vm, guest_powers_off, sizeof(guest_powers_off));
	start_well(&vm);
	run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_string_equal(vm.exit_detail, "the guest powered off");
	assert_no_files_left(&vm);
	finish(&vm);
}

static void test_driver_guest_resets(void **state)
{
	struct vm vm;

	begin(&vm, guest_resets, sizeof(guest_resets));
	start_well(&vm);
	run_until(&vm, vm.n_event[DRIVER_RESET] >= 2);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 0);
	stop(&vm, true);
	finish(&vm);
}

static void test_driver_guest_ignores_the_button(void **state)
{
	struct stop_waits waits = short_waits;
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	waits.powerdown_ms = 500;
	qemu_driver_set_waits(vm.driver, &waits);
	start_well(&vm);
	stop(&vm, false);
	assert_true(noticed(&vm, "the guest did not power off"));
	assert_string_equal(vm.exit_detail, "");
	finish(&vm);
}

static void test_driver_impatience(void **state)
{
	struct done forced = { 0 };
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	start_well(&vm);
	qemu_driver_ops.stop(vm.driver, false, on_done, &vm.stopped);
	qemu_driver_ops.stop(vm.driver, true, on_done, &forced);
	run_until(&vm, vm.stopped.n && forced.n);
	assert_int_equal(vm.stopped.err.code, 0);
	assert_int_equal(forced.err.code, 0);
	finish(&vm);
}

static void test_driver_frozen_qemu_is_killed(void **state)
{
	struct stop_waits waits = { 300, 300, 100, 300, 300, 10000 };
	struct vm vm;

	begin(&vm, guest_obeys, sizeof(guest_obeys));
	qemu_driver_set_waits(vm.driver, &waits);
	start_well(&vm);
	assert_int_equal(kill(vm_pid(&vm), SIGSTOP), 0);
	stop(&vm, false);
	assert_true(noticed(&vm, "did not end by quit"));
	assert_true(noticed(&vm, "did not end by SIGTERM"));
	assert_no_files_left(&vm);
	finish(&vm);
}

static void test_driver_qemu_is_killed_by_somebody(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	start_well(&vm);
	assert_int_equal(kill(vm_pid(&vm), SIGKILL), 0);
	run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_non_null(strstr(vm.exit_detail, "QEMU was killed (SIGKILL)"));
	assert_no_files_left(&vm);
	finish(&vm);
}

static void test_driver_adopts_after_our_death(void **state)
{
	struct vm vm;
	struct driver_info before, after;
	struct error err = ERROR_NONE;
	int fd;

	begin(&vm, guest_obeys, sizeof(guest_obeys));
	start_well(&vm);
	qemu_driver_ops.info(vm.driver, &before);
	for (int lost_pid_file = 0; lost_pid_file < 2; lost_pid_file++) {
		scoped_free char *pid_path = file(&vm, FILE_QEMU_PID);

		qemu_driver_ops.close(vm.driver);
		assert_int_equal(kill(before.pid, 0), 0);
		if (lost_pid_file)
			assert_int_equal(unlink(pid_path), 0);
		open_driver(&vm);
		vm.started.n = 0;
		qemu_driver_ops.adopt(vm.driver, on_done, &vm.started);
		run_until(&vm, vm.started.n);
		assert_int_equal(vm.started.err.code, 0);
		qemu_driver_ops.info(vm.driver, &after);
		assert_int_equal(after.pid, before.pid);
		assert_string_equal(after.accel, before.accel);
		assert_string_equal(after.machine, before.machine);
		assert_string_equal(after.version, before.version);
		assert_int_equal(pid_file_read(pid_path, NULL), before.pid);
	}
	assert_int_equal(qemu_driver_ops.agent_connect(vm.driver, &fd, &err), 0);
	close(fd);
	stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_string_equal(vm.exit_detail, "");
	assert_no_files_left(&vm);
	finish(&vm);
}

static void test_driver_adopted_qemu_is_killed(void **state)
{
	struct vm vm;
	pid_t pid;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	start_well(&vm);
	pid = vm_pid(&vm);
	qemu_driver_ops.close(vm.driver);
	open_driver(&vm);
	vm.started.n = 0;
	qemu_driver_ops.adopt(vm.driver, on_done, &vm.started);
	run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_true(*vm.exit_detail);
	finish(&vm);
}

static void test_driver_nobody_to_adopt(void **state)
{
	struct error err = ERROR_NONE;
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *pid_path = file(&vm, FILE_QEMU_PID);
	/* one line, a process that lives and is no QEMU: pid reuse */
	scoped_free char *stale = xasprintf("%d\n", getpid());
	assert_int_equal(path_write_file(pid_path, stale, strlen(stale), 0644, &err), 0);
	qemu_driver_ops.adopt(vm.driver, on_done, &vm.started);
	run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, -ENOENT);
	/* start is still allowed, over what was left */
	vm.started.n = 0;
	start_well(&vm);
	stop(&vm, true);
	finish(&vm);
}

static void test_driver_start_fails_with_qemus_words(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	vm.config.qemu_cpu_type = (char *)"no-such-cpu";
	start(&vm);
	assert_int_equal(vm.started.err.code, -EIO);
	assert_non_null(strstr(vm.started.err.msg, "QEMU exited with code 1"));
	assert_non_null(strstr(vm.started.err.msg, "no-such-cpu"));
	assert_int_equal(vm.n_event[DRIVER_EXITED], 0);
	assert_no_files_left(&vm);
	finish(&vm);
}

/* As with a QEMU that was built without the device: it ends and names it. */
static void test_driver_starts_without_what_it_cannot_have(void **state)
{
	struct error err = ERROR_NONE;
	struct driver_info info;
	struct vm vm;

	begin(&vm, guest_obeys, sizeof(guest_obeys));
	vm.spec.vsock = vm.spec.ssh_over_vsock = true;
	start_well(&vm);	/* nobody listens at vsock.sock */
	qemu_driver_ops.info(vm.driver, &info);
	assert_false(info.vsock);
	scoped_free char *log = file(&vm, FILE_QEMU_LOG);
	scoped_buf struct buf b = { 0 };
	assert_int_equal(path_read_file(log, 65536, &b, &err), 0);
	assert_null(strstr(buf_str(&b), "vsock"));
	assert_non_null(strstr(buf_str(&b), "hostfwd"));	/* ssh has its way then */
	stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 1);
	finish(&vm);
}

static void test_driver_changes_the_running_vm(void **state)
{
	struct done done = { 0 };
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.vsock_unplug(vm.driver, on_done, &done);	/* it does not run */
	run_until(&vm, done.n);
	assert_int_equal(done.err.code, -ECONNRESET);
	start_well(&vm);
	qemu_driver_ops.vsock_unplug(vm.driver, on_done, &done);
	run_until(&vm, done.n == 2);
	assert_int_equal(done.err.code, 0);
	qemu_driver_ops.vsock_plug(vm.driver, on_done, &done);
	run_until(&vm, done.n == 3);
	assert_int_equal(done.err.code, -ENOTSUP);
	for (int on = 0; on < 2; on++) {	/* off, off again is fine, on */
		qemu_driver_ops.ssh_forward(vm.driver, false, on_done, &done);
		run_until(&vm, done.n == 4u + (unsigned)on);
		assert_int_equal(done.err.code, 0);
	}
	qemu_driver_ops.ssh_forward(vm.driver, true, on_done, &done);
	run_until(&vm, done.n == 6);
	assert_int_equal(done.err.code, 0);
	qemu_driver_ops.ssh_forward(vm.driver, true, on_done, &done);
	run_until(&vm, done.n == 7);
	assert_int_equal(done.err.code, -EADDRINUSE);
	qemu_driver_ops.vsock_plug(vm.driver, on_done, &done);	/* close() tells it */
	stop(&vm, true);
	finish(&vm);
}

/* --- snapshots ------------------------------------------------------------------- */

/* A guest that writes a byte to its serial port when it boots, then obeys; its disk is
 * a qcow2. */
static void begin_with_qcow2(struct vm *vm)
{
	static const uint8_t tells[] = {
		0xba, 0xf8, 0x03,	/*	mov dx, 0x3f8 */
		0xb0, 'B', 0xee,	/*	mov al, 'B'; out dx, al */
	};
	uint8_t code[sizeof(tells) + sizeof(guest_obeys)];
	scoped_child_result struct child_result res = { 0 };
	struct error err = ERROR_NONE;

	memcpy(code, tells, sizeof(tells));
	memcpy(code + sizeof(tells), guest_obeys, sizeof(guest_obeys));
	begin(vm, code, sizeof(code));
	scoped_free char *disk = file(vm, FILE_DISK), *raw = xasprintf("%s.raw", disk);
	const char *const argv[] = { "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk, NULL };
	assert_int_equal(rename(disk, raw), 0);
	if (disk_run_qemu_img(argv, &res, &err) < 0)
		fail_msg("%s", err.msg);
}

/* Before that a reset may end in nothing: SeaBIOS under TCG does not stand one while
 * it starts, with or without snapshots. */
static void wait_for_boots(struct vm *vm, off_t n)
{
	scoped_free char *console = file(vm, FILE_SERIAL_LOG);
	struct stat st;

	run_until(vm, stat(console, &st) == 0 && st.st_size >= n);
}

static void snapshot(struct vm *vm, enum snapshot_change change, const char *tag, struct done *done)
{
	*done = (struct done){ 0 };
	qemu_driver_ops.snapshot(vm->driver, change, tag, on_done, done);
	run_until(vm, done->n);
}

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	struct vm *vm = arg;

	vm->n_snapshots = err->code ? -1 : (int)list->n;
	vm->listed = true;
}

static int count_snapshots(struct vm *vm)
{
	vm->listed = false;
	qemu_driver_ops.snapshots(vm->driver, on_listed, vm);
	run_until(vm, vm->listed);
	return vm->n_snapshots;
}

static void test_driver_snapshots(void **state)
{
	struct done done;
	struct vm vm;

	begin_with_qcow2(&vm);
	start_well(&vm);
	wait_for_boots(&vm, 1);
	assert_int_equal(count_snapshots(&vm), 0);
	snapshot(&vm, SNAPSHOT_CREATE, "a \"b\", c=d", &done);
	assert_int_equal(done.err.code, 0);
	assert_int_equal(count_snapshots(&vm), 1);
	snapshot(&vm, SNAPSHOT_CREATE, "a \"b\", c=d", &done);
	assert_int_equal(done.err.code, -EREMOTEIO);
	snapshot(&vm, SNAPSHOT_APPLY, "none", &done);
	assert_int_equal(done.err.code, -EREMOTEIO);
	snapshot(&vm, SNAPSHOT_APPLY, "a \"b\", c=d", &done);
	assert_int_equal(done.err.code, 0);
	stop(&vm, false);	/* so it runs after all that */
	finish(&vm);
}

/* The disk is set back, the memory cannot be: the guest boots. */
static void test_driver_snapshot_of_another_machine(void **state)
{
	struct done done;
	struct vm vm;

	begin_with_qcow2(&vm);
	start_well(&vm);
	wait_for_boots(&vm, 1);
	snapshot(&vm, SNAPSHOT_CREATE, "not found", &done);
	assert_int_equal(done.err.code, 0);
	stop(&vm, false);
	qemu_driver_ops.close(vm.driver);
	vm.config.memory_bytes *= 2;
	vm.started.n = vm.stopped.n = vm.n_event[DRIVER_EXITED] = 0;
	open_driver(&vm);
	start_well(&vm);
	wait_for_boots(&vm, 1);
	snapshot(&vm, SNAPSHOT_APPLY, "not found", &done);
	assert_int_equal(done.err.code, -EREMOTEIO);
	assert_non_null(strstr(done.err.msg, "the guest boots from that disk"));
	wait_for_boots(&vm, 2);
	snapshot(&vm, SNAPSHOT_DELETE, "not found", &done);
	assert_int_equal(done.err.code, 0);
	assert_int_equal(count_snapshots(&vm), 0);
	stop(&vm, false);
	finish(&vm);
}

/* QEMU hears nothing while it saves; a button it does not answer is no reason to end
 * it, nor the snapshot. */
static void test_driver_stop_during_a_snapshot(void **state)
{
	struct done done = { 0 };
	struct vm vm;

	begin_with_qcow2(&vm);
	start_well(&vm);
	wait_for_boots(&vm, 1);
	qemu_driver_ops.snapshot(vm.driver, SNAPSHOT_CREATE, "a", on_done, &done);
	qemu_driver_ops.stop(vm.driver, false, on_done, &vm.stopped);
	run_until(&vm, done.n);
	assert_int_equal(done.err.code, 0);
	assert_int_equal(vm.stopped.n, 0);
	assert_true(noticed(&vm, "a snapshot"));
	run_until(&vm, vm.stopped.n);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	finish(&vm);
}

/* Who does not want to wait need not. */
static void test_driver_impatience_during_a_snapshot(void **state)
{
	struct done done = { 0 }, forced = { 0 };
	struct vm vm;

	begin_with_qcow2(&vm);
	start_well(&vm);
	wait_for_boots(&vm, 1);
	qemu_driver_ops.snapshot(vm.driver, SNAPSHOT_CREATE, "a", on_done, &done);
	qemu_driver_ops.stop(vm.driver, false, on_done, &vm.stopped);
	qemu_driver_ops.stop(vm.driver, true, on_done, &forced);
	run_until(&vm, vm.stopped.n && forced.n && done.n);
	assert_int_equal(vm.stopped.err.code, 0);
	assert_string_equal(vm.exit_detail, "");
	finish(&vm);
}

static void test_driver_start_fails_on_a_taken_port(void **state)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	sa.sin_port = htons(vm.spec.ssh_port);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 1), 0);
	start(&vm);
	assert_non_null(strstr(vm.started.err.msg, "host forwarding rule"));
	finish(&vm);
}

static void test_driver_start_without_a_disk(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *disk = file(&vm, FILE_DISK);
	assert_int_equal(unlink(disk), 0);
	start(&vm);
	assert_int_equal(vm.started.err.code, -ENOENT);
	assert_non_null(strstr(vm.started.err.msg, disk));
	finish(&vm);
}

/* A guest wrote a qcow2 header with a backing file onto its raw disk. */
static void test_driver_disk_that_became_qcow2(void **state)
{
	static const uint8_t head[SECTOR] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3, [14] = 1, [19] = 8,
					      [23] = 16, [103] = 104 };
	scoped_fd int fd = -1;
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *disk = file(&vm, FILE_DISK);
	fd = open(disk, O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
	start(&vm);
	assert_int_equal(vm.started.err.code, -EPERM);
	assert_non_null(strstr(vm.started.err.msg, "names another file"));
	finish(&vm);
}

static void test_driver_stop_during_start(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, on_done, &vm.started);
	stop(&vm, false);
	assert_int_equal(vm.started.n, 1);
	assert_int_equal(vm.started.err.code, -ECANCELED);
	assert_no_files_left(&vm);
	finish(&vm);
}

static void test_driver_stop_between_spawn_and_greeting(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, on_done, &vm.started);
	run_until(&vm, vm_pid(&vm));
	assert_int_equal(vm.started.n, 0);
	stop(&vm, true);
	assert_int_equal(vm.started.n, 1);
	assert_no_files_left(&vm);
	finish(&vm);
}

/* The turn of the loop in which it happens is left to chance: stop after one
 * turn, after two, … until the start is done first. */
static void test_driver_stop_at_every_turn(void **state)
{
	bool start_was_first = false;

	for (int turns = 1; !start_was_first && turns < 200; turns++) {
		struct vm vm;

		begin(&vm, guest_sleeps, sizeof(guest_sleeps));
		qemu_driver_ops.start(vm.driver, on_done, &vm.started);
		for (int i = 0; i < turns && !vm.started.n; i++)
			uv_run(&vm.loop.uv, UV_RUN_ONCE);
		start_was_first = vm.started.n;
		stop(&vm, true);
		assert_int_equal(vm.started.n, 1);
		assert_int_equal(vm.started.err.code, start_was_first ? 0 : -ECANCELED);
		assert_int_equal(vm.n_event[DRIVER_EXITED], start_was_first);
		assert_no_files_left(&vm);
		finish(&vm);
	}
	assert_true(start_was_first);
}

/* Something that is not QMP answers there: not ours to kill, we only looked. */
static void test_driver_adopt_spares_what_it_cannot_talk_to(void **state)
{
	scoped_fd int listener = -1, peer = -1;
	struct error err = ERROR_NONE;
	pid_t pid = fork();
	struct vm vm;
	int status;

	if (pid == 0)
		for (;;)
			pause();
	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *pid_path = file(&vm, FILE_QEMU_PID), *qmp = file(&vm, FILE_QMP_SOCK);
	assert_int_equal(pid_file_write(pid_path, pid, &err), 0);
	assert_int_equal(endpoint_listen(qmp, &listener, &err), 0);
	assert_int_equal(fcntl(listener, F_SETFL, O_NONBLOCK), 0);
	qemu_driver_ops.adopt(vm.driver, on_done, &vm.started);
	run_until(&vm, (peer = accept(listener, NULL, NULL)) >= 0);
	assert_int_equal(write(peer, "hello\n", 6), 6);
	run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, -EPROTO);
	assert_non_null(strstr(vm.started.err.msg, "control channel does not work"));
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);	/* it lives */
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	finish(&vm);
}

static void test_driver_close_during_start(void **state)
{
	struct vm vm;

	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, on_done, &vm.started);
	qemu_driver_ops.close(vm.driver);
	assert_int_equal(vm.started.n, 1);
	assert_int_equal(vm.started.err.code, -ECANCELED);
	open_driver(&vm);
	finish(&vm);
}

static void test_driver_program_is_no_qemu(void **state)
{
	scoped_strv struct strv warnings = { 0 };
	struct error err = ERROR_NONE;
	struct vm vm;

	setenv("QEMU_SYSTEM_X86_64", "/bin/false", 1);
	begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	start(&vm);
	assert_int_equal(vm.started.err.code, -ENOEXEC);
	assert_int_equal(qemu_driver_ops.validate(&vm.spec, &warnings, &err), -ENOEXEC);
	assert_non_null(strstr(err.msg, "/bin/false"));
	finish(&vm);
	unsetenv("QEMU_SYSTEM_X86_64");
}

static bool put(const char *path, const char *text)
{
	scoped_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, text, strlen(text)) >= 0;
}

/* A mount namespace of our own, with a user namespace around it when we are
 * nobody special. */
static bool enter_namespace(void)
{
	uid_t uid = geteuid();
	scoped_free char *uid_map = xasprintf("0 %u 1", uid);
	scoped_free char *gid_map = xasprintf("0 %u 1", getegid());

	if (unshare(uid == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) < 0)
		return false;
	/* user_namespaces(7): a gid may be mapped once setgroups is given up */
	if (uid != 0 && (!put("/proc/self/setgroups", "deny") ||
			 !put("/proc/self/uid_map", uid_map) || !put("/proc/self/gid_map", gid_map)))
		return false;
	return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

/* Last: the namespace stays. */
static void test_driver_host_disk_is_full(void **state)
{
	struct error err = ERROR_NONE;
	struct vm vm;

	begin(&vm, guest_fills_its_disk, sizeof(guest_fills_its_disk));
	if (!enter_namespace()) {
		finish(&vm);
		skip();
	}
	scoped_free char *disk = file(&vm, FILE_DISK);
	scoped_buf struct buf content = { 0 };
	assert_int_equal(path_read_file(disk, DISK_BYTES, &content, &err), 0);
	assert_int_equal(mount("tmpfs", vm.dir, "tmpfs", 0, "size=2m"), 0);
	assert_int_equal(path_write_file(disk, content.data, SECTOR, 0600, &err), 0);
	assert_int_equal(truncate(disk, 64 << 20), 0);
	start_well(&vm);
	run_until(&vm, vm.n_event[DRIVER_PAUSED] && noticed(&vm, "no space left for "));
	assert_int_equal(mount("tmpfs", vm.dir, "tmpfs", MS_REMOUNT, "size=400m"), 0);
	run_until(&vm, vm.n_event[DRIVER_RESUMED]);
	assert_true(noticed(&vm, "there is room on the disk again"));
	stop(&vm, true);
	assert_int_equal(umount(vm.dir), 0);
	finish(&vm);
}

static int need_qemu(void)
{
	scoped_free char *program = path_find_program("qemu-system-x86_64");

	return program != NULL;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_driver_start_and_obedient_stop),
		cmocka_unit_test(test_driver_second_start_is_refused),
		cmocka_unit_test(test_driver_guest_powers_off),
		cmocka_unit_test(test_driver_guest_resets),
		cmocka_unit_test(test_driver_guest_ignores_the_button),
		cmocka_unit_test(test_driver_impatience),
		cmocka_unit_test(test_driver_frozen_qemu_is_killed),
		cmocka_unit_test(test_driver_qemu_is_killed_by_somebody),
		cmocka_unit_test(test_driver_adopts_after_our_death),
		cmocka_unit_test(test_driver_adopted_qemu_is_killed),
		cmocka_unit_test(test_driver_nobody_to_adopt),
		cmocka_unit_test(test_driver_start_fails_with_qemus_words),
		cmocka_unit_test(test_driver_starts_without_what_it_cannot_have),
		cmocka_unit_test(test_driver_changes_the_running_vm),
		cmocka_unit_test(test_driver_snapshots),
		cmocka_unit_test(test_driver_snapshot_of_another_machine),
		cmocka_unit_test(test_driver_stop_during_a_snapshot),
		cmocka_unit_test(test_driver_impatience_during_a_snapshot),
		cmocka_unit_test(test_driver_start_fails_on_a_taken_port),
		cmocka_unit_test(test_driver_start_without_a_disk),
		cmocka_unit_test(test_driver_disk_that_became_qcow2),
		cmocka_unit_test(test_driver_stop_during_start),
		cmocka_unit_test(test_driver_stop_between_spawn_and_greeting),
		cmocka_unit_test(test_driver_stop_at_every_turn),
		cmocka_unit_test(test_driver_adopt_spares_what_it_cannot_talk_to),
		cmocka_unit_test(test_driver_close_during_start),
		cmocka_unit_test(test_driver_program_is_no_qemu),
		cmocka_unit_test(test_driver_host_disk_is_full),
	};

	signal(SIGPIPE, SIG_IGN);	/* as the host agent does: a QMP peer may be gone */
	if (!need_qemu())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
