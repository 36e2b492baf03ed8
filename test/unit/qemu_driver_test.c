/* The driver against a real QEMU. */
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

#include "drivers/qemu/endpoint.h"
#include "lib/base/clock.h"
#include "lib/base/path.h"
#include "lib/store/pid.h"
#include "test/mock/qemu_vm.h"

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

static void assert_no_files_left(const struct vm *vm)
{
	static const enum instance_file gone[] = { FILE_QMP_SOCK, FILE_GA_SOCK, FILE_SERIAL_SOCK,
						   FILE_QEMU_PID };

	for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
		scoped_free char *path = qemu_vm_file(vm, gone[i]);
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

	qemu_vm_begin(&vm, guest_obeys, sizeof(guest_obeys));
	assert_int_equal(qemu_driver_ops.validate(&vm.spec, &warnings, &err), 0);
	assert_int_equal(qemu_driver_ops.agent_connect(vm.driver, &fd, &err), -EAGAIN);
	qemu_vm_start_well(&vm);

	qemu_driver_ops.info(vm.driver, &info);
	assert_true(streq(info.accel, "tcg") || streq(info.accel, "kvm"));
	assert_int_equal(qemu_vm_noticed(&vm, "using TCG (slow): "), streq(info.accel, "tcg"));
	assert_string_equal(info.machine, "q35");
	scoped_free char *pid_path = qemu_vm_file(&vm, FILE_QEMU_PID), *log = qemu_vm_file(&vm, FILE_SERIAL_LOG);
	scoped_buf struct buf pid_text = { 0 };
	assert_int_equal(pid_file_read(pid_path, NULL), info.pid);
	assert_int_equal(path_read_file(pid_path, 4096, &pid_text, &err), 0);
	assert_non_null(strchr(buf_str(&pid_text), '-'));	/* ours has the boot id */
	assert_int_equal(stat(log, &st), 0);
	assert_int_equal(st.st_mode & 077, 0);
	assert_int_equal(getsid(info.pid), info.pid);
	assert_int_equal(qemu_driver_ops.agent_connect(vm.driver, &fd, &err), 0);
	close(fd);

	qemu_vm_stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 1);
	assert_string_equal(vm.exit_detail, "");
	assert_false(qemu_vm_noticed(&vm, "did not"));
	assert_int_equal(kill(info.pid, 0), -1);
	assert_no_files_left(&vm);
	vm.stopped.n = 0;
	qemu_vm_stop(&vm, false);	/* again: nothing to do, still answered */
	qemu_vm_finish(&vm);
}

static void test_driver_second_start_is_refused(void **state)
{
	struct vm vm;
	struct driver *first;
	pid_t pid;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_vm_start_well(&vm);
	pid = vm_pid(&vm);
	first = vm.driver;
	qemu_vm_open_driver(&vm);
	vm.started.n = 0;
	qemu_vm_start(&vm);
	assert_int_equal(vm.started.err.code, -EBUSY);
	scoped_free char *want = xasprintf("QEMU runs already for `dev` (pid %d)", pid);
	assert_string_equal(vm.started.err.msg, want);
	assert_int_equal(kill(pid, 0), 0);
	qemu_driver_ops.close(vm.driver);
	vm.driver = first;
	qemu_vm_stop(&vm, true);
	qemu_vm_finish(&vm);
}

static void test_driver_guest_powers_off(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_powers_off, sizeof(guest_powers_off));
	qemu_vm_start_well(&vm);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_string_equal(vm.exit_detail, "the guest powered off");
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_guest_resets(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_resets, sizeof(guest_resets));
	qemu_vm_start_well(&vm);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_RESET] >= 2);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 0);
	qemu_vm_stop(&vm, true);
	qemu_vm_finish(&vm);
}

static void test_driver_guest_ignores_the_button(void **state)
{
	struct stop_waits waits = qemu_vm_short_waits;
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	waits.powerdown_ms = 500;
	qemu_driver_set_waits(vm.driver, &waits);
	qemu_vm_start_well(&vm);
	qemu_vm_stop(&vm, false);
	assert_true(qemu_vm_noticed(&vm, "the guest did not power off"));
	assert_string_equal(vm.exit_detail, "");
	qemu_vm_finish(&vm);
}

static void test_driver_impatience(void **state)
{
	struct done forced = { 0 };
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_vm_start_well(&vm);
	qemu_driver_ops.stop(vm.driver, false, qemu_vm_is_done, &vm.stopped);
	qemu_driver_ops.stop(vm.driver, true, qemu_vm_is_done, &forced);
	qemu_vm_run_until(&vm, vm.stopped.n && forced.n);
	assert_int_equal(vm.stopped.err.code, 0);
	assert_int_equal(forced.err.code, 0);
	qemu_vm_finish(&vm);
}

static void test_driver_frozen_qemu_is_killed(void **state)
{
	struct stop_waits waits = { 300, 300, 100, 300, 300, 10000 };
	struct vm vm;

	qemu_vm_begin(&vm, guest_obeys, sizeof(guest_obeys));
	qemu_driver_set_waits(vm.driver, &waits);
	qemu_vm_start_well(&vm);
	assert_int_equal(kill(vm_pid(&vm), SIGSTOP), 0);
	qemu_vm_stop(&vm, false);
	assert_true(qemu_vm_noticed(&vm, "did not end by quit"));
	assert_true(qemu_vm_noticed(&vm, "did not end by SIGTERM"));
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_qemu_is_killed_by_somebody(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_vm_start_well(&vm);
	assert_int_equal(kill(vm_pid(&vm), SIGKILL), 0);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_non_null(strstr(vm.exit_detail, "QEMU was killed (SIGKILL)"));
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_adopts_after_our_death(void **state)
{
	struct vm vm;
	struct driver_info before, after;
	struct error err = ERROR_NONE;
	int fd;

	qemu_vm_begin(&vm, guest_obeys, sizeof(guest_obeys));
	qemu_vm_start_well(&vm);
	qemu_driver_ops.info(vm.driver, &before);
	for (int lost_pid_file = 0; lost_pid_file < 2; lost_pid_file++) {
		scoped_free char *pid_path = qemu_vm_file(&vm, FILE_QEMU_PID);

		qemu_driver_ops.close(vm.driver);
		assert_int_equal(kill(before.pid, 0), 0);
		if (lost_pid_file)
			assert_int_equal(unlink(pid_path), 0);
		qemu_vm_open_driver(&vm);
		vm.started.n = 0;
		qemu_driver_ops.adopt(vm.driver, qemu_vm_is_done, &vm.started);
		qemu_vm_run_until(&vm, vm.started.n);
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
	qemu_vm_stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	assert_string_equal(vm.exit_detail, "");
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_adopted_qemu_is_killed(void **state)
{
	struct vm vm;
	pid_t pid;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_vm_start_well(&vm);
	pid = vm_pid(&vm);
	qemu_driver_ops.close(vm.driver);
	qemu_vm_open_driver(&vm);
	vm.started.n = 0;
	qemu_driver_ops.adopt(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_EXITED]);
	assert_true(*vm.exit_detail);
	qemu_vm_finish(&vm);
}

static void test_driver_nobody_to_adopt(void **state)
{
	struct error err = ERROR_NONE;
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *pid_path = qemu_vm_file(&vm, FILE_QEMU_PID);
	/* one line, a process that lives and is no QEMU: pid reuse */
	scoped_free char *stale = xasprintf("%d\n", getpid());
	assert_int_equal(path_write_file(pid_path, stale, strlen(stale), 0644, &err), 0);
	qemu_driver_ops.adopt(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, -ENOENT);
	/* start is still allowed, over what was left */
	vm.started.n = 0;
	qemu_vm_start_well(&vm);
	qemu_vm_stop(&vm, true);
	qemu_vm_finish(&vm);
}

static void test_driver_start_fails_with_qemus_words(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	vm.config.qemu_cpu_type = (char *)"no-such-cpu";
	qemu_vm_start(&vm);
	assert_int_equal(vm.started.err.code, -EIO);
	assert_non_null(strstr(vm.started.err.msg, "QEMU exited with code 1"));
	assert_non_null(strstr(vm.started.err.msg, "no-such-cpu"));
	assert_int_equal(vm.n_event[DRIVER_EXITED], 0);
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

/* As with a QEMU that was built without the device: it ends and names it. */
static void test_driver_starts_without_what_it_cannot_have(void **state)
{
	struct error err = ERROR_NONE;
	struct driver_info info;
	struct vm vm;

	qemu_vm_begin(&vm, guest_obeys, sizeof(guest_obeys));
	vm.spec.vsock = vm.spec.ssh_over_vsock = true;
	qemu_vm_start_well(&vm);	/* nobody listens at vsock.sock */
	qemu_driver_ops.info(vm.driver, &info);
	assert_false(info.vsock);
	scoped_free char *log = qemu_vm_file(&vm, FILE_QEMU_LOG);
	scoped_buf struct buf b = { 0 };
	assert_int_equal(path_read_file(log, 65536, &b, &err), 0);
	assert_null(strstr(buf_str(&b), "vsock"));
	assert_non_null(strstr(buf_str(&b), "hostfwd"));	/* ssh has its way then */
	qemu_vm_stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_EXITED], 1);
	qemu_vm_finish(&vm);
}

static void test_driver_changes_the_running_vm(void **state)
{
	struct done done = { 0 };
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.vsock_unplug(vm.driver, qemu_vm_is_done, &done);	/* it does not run */
	qemu_vm_run_until(&vm, done.n);
	assert_int_equal(done.err.code, -ECONNRESET);
	qemu_vm_start_well(&vm);
	qemu_driver_ops.vsock_unplug(vm.driver, qemu_vm_is_done, &done);
	qemu_vm_run_until(&vm, done.n == 2);
	assert_int_equal(done.err.code, 0);
	qemu_driver_ops.vsock_plug(vm.driver, qemu_vm_is_done, &done);
	qemu_vm_run_until(&vm, done.n == 3);
	assert_int_equal(done.err.code, -ENOTSUP);
	for (int on = 0; on < 2; on++) {	/* off, off again is fine, on */
		qemu_driver_ops.ssh_forward(vm.driver, false, qemu_vm_is_done, &done);
		qemu_vm_run_until(&vm, done.n == 4u + (unsigned)on);
		assert_int_equal(done.err.code, 0);
	}
	qemu_driver_ops.ssh_forward(vm.driver, true, qemu_vm_is_done, &done);
	qemu_vm_run_until(&vm, done.n == 6);
	assert_int_equal(done.err.code, 0);
	qemu_driver_ops.ssh_forward(vm.driver, true, qemu_vm_is_done, &done);
	qemu_vm_run_until(&vm, done.n == 7);
	assert_int_equal(done.err.code, -EADDRINUSE);
	qemu_driver_ops.vsock_plug(vm.driver, qemu_vm_is_done, &done);	/* close() tells it */
	qemu_vm_stop(&vm, true);
	qemu_vm_finish(&vm);
}

static void test_driver_start_fails_on_a_taken_port(void **state)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	sa.sin_port = htons(vm.spec.ssh_port);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 1), 0);
	qemu_vm_start(&vm);
	assert_non_null(strstr(vm.started.err.msg, "host forwarding rule"));
	qemu_vm_finish(&vm);
}

static void test_driver_start_without_a_disk(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *disk = qemu_vm_file(&vm, FILE_DISK);
	assert_int_equal(unlink(disk), 0);
	qemu_vm_start(&vm);
	assert_int_equal(vm.started.err.code, -ENOENT);
	assert_non_null(strstr(vm.started.err.msg, disk));
	qemu_vm_finish(&vm);
}

/* A guest wrote a qcow2 header with a backing file onto its raw disk. */
static void test_driver_disk_that_became_qcow2(void **state)
{
	static const uint8_t head[VM_SECTOR] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3, [14] = 1, [19] = 8,
					      [23] = 16, [103] = 104 };
	scoped_fd int fd = -1;
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *disk = qemu_vm_file(&vm, FILE_DISK);
	fd = open(disk, O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
	qemu_vm_start(&vm);
	assert_int_equal(vm.started.err.code, -EPERM);
	assert_non_null(strstr(vm.started.err.msg, "names another file"));
	qemu_vm_finish(&vm);
}

static void test_driver_stop_during_start(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_stop(&vm, false);
	assert_int_equal(vm.started.n, 1);
	assert_int_equal(vm.started.err.code, -ECANCELED);
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_stop_between_spawn_and_greeting(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_run_until(&vm, vm_pid(&vm));
	assert_int_equal(vm.started.n, 0);
	qemu_vm_stop(&vm, true);
	assert_int_equal(vm.started.n, 1);
	assert_no_files_left(&vm);
	qemu_vm_finish(&vm);
}

/* The turn of the loop in which it happens is left to chance: stop after one
 * turn, after two, … until the start is done first. */
static void test_driver_stop_at_every_turn(void **state)
{
	bool start_was_first = false;

	for (int turns = 1; !start_was_first && turns < 200; turns++) {
		struct vm vm;

		qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
		qemu_driver_ops.start(vm.driver, qemu_vm_is_done, &vm.started);
		for (int i = 0; i < turns && !vm.started.n; i++)
			uv_run(&vm.loop.uv, UV_RUN_ONCE);
		start_was_first = vm.started.n;
		qemu_vm_stop(&vm, true);
		assert_int_equal(vm.started.n, 1);
		assert_int_equal(vm.started.err.code, start_was_first ? 0 : -ECANCELED);
		assert_int_equal(vm.n_event[DRIVER_EXITED], start_was_first);
		assert_no_files_left(&vm);
		qemu_vm_finish(&vm);
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
	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	scoped_free char *pid_path = qemu_vm_file(&vm, FILE_QEMU_PID), *qmp = qemu_vm_file(&vm, FILE_QMP_SOCK);
	assert_int_equal(pid_file_write(pid_path, pid, &err), 0);
	assert_int_equal(endpoint_listen(qmp, &listener, &err), 0);
	assert_int_equal(fcntl(listener, F_SETFL, O_NONBLOCK), 0);
	qemu_driver_ops.adopt(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_run_until(&vm, (peer = accept(listener, NULL, NULL)) >= 0);
	assert_int_equal(write(peer, "hello\n", 6), 6);
	qemu_vm_run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, -EPROTO);
	assert_non_null(strstr(vm.started.err.msg, "control channel does not work"));
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);	/* it lives */
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	qemu_vm_finish(&vm);
}

static void test_driver_close_during_start(void **state)
{
	struct vm vm;

	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_driver_ops.start(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_driver_ops.close(vm.driver);
	assert_int_equal(vm.started.n, 1);
	assert_int_equal(vm.started.err.code, -ECANCELED);
	qemu_vm_open_driver(&vm);
	qemu_vm_finish(&vm);
}

static void test_driver_program_is_no_qemu(void **state)
{
	scoped_strv struct strv warnings = { 0 };
	struct error err = ERROR_NONE;
	struct vm vm;

	setenv("QEMU_SYSTEM_X86_64", "/bin/false", 1);
	qemu_vm_begin(&vm, guest_sleeps, sizeof(guest_sleeps));
	qemu_vm_start(&vm);
	assert_int_equal(vm.started.err.code, -ENOEXEC);
	assert_int_equal(qemu_driver_ops.validate(&vm.spec, &warnings, &err), -ENOEXEC);
	assert_non_null(strstr(err.msg, "/bin/false"));
	qemu_vm_finish(&vm);
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

	qemu_vm_begin(&vm, guest_fills_its_disk, sizeof(guest_fills_its_disk));
	if (!enter_namespace()) {
		qemu_vm_finish(&vm);
		skip();
	}
	scoped_free char *disk = qemu_vm_file(&vm, FILE_DISK);
	scoped_buf struct buf content = { 0 };
	assert_int_equal(path_read_file(disk, VM_DISK_BYTES, &content, &err), 0);
	assert_int_equal(mount("tmpfs", vm.dir, "tmpfs", 0, "size=2m"), 0);
	assert_int_equal(path_write_file(disk, content.data, VM_SECTOR, 0600, &err), 0);
	assert_int_equal(truncate(disk, 64 << 20), 0);
	qemu_vm_start_well(&vm);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_PAUSED] && qemu_vm_noticed(&vm, "no space left for "));
	assert_int_equal(mount("tmpfs", vm.dir, "tmpfs", MS_REMOUNT, "size=400m"), 0);
	qemu_vm_run_until(&vm, vm.n_event[DRIVER_RESUMED]);
	assert_true(qemu_vm_noticed(&vm, "there is room on the disk again"));
	qemu_vm_stop(&vm, true);
	assert_int_equal(umount(vm.dir), 0);
	qemu_vm_finish(&vm);
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

	int skip = qemu_vm_skip_code();

	signal(SIGPIPE, SIG_IGN);	/* as the host agent does: a QMP peer may be gone */
	return skip ? skip : cmocka_run_group_tests(tests, NULL, NULL);
}
