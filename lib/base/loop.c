#include "lib/base/loop.h"

#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/scoped.h"

struct loop_item {
	void (*fn)(void *arg);
	void *arg;
	struct loop_item *next;
};

static void run_posted(struct loop *loop)
{
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

/* Reads before it looks at the list: what is posted later writes again. */
static void on_wake(uv_poll_t *wake, int status, int events)
{
	struct loop *loop = wake->data;
	eventfd_t n;

	eventfd_read(loop->wake_fd, &n);
	run_posted(loop);
}

int loop_init(struct loop *loop, struct error *err)
{
	scoped_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc;

	*loop = (struct loop){ 0 };
	if (fd < 0)
		return error_sys(err, -errno, "event loop: eventfd");
	rc = uv_loop_init(&loop->uv);
	if (rc < 0)
		return error_sys(err, rc, "event loop");
	rc = uv_poll_init(&loop->uv, &loop->wake, fd);
	if (rc < 0) {
		uv_loop_close(&loop->uv);
		return error_sys(err, rc, "event loop: wake handle");
	}
	loop->wake_fd = steal_fd(&fd);
	uv_timer_init(&loop->uv, &loop->quiet);	/* cannot fail */
	loop->wake.data = loop;
	loop->uv.data = loop;
	uv_poll_start(&loop->wake, UV_READABLE, on_wake);
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
	bool first;

	item->fn = fn;
	item->arg = arg;
	pthread_mutex_lock(&loop->lock);
	first = !loop->head;
	if (loop->tail)
		loop->tail->next = item;
	else
		loop->head = item;
	loop->tail = item;
	pthread_mutex_unlock(&loop->lock);
	if (first)
		eventfd_write(loop->wake_fd, 1);
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

	run_posted(loop);
	uv_close((uv_handle_t *)&loop->wake, NULL);
	uv_close((uv_handle_t *)&loop->quiet, NULL);
	uv_run(&loop->uv, UV_RUN_NOWAIT);
	uv_walk(&loop->uv, name_leftover, &left);
	/* closes of one batch may start others: a few turns, without waiting */
	for (int i = 0; i < 8 && uv_loop_close(&loop->uv) == UV_EBUSY; i++)
		uv_run(&loop->uv, UV_RUN_NOWAIT);
	pthread_mutex_destroy(&loop->lock);
	scoped_close_fd(&loop->wake_fd);
	return left;
}
