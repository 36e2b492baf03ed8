#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/limactl/args.h"
#include "hostagent/ssh.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"

/* clone, rename and edit as the command line has them, on instances that never ran */

static char home[] = "/tmp/lima-clone-XXXXXX";

#define YAML "images:\n- location: https://example.com/x.qcow2\n  arch: x86_64\narch: x86_64\ncpus: 1\n"

static int setup(void **state)
{
	if (!mkdtemp(home))
		return -1;
	setenv("LIMA_HOME", home, 1);
	return 0;
}

static int fresh(void **state)
{
	struct error err;

	return path_remove_tree(home, &err) || mkdir(home, 0700);
}

static int teardown(void **state)
{
	struct error err;

	return path_remove_tree(home, &err);
}

#define RUN(verb, ...) run(&(verb), (const char *const[]){ __VA_ARGS__, NULL })
static int run(const struct verb *verb, const char *const *argv)
{
	scoped_args struct args a = { 0 };
	struct error err = ERROR_NONE;
	int argc = 0;

	while (argv[argc])
		argc++;
	assert_int_equal(args_parse(verb, argc, (char **)argv, &a, &err), 0);
	return verb->run(&a);
}

static void create(const char *name)
{
	struct error err = ERROR_NONE;

	if (instance_create(home, name, YAML, strlen(YAML), &err) < 0)
		fail_msg("%s", err.msg);
}

static void write_file(const char *name, enum instance_file which, const char *text)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, which);
	struct error err = ERROR_NONE;

	assert_int_equal(path_write_file(path, text, strlen(text), 0600, &err), 0);
}

static bool file_has(const char *name, enum instance_file which, const char *text)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, which);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	return path_read_file(path, 1 << 20, &b, &err) == 0 && strstr(buf_str(&b), text);
}

static void test_rename_that_fails_changes_nothing(void **state)
{
	create("one");
	create("two");
	assert_int_equal(RUN(verb_rename, "one", "two", "--cpus", "3"), 1);
	assert_true(file_has("one", FILE_LIMA_YAML, "cpus: 1"));
}

static void test_rename_tells_ssh_and_the_guest(void **state)
{
	scoped_free char *dir = layout_instance_dir(home, "after");
	scoped_free char *sock = layout_instance_file(dir, FILE_SSH_SOCK);

	create("before");
	write_file("before", FILE_SSH_CONFIG, "Host lima-before\n  Port 43022\n");
	write_file("before", FILE_INSTANCE_ID, "iid-0123456789abcdef\n");
	assert_int_equal(RUN(verb_rename, "before", "after", "--cpus", "3"), 0);
	assert_true(file_has("after", FILE_LIMA_YAML, "cpus: 3"));
	assert_true(file_has("after", FILE_SSH_CONFIG, "Host lima-after\n"));
	assert_true(file_has("after", FILE_SSH_CONFIG, sock));
	assert_false(file_has("after", FILE_SSH_CONFIG, "before"));
	assert_int_equal(ssh_config_port(dir), 43022);
	/* its card has another address: cloud-init must look at the network again */
	assert_false(file_has("after", FILE_INSTANCE_ID, ""));
}

static void test_clone_that_flags_would_break_is_none(void **state)
{
	scoped_free char *dir = layout_instance_dir(home, "three");

	create("one");
	write_file("one", FILE_DISK, "disk");
	assert_int_equal(RUN(verb_clone, "one", "three", "--cpus", "4096"), 1);
	assert_false(path_exists(dir));
	assert_int_equal(RUN(verb_clone, "one", "three", "--cpus", "2"), 0);
	assert_true(file_has("three", FILE_LIMA_YAML, "cpus: 2"));
	assert_true(file_has("three", FILE_DISK, "disk"));
}

/* Is there news of a file called @name in the home so far? */
static bool was_seen(int watch_fd, const char *name)
{
	char data[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
	bool seen = false;
	ssize_t n;

	while ((n = read(watch_fd, data, sizeof(data))) > 0)
		for (char *p = data; p < data + n;) {
			const struct inotify_event *ev = (const void *)p;

			seen |= ev->len && streq(ev->name, name);
			p += sizeof(*ev) + ev->len;
		}
	return seen;
}

/* Not for a moment: somebody could start it. */
static void test_clone_that_flags_would_break_is_never_there(void **state)
{
	scoped_fd int watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

	create("one");
	write_file("one", FILE_DISK, "disk");
	assert_true(inotify_add_watch(watch_fd, home, IN_CREATE | IN_MOVED_TO) >= 0);
	assert_int_equal(RUN(verb_clone, "one", "three", "--cpus", "4096"), 1);
	assert_false(was_seen(watch_fd, "three"));
	assert_int_equal(RUN(verb_clone, "one", "three", "--cpus", "2"), 0);
	assert_true(was_seen(watch_fd, "three"));
}

/* Of the last word of kernel.cmdline, behind @before. */
static char *machine_id_of(const char *name, const char *before)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	scoped_free char *path = layout_instance_file(dir, FILE_KERNEL_CMDLINE);
	scoped_free char *start = xasprintf("%ssystemd.machine_id=", before);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;
	const char *id;

	assert_int_equal(path_read_file(path, 4096, &b, &err), 0);
	assert_int_equal(strncmp(buf_str(&b), start, strlen(start)), 0);
	id = buf_str(&b) + strlen(start);
	assert_int_equal(strspn(id, "0123456789abcdef"), 32);
	assert_string_equal(id + 32, "\n");
	return xstrdup(id);
}

static void test_clone_has_another_machine_id(void **state)
{
	static const char cmdline[] = "root=LABEL=lima quiet ";

	create("one");
	write_file("one", FILE_KERNEL, "kernel");
	write_file("one", FILE_KERNEL_CMDLINE, "root=LABEL=lima quiet\n");
	assert_int_equal(RUN(verb_clone, "one", "two"), 0);
	assert_int_equal(RUN(verb_clone, "two", "three"), 0);
	assert_int_equal(RUN(verb_rename, "three", "four"), 0);
	scoped_free char *two = machine_id_of("two", cmdline), *four = machine_id_of("four", cmdline);
	assert_string_not_equal(two, four);
	assert_false(file_has("one", FILE_KERNEL_CMDLINE, "machine_id"));
}

/* No command line so far; or none that anybody would read. */
static void test_clone_without_a_command_line(void **state)
{
	scoped_free char *id = NULL;

	create("one");
	assert_int_equal(RUN(verb_clone, "one", "two"), 0);
	assert_false(file_has("two", FILE_KERNEL_CMDLINE, ""));
	write_file("one", FILE_KERNEL, "kernel");
	assert_int_equal(RUN(verb_clone, "one", "three"), 0);
	id = machine_id_of("three", "");
	assert_non_null(id);
}

/* Half an instance is worse than none. */
static void test_clone_of_what_cannot_be_read_is_none(void **state)
{
	scoped_free char *from = layout_instance_dir(home, "one");
	scoped_free char *disk = layout_instance_file(from, FILE_DISK);
	scoped_free char *to = layout_instance_dir(home, "two");

	create("one");
	assert_int_equal(symlink("/nowhere/disk", disk), 0);
	assert_int_equal(RUN(verb_clone, "one", "two"), 1);
	assert_false(path_exists(to));
}

static void test_edit_file_leaves_its_mode_and_place(void **state)
{
	scoped_free char *path = xasprintf("%s/secret.yaml", home);
	scoped_free char *link = xasprintf("%s/link.yaml", home);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;
	struct stat st;

	assert_int_equal(path_write_file(path, "env: {A: b}\n", 12, 0600, &err), 0);
	assert_int_equal(symlink(path, link), 0);
	assert_int_equal(RUN(verb_edit, link, "--cpus", "2"), 0);
	assert_int_equal(path_read_file(path, 4096, &b, &err), 0);
	assert_non_null(strstr(buf_str(&b), "cpus: 2"));
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(lstat(link, &st), 0);
	assert_true(S_ISLNK(st.st_mode));
}

#define TEST(f) cmocka_unit_test_setup(f, fresh)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_rename_that_fails_changes_nothing),
		TEST(test_rename_tells_ssh_and_the_guest),
		TEST(test_clone_that_flags_would_break_is_none),
		TEST(test_clone_that_flags_would_break_is_never_there),
		TEST(test_clone_has_another_machine_id),
		TEST(test_clone_without_a_command_line),
		TEST(test_clone_of_what_cannot_be_read_is_none),
		TEST(test_edit_file_leaves_its_mode_and_place),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
