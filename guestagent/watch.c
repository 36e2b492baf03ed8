#include "guestagent/watch.h"

#include <stdlib.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum {
	COALESCE_MS = 5,
	RETRY_MS = 1000,	/* no inotify watch to be had (limit of watches) */
};

struct watch {
	struct loop *loop;
	char *dir;
	char *watched;			/* dir, or a parent of it; NULL: none */
	uv_fs_event_t event;
	uv_timer_t timer;
	unsigned handles;
	bool closing;
	void (*changed)(void *arg);
	void *arg;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void on_timer(uv_timer_t *timer);

static void on_event(uv_fs_event_t *event, const char *name, int events, int status)
{
	struct watch *w = event->data;

	if (!w->closing && !uv_is_active((uv_handle_t *)&w->timer))
		uv_timer_start(&w->timer, on_timer, COALESCE_MS, 0);
}

/* The directory itself, or what exists of the way to it. */
static char *nearest(const char *dir)
{
	char *path = xstrdup(dir);

	while (!path_exists(path)) {
		char *slash = strrchr(path, '/');

		if (slash == path) {
			path[1] = 0;
			break;
		}
		*slash = 0;
	}
	return path;
}

/* Whenever something changed above it: the directory may be there now, or may
 * have been replaced. */
static void move_watch(struct watch *w)
{
	scoped_free char *want = nearest(w->dir);
	int rc;

	if (w->watched && streq(w->watched, want) && streq(want, w->dir))
		return;
	uv_fs_event_stop(&w->event);
	free(w->watched);
	w->watched = NULL;
	rc = uv_fs_event_start(&w->event, on_event, want, 0);
	if (rc < 0) {
		log_debug("watch: `%s`: %s", want, error_text(rc));
		uv_timer_start(&w->timer, on_timer, RETRY_MS, 0);
		return;
	}
	w->watched = steal_ptr(&want);
	/* It may have appeared between the look and the watch. */
	if (!streq(w->watched, w->dir)) {
		scoped_free char *again = nearest(w->dir);

		if (!streq(again, w->watched))
			uv_timer_start(&w->timer, on_timer, COALESCE_MS, 0);
	}
}

static void on_timer(uv_timer_t *timer)
{
	struct watch *w = timer->data;

	if (!path_exists(w->dir) && w->watched && streq(w->watched, w->dir)) {
		free(w->watched);	/* removed under us: start over from a parent */
		w->watched = NULL;
	}
	move_watch(w);
	w->changed(w->arg);
}

struct watch *watch_new(struct loop *loop, const char *dir, void (*changed)(void *arg), void *arg)
{
	struct watch *w = xnew(struct watch);

	w->loop = loop;
	w->dir = xstrdup(dir);
	w->changed = changed;
	w->arg = arg;
	uv_fs_event_init(&loop->uv, &w->event);
	uv_timer_init(&loop->uv, &w->timer);
	w->event.data = w->timer.data = w;
	w->handles = 2;
	move_watch(w);
	uv_timer_start(&w->timer, on_timer, 0, 0);
	return w;
}

static void on_handle_closed(uv_handle_t *h)
{
	struct watch *w = h->data;
	void (*closed)(void *arg) = w->closed;
	void *arg = w->closed_arg;

	if (--w->handles)
		return;
	free(w->dir);
	free(w->watched);
	free(w);
	if (closed)
		closed(arg);
}

void watch_close(struct watch *w, void (*closed)(void *arg), void *arg)
{
	if (w->closing)
		return;
	w->closing = true;
	w->closed = closed;
	w->closed_arg = arg;
	uv_close((uv_handle_t *)&w->event, on_handle_closed);
	uv_close((uv_handle_t *)&w->timer, on_handle_closed);
}
