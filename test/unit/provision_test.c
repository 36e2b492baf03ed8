/* Boot progress read from files that appear late; file times set for the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guestagent/provision.h"
#include "guestagent/touch.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/loop_wait.h"

struct fixture {
	struct loop loop;
	uv_timer_t tick;
	char dir[64];
	struct provision *p;
	bool closed;
};

static void on_tick(uv_timer_t *t)
{
}

static void on_change(void *arg)
{
}

static void on_closed(void *arg)
{
	((struct fixture *)arg)->closed = true;
}

static void fixture_start(struct fixture *f)
{
	struct error err = ERROR_NONE;

	*f = (struct fixture){ .dir = "/tmp/lima-provision-XXXXXX" };
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(loop_init(&f->loop, &err), 0);
	uv_timer_init(&f->loop.uv, &f->tick);
	uv_timer_start(&f->tick, on_tick, 5, 5);
}

static void fixture_stop(struct fixture *f)
{
	struct error err = ERROR_NONE;

	uv_close((uv_handle_t *)&f->tick, NULL);
	loop_run(&f->loop);
	assert_int_equal(loop_done(&f->loop), 0);
	assert_int_equal(path_remove_tree(f->dir, &err), 0);
}

#define wait_for(f, cond) loop_wait(&(f)->loop, cond)

/* As a shell script does it: not atomic. */
static void put(struct fixture *f, const char *name, const char *text)
{
	scoped_free char *path = xasprintf("%s/run/progress/%s", f->dir, name);
	scoped_file FILE *out = fopen(path, "w");

	assert_non_null(out);
	fputs(text, out);
}

static void test_progress_appears_late(void **state)
{
	struct fixture f;
	const BootProgress *now;
	scoped_free char *run = NULL, *dir = NULL, *gone = NULL;

	fixture_start(&f);
	run = xasprintf("%s/run", f.dir);
	dir = xasprintf("%s/progress", run);
	f.p = provision_new(&f.loop, dir, on_change, NULL);
	now = provision_current(f.p);
	assert_string_equal(now->instance_id, "");
	for (int i = 0; i < 3; i++)
		uv_run(&f.loop.uv, UV_RUN_ONCE);
	mkdir(run, 0755);
	for (int i = 0; i < 3; i++)
		uv_run(&f.loop.uv, UV_RUN_ONCE);
	mkdir(dir, 0755);
	put(&f, "instance_id", "abc-123\n");
	wait_for(&f, streq(now->instance_id, "abc-123"));
	assert_false(now->ssh_ready);
	put(&f, "step", "system 1/2: install-tools.sh\nmore");
	wait_for(&f, streq(now->step, "system 1/2: install-tools.sh"));
	put(&f, "ssh_ready", "");
	wait_for(&f, now->ssh_ready);
	put(&f, "failed", "one.sh\ntwo.sh\n");
	put(&f, "boot_done", "");
	wait_for(&f, now->boot_done && now->n_failed == 2);
	assert_string_equal(now->failed[1], "two.sh");
	gone = xasprintf("%s/boot_done", dir);
	unlink(gone);
	wait_for(&f, !now->boot_done);
	provision_close(f.p, on_closed, &f);
	wait_for(&f, f.closed);
	fixture_stop(&f);
}

static void test_progress_is_bounded(void **state)
{
	struct fixture f;
	const BootProgress *now;
	scoped_free char *dir = NULL, *lines = xcalloc(1, 40001);
	struct error err = ERROR_NONE;

	fixture_start(&f);
	dir = xasprintf("%s/run/progress", f.dir);
	assert_int_equal(path_mkdir_all(dir, 0755, &err), 0);
	memset(lines, 'x', 1000);
	put(&f, "step", lines);
	put(&f, "instance_id", "a\xff\xfe" "b");
	for (int i = 0; i < 20000; i++)
		memcpy(lines + 2 * i, "f\n", 2);
	put(&f, "failed", lines);
	f.p = provision_new(&f.loop, dir, on_change, NULL);
	now = provision_current(f.p);
	assert_int_equal(strlen(now->step), PROVISION_TEXT_MAX);
	assert_string_equal(now->instance_id, "a\\xff\\xfeb");
	assert_int_equal(now->n_failed, PROVISION_FAILED_MAX);
	provision_close(f.p, on_closed, &f);
	wait_for(&f, f.closed);
	fixture_stop(&f);
}

static void test_touch_sets_times(void **state)
{
	struct fixture f;
	struct touch *t;
	struct stat st;
	scoped_free char *path = NULL;
	struct error err = ERROR_NONE;
	Google__Protobuf__Timestamp when = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	Inotify msg = INOTIFY__INIT, missing = INOTIFY__INIT, relative = INOTIFY__INIT;

	fixture_start(&f);
	path = xasprintf("%s/file", f.dir);
	assert_int_equal(path_write_file(path, "x", 1, 0600, &err), 0);
	when.seconds = 1700000000;
	when.nanos = 123456789;
	msg.mount_path = path;
	msg.time = missing.time = relative.time = &when;
	missing.mount_path = (char *)"/nonexistent/lima/file";
	relative.mount_path = (char *)"file";
	t = touch_new(&f.loop);
	touch_path(t, &relative);
	assert_int_equal(touch_pending(t), 0);
	touch_path(t, &missing);
	for (int i = 0; i < 2 * TOUCH_PENDING_MAX; i++)
		touch_path(t, &msg);
	assert_int_equal(touch_pending(t), TOUCH_PENDING_MAX);
	wait_for(&f, touch_pending(t) == 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mtim.tv_sec, 1700000000);
	assert_int_equal(st.st_mtim.tv_nsec, 123456789);
	touch_path(t, &msg);
	touch_close(t);		/* frees after the one under way */
	fixture_stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_progress_appears_late),
		cmocka_unit_test(test_progress_is_bounded),
		cmocka_unit_test(test_touch_sets_times),
	};

	return cmocka_run_group_tests_name("provision", tests, NULL, NULL);
}
