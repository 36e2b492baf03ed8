#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/lock.h"

static char tmp[] = "/tmp/lima-lock-XXXXXX";
static char *inst;

static int setup(void **state)
{
	if (!mkdtemp(tmp))
		return -1;
	inst = xasprintf("%s/dev", tmp);
	return mkdir(inst, 0700);
}

static int teardown(void **state)
{
	struct error err;

	free(inst);
	return path_remove_tree(tmp, &err);
}

/* A process that holds @inst's lock for "start" until its stdin pipe closes. */
static pid_t hold_in_child(int *ret_release)
{
	int ready[2], release[2];
	struct error err;
	pid_t pid;
	char c;
	int fd;

	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(release), 0);
	pid = fork();
	if (pid == 0) {
		close(release[1]);
		if (lock_instance(inst, "start", &fd, &err) < 0)
			_exit(1);
		close(ready[1]);
		_exit(read(release[0], &c, 1) != 0);
	}
	close(ready[1]);
	close(release[0]);
	assert_int_equal(read(ready[0], &c, 1), 0);
	close(ready[0]);
	*ret_release = release[1];
	return pid;
}

static void test_lock_taken_names_the_holder(void **state)
{
	struct error err = ERROR_NONE;
	struct lock_holder holder;
	int release, fd = -1;
	pid_t pid = hold_in_child(&release);
	scoped_free char *want =
		xasprintf("instance `dev` is being changed by `limactl start` (pid %d)", (int)pid);

	assert_int_equal(lock_instance(inst, "stop", &fd, &err), -EBUSY);
	assert_string_equal(err.msg, want);
	assert_true(lock_instance_holder(inst, &holder));
	assert_int_equal(holder.pid, pid);
	assert_string_equal(holder.verb, "start");
	close(release);
	waitpid(pid, NULL, 0);
	assert_false(lock_instance_holder(inst, &holder));
	assert_int_equal(lock_instance(inst, "stop", &fd, &err), 0);
	close(fd);
}

static void test_lock_goes_with_a_killed_holder(void **state)
{
	struct error err = ERROR_NONE;
	int release, fd = -1;
	pid_t pid = hold_in_child(&release);

	kill(pid, SIGKILL);
	assert_int_equal(lock_instance_wait(inst, "stop", 5000, &fd, &err), 0);
	waitpid(pid, NULL, 0);
	close(release);
	close(fd);
}

static void test_lock_waits_for_a_moment(void **state)
{
	struct error err = ERROR_NONE;
	int release, fd = -1;
	pid_t pid = hold_in_child(&release);

	assert_int_equal(lock_instance_wait(inst, "stop", 60, &fd, &err), -EBUSY);
	close(release);
	assert_int_equal(lock_instance_wait(inst, "stop", 5000, &fd, &err), 0);
	waitpid(pid, NULL, 0);
	close(fd);
}

static void test_lock_of_no_instance(void **state)
{
	scoped_free char *dir = xasprintf("%s/nope", tmp);
	struct error err = ERROR_NONE;
	int fd = -1;

	assert_int_equal(lock_instance(dir, "stop", &fd, &err), -ENOENT);
	assert_string_equal(err.msg, "instance `nope` does not exist");
	assert_int_equal(fd, -1);
}

static void test_lock_creation_makes_its_directory(void **state)
{
	scoped_free char *home = xasprintf("%s/home", tmp);
	struct error err = ERROR_NONE;
	struct stat st;
	int fd = -1, again = -1;

	assert_int_equal(lock_creation(home, "create", &fd, &err), 0);
	assert_int_equal(stat(home, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(lock_creation(home, "create", &again, &err), -EDEADLK);
	close(fd);
}

static void test_lock_line_of_proc_locks(void **state)
{
	static const char line[] = "7: FLOCK  ADVISORY  WRITE 8367 00:27:10224391 0 EOF\n";
	const struct stat st = { .st_dev = makedev(0, 0x27), .st_ino = 10224391 };
	struct stat other = st;

	assert_true(lock_line_is_of(line, &st, 0));
	assert_true(lock_line_is_of(line, &st, 1));
	assert_false(lock_line_is_of("7: POSIX  ADVISORY  WRITE 8367 00:27:10224391 0 EOF", &st, 0));
	assert_false(lock_line_is_of("7: -> FLOCK  ADVISORY  WRITE 8367 00:27:10224391 0 EOF", &st, 0));
	other.st_ino++;
	assert_false(lock_line_is_of(line, &other, 8367));
	other = st;
	other.st_dev = makedev(0, 0x31);	/* btrfs: of the subvolume */
	assert_true(lock_line_is_of(line, &other, 8367));
	assert_false(lock_line_is_of(line, &other, 8366));
	assert_false(lock_line_is_of(line, &other, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lock_taken_names_the_holder),
		cmocka_unit_test(test_lock_goes_with_a_killed_holder),
		cmocka_unit_test(test_lock_waits_for_a_moment),
		cmocka_unit_test(test_lock_of_no_instance),
		cmocka_unit_test(test_lock_creation_makes_its_directory),
		cmocka_unit_test(test_lock_line_of_proc_locks),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
