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
	unsigned pending;
	bool closing;
};

struct job {
	uv_work_t work;
	struct touch *owner;
	struct timespec times[2];
	char path[];
};

struct touch *touch_new(struct loop *loop)
{
	struct touch *t = xnew(struct touch);

	t->loop = loop;
	return t;
}

unsigned touch_pending(const struct touch *t)
{
	return t->pending;
}

static void free_if_idle(struct touch *t)
{
	if (t->closing && t->pending == 0)
		free(t);
}

/* A pool thread. Errors are the file's own business: gone, read-only, … */
static void run_job(uv_work_t *work)
{
	struct job *j = container_of(work, struct job, work);

	(void)utimensat(AT_FDCWD, j->path, j->times, 0);
}

static void on_job_done(uv_work_t *work, int status)
{
	struct job *j = container_of(work, struct job, work);
	struct touch *t = j->owner;

	free(j);
	t->pending--;
	free_if_idle(t);
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
	if (uv_queue_work(&t->loop->uv, &j->work, run_job, on_job_done) < 0)
		free(j);
	else
		t->pending++;
}

void touch_close(struct touch *t)
{
	assert(!t->closing);
	t->closing = true;
	free_if_idle(t);
}
