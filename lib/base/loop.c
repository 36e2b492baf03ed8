#include "lib/base/loop.h"

#include <assert.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

struct loop_item {
	void (*fn)(void *arg);
	void *arg;
	struct loop_item *next;
};

static void on_wake(uv_async_t *wake)
{
	struct loop *loop = wake->data;
	struct loop_item *item;

	pthread_mutex_lock(&loop->lock);
	item = loop->head;
	loop->head = loop->tail = NULL;
	pthread_mutex_unlock(&loop->lock);
	while (item) {
		struct loop_item *next = item->next;

		item->fn(item->arg);
		free(item);
		item = next;
	}
}

int loop_init(struct loop *loop, struct error *err)
{
	int rc;

	*loop = (struct loop){ 0 };
	rc = uv_loop_init(&loop->uv);
	if (rc < 0)
		return error_sys(err, rc, "event loop");
	rc = uv_async_init(&loop->uv, &loop->wake, on_wake);
	if (rc < 0) {
		uv_loop_close(&loop->uv);
		return error_sys(err, rc, "event loop: wake handle");
	}
	uv_timer_init(&loop->uv, &loop->quiet);	/* cannot fail */
	loop->wake.data = loop;
	loop->uv.data = loop;
	uv_unref((uv_handle_t *)&loop->wake);
	uv_unref((uv_handle_t *)&loop->quiet);
	pthread_mutex_init(&loop->lock, NULL);
	return 0;
}

void loop_run(struct loop *loop)
{
	uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
	uv_stop(&loop->uv);
}

void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg)
{
	struct loop_item *item = xnew(struct loop_item);

	item->fn = fn;
	item->arg = arg;
	pthread_mutex_lock(&loop->lock);
	if (loop->tail)
		loop->tail->next = item;
	else
		loop->head = item;
	loop->tail = item;
	pthread_mutex_unlock(&loop->lock);
	uv_async_send(&loop->wake);
}

void loop_ref(struct loop *loop)
{
	if (loop->refs++ == 0)
		uv_ref((uv_handle_t *)&loop->wake);
}

void loop_unref(struct loop *loop)
{
	assert(loop->refs > 0);
	if (--loop->refs == 0)
		uv_unref((uv_handle_t *)&loop->wake);
}

static void name_leftover(uv_handle_t *h, void *arg)
{
	unsigned *n = arg;

	if (uv_is_closing(h))
		return;
	(*n)++;
	log_warn("loop: a %s handle was left open (%p)", uv_handle_type_name(h->type), (void *)h);
}

unsigned loop_done(struct loop *loop)
{
	unsigned left = 0;

	on_wake(&loop->wake);
	uv_close((uv_handle_t *)&loop->wake, NULL);
	uv_close((uv_handle_t *)&loop->quiet, NULL);
	uv_run(&loop->uv, UV_RUN_NOWAIT);
	uv_walk(&loop->uv, name_leftover, &left);
	/* closes of one batch may start others: a few turns, without waiting */
	for (int i = 0; i < 8 && uv_loop_close(&loop->uv) == UV_EBUSY; i++)
		uv_run(&loop->uv, UV_RUN_NOWAIT);
	pthread_mutex_destroy(&loop->lock);
	return left;
}
