/* Times set on shared mounts, one of which does not answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guestagent/touch.h"
#include "lib/base/mem.h"
#include "test/mock/loop_wait.h"

enum { POOL_THREADS = 2, TIME_S = 1234567 };	/* as in cmd/lima-guestagent/main.c */

static struct loop loop;
static struct touch *touch;
static uv_timer_t tick;
static char path[] = "/tmp/lima-touch-XXXXXX";
static sem_t answers;		/* of the file system that hangs */
static atomic_uint hanging;

/* --- instead of the kernel's (-Wl,--wrap) --------------------------------- */

int __wrap_utimensat(int dir, const char *file, const struct timespec times[2], int flags);
int __real_utimensat(int dir, const char *file, const struct timespec times[2], int flags);

int __wrap_utimensat(int dir, const char *file, const struct timespec times[2], int flags)
{
	if (strncmp(file, "/hangs/", 7) != 0)
		return __real_utimensat(dir, file, times, flags);
	hanging++;
	sem_wait(&answers);
	hanging--;
	return 0;
}

/* --------------------------------------------------------------------------- */

static void change(const char *file)
{
	Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	Inotify msg = INOTIFY__INIT;

	at.seconds = TIME_S;
	msg.mount_path = (char *)file;
	msg.time = &at;
	touch_path(touch, &msg);
}

static bool is_touched(void)
{
	struct stat st = { 0 };

	assert_int_equal(stat(path, &st), 0);
	return st.st_mtim.tv_sec == TIME_S;
}

static void work(uv_work_t *w)
{
}

static void work_done(uv_work_t *w, int status)
{
	*(bool *)w->data = true;
}

static void test_touch_sets_times(void **state)
{
	assert_false(is_touched());
	change(path);
	change("/none/of/these");
	change("relative");
	loop_wait(&loop, touch_pending(touch) == 0);
	assert_true(is_touched());
}

/* However many changes a mount that hangs is told of, the pool has a thread for others
 * (nat tables are read there), and the changes come true once it answers. */
static void test_touch_on_a_mount_that_hangs(void **state)
{
	bool done = false;
	uv_work_t other = { .data = &done };

	for (unsigned i = 0; i < 2 * POOL_THREADS; i++)
		change("/hangs/file");
	change(path);
	loop_wait(&loop, hanging > 0);
	assert_int_equal(uv_queue_work(&loop.uv, &other, work, work_done), 0);
	loop_wait(&loop, done);
	assert_int_equal(touch_pending(touch), 2 * POOL_THREADS + 1);
	assert_false(is_touched());
	for (unsigned i = 0; i < 2 * POOL_THREADS; i++)
		sem_post(&answers);
	loop_wait(&loop, touch_pending(touch) == 0);
	assert_true(is_touched());
}

static void test_touch_is_bounded(void **state)
{
	for (unsigned i = 0; i < TOUCH_PENDING_MAX + 10; i++)
		change("/hangs/file");
	assert_int_equal(touch_pending(touch), TOUCH_PENDING_MAX);
	for (unsigned i = 0; i < TOUCH_PENDING_MAX; i++)
		sem_post(&answers);
	loop_wait(&loop, touch_pending(touch) == 0);
}

/* What waits is dropped, what hangs is waited for by nobody, and frees all at its end. */
static void test_touch_close_while_it_hangs(void **state)
{
	for (unsigned i = 0; i < 3; i++)
		change("/hangs/file");
	loop_wait(&loop, hanging > 0);
	touch_close(touch);
	touch = NULL;
	sem_post(&answers);
}

static void on_tick(uv_timer_t *t)
{
}

static int start(void **state)
{
	struct error err = ERROR_NONE;
	int fd;

	strcpy(path + strlen(path) - 6, "XXXXXX");
	fd = mkstemp(path);
	close(fd);
	sem_init(&answers, 0, 0);
	if (fd < 0 || loop_init(&loop, &err) < 0)
		return -1;
	uv_timer_init(&loop.uv, &tick);
	uv_timer_start(&tick, on_tick, 10, 10);
	touch = touch_new(&loop);
	return 0;
}

static int stop(void **state)
{
	if (touch)
		touch_close(touch);
	uv_close((uv_handle_t *)&tick, NULL);
	loop_run(&loop);
	sem_destroy(&answers);
	unlink(path);
	return loop_done(&loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_touch_sets_times, start, stop),
		cmocka_unit_test_setup_teardown(test_touch_on_a_mount_that_hangs, start, stop),
		cmocka_unit_test_setup_teardown(test_touch_is_bounded, start, stop),
		cmocka_unit_test_setup_teardown(test_touch_close_while_it_hangs, start, stop),
	};

	setenv("UV_THREADPOOL_SIZE", "2", 1);
	static_assert(POOL_THREADS == 2, "the line above");
	return cmocka_run_group_tests_name("touch", tests, NULL, NULL);
}
