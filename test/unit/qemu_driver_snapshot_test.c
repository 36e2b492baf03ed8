/* Snapshots of a real QEMU, through the driver: that the guest runs after each. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "drivers/qemu/endpoint.h"
#include "lib/store/disk.h"
#include "test/mock/qemu_vm.h"

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
	qemu_vm_begin(vm, code, sizeof(code));
	scoped_free char *disk = qemu_vm_file(vm, FILE_DISK), *raw = xasprintf("%s.raw", disk);
	const char *const argv[] = { "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk, NULL };
	assert_int_equal(rename(disk, raw), 0);
	if (disk_run_qemu_img(argv, &res, &err) < 0)
		fail_msg("%s", err.msg);
}

/* Before that a reset may end in nothing: SeaBIOS under TCG does not stand one while
 * it starts, with or without snapshots. */
static void wait_for_boots(struct vm *vm, off_t n)
{
	scoped_free char *console = qemu_vm_file(vm, FILE_SERIAL_LOG);
	struct stat st;

	qemu_vm_run_until(vm, stat(console, &st) == 0 && st.st_size >= n);
}

static void start_and_wait(struct vm *vm)
{
	qemu_vm_start_well(vm);
	wait_for_boots(vm, 1);
}

static void snapshot(struct vm *vm, enum snapshot_change change, const char *tag, struct done *done)
{
	*done = (struct done){ 0 };
	qemu_driver_ops.snapshot(vm->driver, change, tag, qemu_vm_is_done, done);
	qemu_vm_run_until(vm, done->n);
}

static int n_listed;	/* -1: it failed */
static bool listed;

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	n_listed = err->code ? -1 : (int)list->n;
	listed = true;
}

static int count_snapshots(struct vm *vm)
{
	listed = false;
	qemu_driver_ops.snapshots(vm->driver, on_listed, NULL);
	qemu_vm_run_until(vm, listed);
	return n_listed;
}

static void test_driver_snapshots(void **state)
{
	struct done done;
	struct vm vm;

	begin_with_qcow2(&vm);
	start_and_wait(&vm);
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
	qemu_vm_stop(&vm, false);	/* so it runs after all that */
	qemu_vm_finish(&vm);
}

/* The disk is set back, the memory cannot be: the guest boots. */
static void test_driver_snapshot_of_another_machine(void **state)
{
	struct done done;
	struct vm vm;

	begin_with_qcow2(&vm);
	start_and_wait(&vm);
	snapshot(&vm, SNAPSHOT_CREATE, "not found", &done);
	assert_int_equal(done.err.code, 0);
	qemu_vm_stop(&vm, false);
	qemu_driver_ops.close(vm.driver);
	vm.config.memory_bytes *= 2;
	vm.started.n = vm.stopped.n = vm.n_event[DRIVER_EXITED] = 0;
	qemu_vm_open_driver(&vm);
	start_and_wait(&vm);
	snapshot(&vm, SNAPSHOT_APPLY, "not found", &done);
	assert_int_equal(done.err.code, -EREMOTEIO);
	assert_non_null(strstr(done.err.msg, "the guest boots from that disk"));
	wait_for_boots(&vm, 2);
	snapshot(&vm, SNAPSHOT_DELETE, "not found", &done);
	assert_int_equal(done.err.code, 0);
	assert_int_equal(count_snapshots(&vm), 0);
	qemu_vm_stop(&vm, false);
	qemu_vm_finish(&vm);
}

/* One command after the other, over a control channel of our own: nobody of ours hears
 * the answers. Ends when @until came. */
static void say_to_qemu(struct vm *vm, const char *const lines[], const char *until)
{
	scoped_free char *path = qemu_vm_file(vm, FILE_QMP_SOCK);
	scoped_buf struct buf heard = { 0 };
	struct error err = ERROR_NONE;
	scoped_fd int fd = -1;

	assert_int_equal(endpoint_connect(path, &fd, &err), 0);
	for (size_t i = 0; lines[i]; i++)
		assert_int_equal(write(fd, lines[i], strlen(lines[i])), strlen(lines[i]));
	while (!strstr(buf_str(&heard), until)) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		char chunk[4096];
		ssize_t n;

		assert_int_equal(poll(&p, 1, 60000), 1);
		n = read(fd, chunk, sizeof(chunk));
		assert_true(n > 0);
		buf_add(&heard, chunk, (size_t)n);
	}
}

/* A host agent was killed during an apply that failed. The next one says what it
 * found, and whoever stops it does not let half a memory run over the disk. */
static void test_driver_half_of_a_snapshot_is_adopted(void **state)
{
	static const char *const load[] = {
		"{\"execute\": \"qmp_capabilities\"}\n",
		"{\"execute\": \"snapshot-load\", \"arguments\": {\"job-id\": \"lima-snapshot\", "
		"\"tag\": \"a\", \"devices\": [\"disk\"], \"vmstate\": \"disk\"}}\n", NULL,
	};
	struct done done;
	struct vm vm;

	begin_with_qcow2(&vm);
	start_and_wait(&vm);
	snapshot(&vm, SNAPSHOT_CREATE, "a", &done);
	assert_int_equal(done.err.code, 0);
	qemu_vm_stop(&vm, true);
	qemu_driver_ops.close(vm.driver);
	vm.config.memory_bytes *= 2;
	vm.started.n = vm.stopped.n = 0;
	memset(vm.n_event, 0, sizeof(vm.n_event));
	qemu_vm_open_driver(&vm);
	start_and_wait(&vm);
	qemu_driver_ops.close(vm.driver);
	say_to_qemu(&vm, load, "\"concluded\"");
	qemu_vm_open_driver(&vm);
	vm.started.n = 0;
	qemu_driver_ops.adopt(vm.driver, qemu_vm_is_done, &vm.started);
	qemu_vm_run_until(&vm, vm.started.n);
	assert_int_equal(vm.started.err.code, 0);
	assert_true(qemu_vm_noticed(&vm, "a snapshot could not be applied whole"));
	qemu_vm_stop(&vm, false);
	assert_int_equal(vm.n_event[DRIVER_RESUMED], 0);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 0);	/* it did not get to it */
	assert_true(qemu_vm_noticed(&vm, "with half of a snapshot's memory and must not run"));
	qemu_vm_finish(&vm);
}

/* QEMU hears nothing while it saves; a button it does not answer is no reason to end
 * it, nor the snapshot. */
static void test_driver_stop_during_a_snapshot(void **state)
{
	struct done done = { 0 };
	struct vm vm;

	begin_with_qcow2(&vm);
	start_and_wait(&vm);
	qemu_driver_ops.snapshot(vm.driver, SNAPSHOT_CREATE, "a", qemu_vm_is_done, &done);
	qemu_driver_ops.stop(vm.driver, false, qemu_vm_is_done, &vm.stopped);
	qemu_vm_run_until(&vm, done.n);
	assert_int_equal(done.err.code, 0);
	assert_int_equal(vm.stopped.n, 0);
	assert_true(qemu_vm_noticed(&vm, "limactl stop -f dev does not wait: the snapshot may be lost"));
	assert_true(vm.delay_ms > 2 * 120 * 1000);
	qemu_vm_run_until(&vm, vm.stopped.n);
	assert_int_equal(vm.n_event[DRIVER_SHUTDOWN], 1);
	qemu_vm_finish(&vm);
}

/* Who does not want to wait need not. */
static void test_driver_impatience_during_a_snapshot(void **state)
{
	struct done done = { 0 }, forced = { 0 };
	struct vm vm;

	begin_with_qcow2(&vm);
	start_and_wait(&vm);
	qemu_driver_ops.snapshot(vm.driver, SNAPSHOT_CREATE, "a", qemu_vm_is_done, &done);
	qemu_driver_ops.stop(vm.driver, false, qemu_vm_is_done, &vm.stopped);
	qemu_driver_ops.stop(vm.driver, true, qemu_vm_is_done, &forced);
	qemu_vm_run_until(&vm, vm.stopped.n && forced.n && done.n);
	assert_int_equal(vm.stopped.err.code, 0);
	assert_string_equal(vm.exit_detail, "");
	qemu_vm_finish(&vm);
}

static void test_driver_close_during_a_snapshot(void **state)
{
	struct done done = { 0 };
	struct vm vm;

	begin_with_qcow2(&vm);
	qemu_driver_ops.snapshot(vm.driver, SNAPSHOT_CREATE, "a", qemu_vm_is_done, &done);
	qemu_vm_finish(&vm);
	assert_int_equal(done.n, 1);
	assert_int_equal(done.err.code, -ECANCELED);
	begin_with_qcow2(&vm);
	listed = false;
	qemu_driver_ops.snapshots(vm.driver, on_listed, NULL);
	qemu_vm_finish(&vm);
	assert_true(listed);
	assert_int_equal(n_listed, -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_driver_snapshots),
		cmocka_unit_test(test_driver_snapshot_of_another_machine),
		cmocka_unit_test(test_driver_half_of_a_snapshot_is_adopted),
		cmocka_unit_test(test_driver_stop_during_a_snapshot),
		cmocka_unit_test(test_driver_impatience_during_a_snapshot),
		cmocka_unit_test(test_driver_close_during_a_snapshot),
	};
	int skip = qemu_vm_skip_code();

	signal(SIGPIPE, SIG_IGN);	/* as the host agent does */
	return skip ? skip : cmocka_run_group_tests(tests, NULL, NULL);
}
