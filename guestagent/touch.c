#include "guestagent/touch.h"

#include <assert.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

struct touch {
	struct loop *loop;
	struct job *first, **end;	/* as they came; the first one has the thread */
	unsigned pending;
	bool closing;
};

struct job {
	uv_work_t work;
	struct touch *owner;
	struct job *next;
	struct timespec times[2];
	char path[];
};

struct touch *touch_new(struct loop *loop)
{
	struct touch *t = xnew(struct touch);

	t->loop = loop;
	t->end = &t->first;
	return t;
}

unsigned touch_pending(const struct touch *t)
{
	return t->pending;
}

/* A pool thread. Errors are the file's own business: gone, read-only, … */
static void run_job(uv_work_t *work)
{
	struct job *j = container_of(work, struct job, work);

	(void)utimensat(AT_FDCWD, j->path, j->times, 0);
}

static void drop_first(struct touch *t)
{
	struct job *j = t->first;

	t->first = j->next;
	if (!t->first)
		t->end = &t->first;
	t->pending--;
	free(j);
}

static void on_job_done(uv_work_t *work, int status);

static void run_first(struct touch *t)
{
	uv_queue_work(&t->loop->uv, &t->first->work, run_job, on_job_done);
}

static void on_job_done(uv_work_t *work, int status)
{
	struct touch *t = container_of(work, struct job, work)->owner;

	do
		drop_first(t);
	while (t->closing && t->first);
	if (t->first)
		run_first(t);
	else if (t->closing)
		free(t);
}

void touch_path(struct touch *t, const Inotify *msg)
{
	size_t len = msg->mount_path ? strlen(msg->mount_path) : 0;
	struct job *j;

	if (t->closing || len == 0 || len >= PATH_MAX || msg->mount_path[0] != '/' || !msg->time ||
	    msg->time->nanos < 0 || msg->time->nanos > 999999999)
		return;
	if (t->pending >= TOUCH_PENDING_MAX) {
		log_warn_limited("inotify: %u changes wait for a mount, one dropped", t->pending);
		return;
	}
	j = xcalloc(1, sizeof(*j) + len + 1);
	memcpy(j->path, msg->mount_path, len + 1);
	j->owner = t;
	j->times[0] = j->times[1] =
		(struct timespec){ .tv_sec = msg->time->seconds, .tv_nsec = msg->time->nanos };
	*t->end = j;
	t->end = &j->next;
	if (t->pending++ == 0)
		run_first(t);
}

void touch_close(struct touch *t)
{
	assert(!t->closing);
	t->closing = true;
	if (!t->first)
		free(t);
}
