#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/heap.h"
#include "lib/base/loop.h"

enum { POSTS = 20000 };

struct counter {
	struct loop *loop;
	unsigned next;
};

static struct item {
	struct counter *c;
	unsigned n;
} items[POSTS];

static void count(void *arg)
{
	struct item *it = arg;

	assert_int_equal(it->n, it->c->next); /* in the order of posting */
	if (++it->c->next == POSTS)
		loop_unref(it->c->loop);
}

static void *poster(void *arg)
{
	struct counter *c = arg;

	for (unsigned i = 0; i < POSTS; i++) {
		items[i] = (struct item){ c, i };
		loop_post(c->loop, count, &items[i]);
	}
	return NULL;
}

static void test_loop_posts_from_a_thread_arrive_in_order(void **state)
{
	struct error err = { 0 };
	struct loop loop;
	struct counter c = { .loop = &loop };
	pthread_t thread;

	assert_int_equal(loop_init(&loop, &err), 0);
	loop_ref(&loop);
	assert_int_equal(pthread_create(&thread, NULL, poster, &c), 0);
	loop_run(&loop);
	pthread_join(thread, NULL);
	assert_int_equal(c.next, POSTS);
	assert_int_equal(loop_done(&loop), 0);
}

static void test_heap_trim_does_not_keep_the_loop(void **state)
{
	struct error err = { 0 };
	struct loop loop;

	assert_int_equal(loop_init(&loop, &err), 0);
	heap_trim_later(&loop);
	heap_trim_later(&loop);
	loop_run(&loop);	/* returns: nothing is left to wait for */
	assert_int_equal(loop_done(&loop), 0);
}

static void test_loop_done_counts_leftovers(void **state)
{
	struct error err = { 0 };
	static struct loop loop;
	static uv_timer_t forgotten;

	assert_int_equal(loop_init(&loop, &err), 0);
	uv_timer_init(&loop.uv, &forgotten);
	assert_int_equal(loop_done(&loop), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loop_posts_from_a_thread_arrive_in_order),
		cmocka_unit_test(test_heap_trim_does_not_keep_the_loop),
		cmocka_unit_test(test_loop_done_counts_leftovers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
