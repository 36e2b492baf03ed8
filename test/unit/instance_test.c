#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"
#include "lib/store/pid.h"

static char tmp[] = "/tmp/lima-instance-XXXXXX";
static char *home;

#define YAML "images:\n- location: https://example.com/x.qcow2\n  arch: x86_64\narch: x86_64\n"

static int setup(void **state)
{
	if (!mkdtemp(tmp))
		return -1;
	home = xasprintf("%s/home", tmp);
	return 0;
}

static int fresh_home(void **state)
{
	struct error err;

	return path_remove_tree(home, &err);
}

static int teardown(void **state)
{
	struct error err;

	free(home);
	return path_remove_tree(tmp, &err);
}

static void create(const char *name)
{
	struct error err = ERROR_NONE;

	if (instance_create(home, name, YAML, strlen(YAML), &err) < 0)
		fail_msg("%s", err.msg);
}

static struct instance *inspect(const char *name)
{
	struct instance *inst = NULL;
	struct error err = ERROR_NONE;

	if (instance_inspect(home, name, &inst, &err) < 0)
		fail_msg("%s", err.msg);
	return inst;
}

static void write_file(const char *name, enum instance_file f, const char *text)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, f);
	struct error err;

	assert_int_equal(path_write_file(path, text, strlen(text), 0644, &err), 0);
}

static void write_pid(const char *name, enum instance_file f)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, f);
	struct error err;

	assert_int_equal(pid_file_write(path, getpid(), &err), 0);
}

static mode_t mode_of(const char *name, enum instance_file f)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, f);
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_mode & 0777;
}

/* Names in LIMA_HOME, "." ones too, joined. */
static char *raw_names(void)
{
	scoped_strv struct strv names = { 0 };
	scoped_dir DIR *dir = opendir(home);
	struct dirent *de;

	while ((de = readdir(dir)))
		if (!streq(de->d_name, ".") && !streq(de->d_name, ".."))
			strv_add(&names, de->d_name);
	return strv_join(&names, " ");
}

static char *list(void)
{
	scoped_strv struct strv names = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(instance_list(home, &names, &err), 0);
	return strv_join(&names, " ");
}

static void test_instance_created_is_stopped(void **state)
{
	scoped_instance struct instance *inst = NULL;
	struct stat st;

	create("a.b");
	inst = inspect("a.b");
	if (inst->errors.len)
		fail_msg("%s", inst->errors.items[0]);
	assert_int_equal(inst->status, STATUS_STOPPED);
	assert_non_null(inst->config);
	assert_string_equal(inst->hostname, "lima-a-b");
	assert_string_equal(inst->lima_version, LIMA_VERSION);
	assert_int_equal(inst->ssh_local_port, 0);
	assert_false(inst->is_protected);
	assert_int_equal(stat(inst->dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(mode_of("a.b", FILE_LIMA_YAML), 0644);
	assert_int_equal(mode_of("a.b", FILE_LIMA_VERSION), 0444);
}

static void test_instance_name_taken(void **state)
{
	scoped_free char *empty = NULL;
	struct error err = ERROR_NONE;

	create("x");
	assert_int_equal(instance_create(home, "x", YAML, strlen(YAML), &err), -EEXIST);
	assert_string_equal(err.msg, "instance `x` already exists");
	empty = xasprintf("%s/y", home);
	assert_int_equal(mkdir(empty, 0700), 0);
	assert_int_equal(instance_create(home, "y", YAML, strlen(YAML), &err), -EEXIST);
	assert_non_null(strstr(err.msg, "without a lima.yaml: `limactl delete -f y` removes it"));
	assert_int_equal(instance_create(home, "a/b", YAML, strlen(YAML), &err), -EINVAL);
	assert_int_equal(instance_create(home, "../b", YAML, strlen(YAML), &err), -EINVAL);
}

static void test_instance_of_many_creators_one_wins(void **state)
{
	enum { CREATORS = 8 };
	scoped_free char *names = NULL;
	int go[2], wins = 0, taken = 0;
	pid_t pids[CREATORS];
	char c;

	assert_int_equal(pipe(go), 0);
	for (int i = 0; i < CREATORS; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			struct error err;

			close(go[1]);
			if (read(go[0], &c, 1) != 0)
				_exit(3);
			switch (instance_create(home, "x", YAML, strlen(YAML), &err)) {
			case 0: _exit(0);
			case -EEXIST: _exit(1);
			default: _exit(2);
			}
		}
	}
	close(go[0]);
	close(go[1]);
	for (int i = 0; i < CREATORS; i++) {
		int status;

		waitpid(pids[i], &status, 0);
		assert_true(WIFEXITED(status));
		wins += WEXITSTATUS(status) == 0;
		taken += WEXITSTATUS(status) == 1;
	}
	assert_int_equal(wins, 1);
	assert_int_equal(taken, CREATORS - 1);
	names = list();
	assert_string_equal(names, "x");
}

static void test_instance_leftovers_are_not_listed_and_swept(void **state)
{
	scoped_free char *dead = NULL, *alive = NULL, *names = NULL;
	pid_t gone = fork();
	struct error err;

	if (gone == 0)
		_exit(0);
	waitpid(gone, NULL, 0);
	create("x");
	dead = xasprintf("%s/.tmp-%d-y", home, (int)gone);
	alive = xasprintf("%s/.tmp-1-z", home);
	assert_int_equal(path_mkdir_all(dead, 0700, &err), 0);
	assert_int_equal(path_mkdir_all(alive, 0700, &err), 0);
	names = list();
	assert_string_equal(names, "x");
	create("w");
	assert_false(path_exists(dead));
	assert_true(path_exists(alive));
}

static void test_instance_create_under_our_own_lock(void **state)
{
	scoped_free char *dir = NULL, *raw = NULL;
	struct error err = ERROR_NONE;
	int fd = -1;

	assert_int_equal(lock_creation(home, "create", &fd, &err), 0);
	dir = xasprintf("%s/x", home);
	assert_int_equal(symlink("/does/not/exist", dir), 0);
	assert_int_equal(instance_create(home, "x", YAML, strlen(YAML), &err), -EEXIST);
	unlink(dir);
	create("x"); /* no waiting for ourselves */
	close(fd);
	raw = raw_names();
	assert_null(strstr(raw, ".tmp-"));
}

static void test_instance_list_is_sorted_and_skips_others(void **state)
{
	scoped_free char *names = list(), *file = NULL, *odd = NULL;
	struct error err;

	assert_string_equal(names, ""); /* no LIMA_HOME yet */
	create("b");
	create("a");
	create("c");
	file = xasprintf("%s/file", home);
	assert_int_equal(path_write_file(file, "x", 1, 0644, &err), 0);
	odd = xasprintf("%s/\033[31mred", home);
	assert_int_equal(mkdir(odd, 0700), 0);
	free(names);
	names = list();
	assert_string_equal(names, "a b c");
}

static void test_instance_broken_ones_hurt_nobody(void **state)
{
	scoped_instance struct instance *empty = NULL, *bad = NULL, *good = NULL, *dir = NULL;
	scoped_free char *path = NULL, *names = NULL;
	struct instance *none = NULL;
	struct error err = ERROR_NONE;

	create("good");
	create("bad");
	write_file("bad", FILE_LIMA_YAML, "images: [\n");
	path = xasprintf("%s/empty", home);
	assert_int_equal(mkdir(path, 0700), 0);
	free(path);
	path = xasprintf("%s/dir/lima.yaml", home);
	assert_int_equal(path_mkdir_all(path, 0700, &err), 0);
	names = list();
	assert_string_equal(names, "bad dir empty good");
	empty = inspect("empty");
	assert_int_equal(empty->status, STATUS_BROKEN);
	assert_non_null(strstr(empty->errors.items[0],
			       "has no lima.yaml: `limactl delete -f empty` removes it"));
	assert_null(empty->config);
	bad = inspect("bad");
	assert_int_equal(bad->status, STATUS_BROKEN);
	assert_non_null(strstr(bad->errors.items[0], "lima.yaml:"));
	dir = inspect("dir");
	assert_int_equal(dir->status, STATUS_BROKEN);
	good = inspect("good");
	assert_int_equal(good->status, STATUS_STOPPED);
	assert_int_equal(instance_inspect(home, "nope", &none, &err), -ENOENT);
	assert_string_equal(err.msg, "instance `nope` does not exist");
	assert_int_equal(instance_inspect(home, "..", &none, &err), -EINVAL);
	assert_int_equal(instance_inspect(home, "a/b", &none, &err), -EINVAL);
	assert_null(none);
}

static void assert_status(const char *name, enum instance_status want, const char *text)
{
	scoped_instance struct instance *inst = inspect(name);

	if (inst->status != want)
		fail_msg("%s is %s, not %s", name, instance_status_name(inst->status),
			 instance_status_name(want));
	assert_int_equal(inst->errors.len, text ? 1 : 0);
	if (text && !strstr(inst->errors.items[0], text))
		fail_msg("`%s` is not in `%s`", text, inst->errors.items[0]);
}

static void test_instance_status_by_pid_files(void **state)
{
	scoped_free char *dir = NULL, *qemu = NULL, *ha = NULL;
	struct error err;
	int fd = -1;

	create("x");
	dir = layout_instance_dir(home, "x");
	qemu = layout_instance_file(dir, FILE_QEMU_PID);
	ha = layout_instance_file(dir, FILE_HA_PID);
	write_pid("x", FILE_QEMU_PID);
	write_pid("x", FILE_HA_PID);
	assert_status("x", STATUS_RUNNING, NULL);
	unlink(ha);
	assert_status("x", STATUS_BROKEN,
		      "`limactl start x` takes it over again, `limactl stop -f x` ends it");
	assert_int_equal(lock_instance(dir, "start", &fd, &err), 0);
	assert_status("x", STATUS_STARTING, NULL);
	close(fd);
	unlink(qemu);
	write_pid("x", FILE_HA_PID);
	assert_status("x", STATUS_BROKEN, "`limactl stop -f x` ends it");
	assert_int_equal(lock_instance(dir, "stop", &fd, &err), 0);
	assert_status("x", STATUS_STOPPING, NULL);
	close(fd);
	/* pid files of another boot: nobody runs, and they do no harm */
	write_file("x", FILE_HA_PID, "1\n00000000-0000-4000-8000-000000000000\n1\n");
	write_file("x", FILE_QEMU_PID, "1\n00000000-0000-4000-8000-000000000000\n1\n");
	assert_status("x", STATUS_STOPPED, NULL);
	assert_true(path_exists(ha));
	/* QEMU's own file, and another program with that pid */
	scoped_free char *text = xasprintf("%d\n", (int)getpid());
	write_file("x", FILE_QEMU_PID, text);
	assert_status("x", STATUS_STOPPED, NULL);
	prctl(PR_SET_NAME, "qemu-system-x86");
	assert_status("x", STATUS_BROKEN, "QEMU (pid ");
	prctl(PR_SET_NAME, "instance_test");
}

static void test_instance_ssh_port_and_protection(void **state)
{
	scoped_instance struct instance *inst = NULL;

	create("x");
	write_file(
		"x", FILE_SSH_CONFIG,
		"# a comment\nHost lima-x\n  IdentityFile \"/x\"\n  User u\n  Hostname 127.0.0.1\n"
		"  Port 43022\n");
	write_file("x", FILE_PROTECTED, "");
	write_file("x", FILE_LIMA_VERSION, "2.2.0\n");
	inst = inspect("x");
	assert_int_equal(inst->ssh_local_port, 43022);
	assert_true(inst->is_protected);
	assert_string_equal(inst->lima_version, "2.2.0");
}

static void test_instance_remove_takes_it_off_the_list(void **state)
{
	scoped_free char *raw = NULL;
	struct error err = ERROR_NONE;

	create("x");
	write_file("x", FILE_DISK, "disk");
	if (instance_remove(home, "x", &err) < 0)
		fail_msg("%s", err.msg);
	raw = raw_names();
	assert_string_equal(raw, "_config");
	assert_int_equal(instance_remove(home, "x", &err), -ENOENT);
}

static void test_instance_reset_keeps_what_the_user_chose(void **state)
{
	static const enum instance_file gone[] = {
		FILE_DISK, FILE_KERNEL, FILE_INSTANCE_ID, FILE_SSH_CONFIG, FILE_GA_SECRET,
	}, kept[] = {
		FILE_LIMA_YAML, FILE_LIMA_VERSION, FILE_HOST_PORTS, FILE_LOOPBACK, FILE_CLOUD_CONFIG,
	};
	scoped_instance struct instance *inst = NULL;
	struct error err = ERROR_NONE;

	create("x");
	for (size_t i = 0; i < ARRAY_SIZE(gone); i++)
		write_file("x", gone[i], "text");
	for (size_t i = 2; i < ARRAY_SIZE(kept); i++)
		write_file("x", kept[i], "text");
	inst = inspect("x");
	scoped_free char *dir = xasprintf("%s/sock/deep", inst->dir);
	assert_int_equal(path_mkdir_all(dir, 0700, &err), 0);
	if (instance_reset(inst, &err) < 0)
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
		scoped_free char *path = layout_instance_file(inst->dir, gone[i]);

		assert_false(path_exists(path));
	}
	for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
		scoped_free char *path = layout_instance_file(inst->dir, kept[i]);

		assert_true(path_exists(path));
	}
	assert_false(path_exists(dir));
}

static void test_instance_fifty_are_listed_quickly(void **state)
{
	enum { INSTANCES = 50 };
	scoped_strv struct strv names = { 0 };
	struct error err = ERROR_NONE;
	uint64_t begin, ns;
	const char *name;

	for (int i = 0; i < INSTANCES; i++) {
		scoped_free char *n = xasprintf("inst%d", i);

		create(n);
	}
	begin = clock_mono_ns();
	assert_int_equal(instance_list(home, &names, &err), 0);
	strv_foreach (name, &names) {
		scoped_instance struct instance *inst = inspect(name);

		assert_int_equal(inst->status, STATUS_STOPPED);
	}
	ns = clock_mono_ns() - begin;
	assert_int_equal(names.len, INSTANCES);
	print_message("50 instances inspected in %.1f ms\n", (double)ns / 1e6);
	assert_in_range(ns / 1000000, 0, 1000); /* sanitizers and a busy machine included */
}

#define TEST(fn) cmocka_unit_test_setup(fn, fresh_home)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_instance_created_is_stopped),
		TEST(test_instance_name_taken),
		TEST(test_instance_of_many_creators_one_wins),
		TEST(test_instance_leftovers_are_not_listed_and_swept),
		TEST(test_instance_create_under_our_own_lock),
		TEST(test_instance_list_is_sorted_and_skips_others),
		TEST(test_instance_broken_ones_hurt_nobody),
		TEST(test_instance_status_by_pid_files),
		TEST(test_instance_ssh_port_and_protection),
		TEST(test_instance_remove_takes_it_off_the_list),
		TEST(test_instance_reset_keeps_what_the_user_chose),
		TEST(test_instance_fifty_are_listed_quickly),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
