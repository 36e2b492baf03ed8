#include "guestagent/provision.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "guestagent/watch.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/base/utf8.h"

enum { FILE_MAX_BYTES = 64 * 1024 };

struct provision {
	char *dir;
	struct watch *watch;
	BootProgress now;	/* strings point into the three below */
	char *instance_id, *step;
	struct strv failed;
	void (*changed)(void *arg);
	void *arg;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* Whole file as text, "" when missing or absurd. */
static char *read_text(const struct provision *p, const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", p->dir, name);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	if (path_read_file(path, FILE_MAX_BYTES, &b, &err) < 0)
		return xstrdup("");
	return utf8_clean(buf_str(&b));
}

/* Cut at a character's start, so that it stays valid. */
static void cut(char *s, size_t max)
{
	if (strlen(s) <= max)
		return;
	while (max && ((unsigned char)s[max] & 0xc0) == 0x80)
		max--;
	s[max] = 0;
}

static char *read_line(const struct provision *p, const char *name)
{
	char *text = read_text(p, name);

	text[strcspn(text, "\n")] = 0;
	cut(text, PROVISION_TEXT_MAX);
	return text;
}

static void read_failed(const struct provision *p, struct strv *ret)
{
	scoped_free char *text = read_text(p, "failed");

	strv_split(ret, text, "\n");
	while (ret->len > PROVISION_FAILED_MAX) {
		free(ret->items[--ret->len]);
		ret->items[ret->len] = NULL;
	}
	for (size_t i = 0; i < ret->len; i++)
		cut(ret->items[i], PROVISION_TEXT_MAX);
}

static bool file_exists(const struct provision *p, const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", p->dir, name);

	return path_exists(path);
}

static bool strv_equal(const struct strv *a, const struct strv *b)
{
	if (a->len != b->len)
		return false;
	for (size_t i = 0; i < a->len; i++)
		if (!streq(a->items[i], b->items[i]))
			return false;
	return true;
}

/* Reads everything; true when it differs. */
static bool reread(struct provision *p)
{
	scoped_free char *id = read_line(p, "instance_id");
	scoped_free char *step = read_line(p, "step");
	scoped_strv struct strv failed = { 0 };
	bool ssh = file_exists(p, "ssh_ready"), done = file_exists(p, "boot_done");

	read_failed(p, &failed);
	if (streq(id, p->instance_id) && streq(step, p->step) && ssh == p->now.ssh_ready &&
	    done == p->now.boot_done && strv_equal(&failed, &p->failed))
		return false;
	free(p->instance_id);
	free(p->step);
	strv_done(&p->failed);
	p->instance_id = steal_ptr(&id);
	p->step = steal_ptr(&step);
	p->failed = failed;
	failed = (struct strv){ 0 };
	p->now.instance_id = p->instance_id;
	p->now.step = p->step;
	p->now.failed = p->failed.items;
	p->now.n_failed = p->failed.len;
	p->now.ssh_ready = ssh;
	p->now.boot_done = done;
	return true;
}

static void on_change(void *arg)
{
	struct provision *p = arg;

	if (reread(p))
		p->changed(p->arg);
}

struct provision *provision_new(struct loop *loop, const char *dir, void (*changed)(void *arg),
				void *arg)
{
	struct provision *p = xnew(struct provision);

	p->dir = xstrdup(dir);
	p->changed = changed;
	p->arg = arg;
	boot_progress__init(&p->now);
	p->now.instance_id = p->instance_id = xstrdup("");
	p->now.step = p->step = xstrdup("");
	reread(p);
	p->watch = watch_new(loop, dir, on_change, p);
	return p;
}

const BootProgress *provision_current(const struct provision *p)
{
	return &p->now;
}

static void on_watch_closed(void *arg)
{
	struct provision *p = arg;
	void (*closed)(void *arg) = p->closed;
	void *closed_arg = p->closed_arg;

	free(p->dir);
	free(p->instance_id);
	free(p->step);
	strv_done(&p->failed);
	free(p);
	if (closed)
		closed(closed_arg);
}

void provision_close(struct provision *p, void (*closed)(void *arg), void *arg)
{
	p->closed = closed;
	p->closed_arg = arg;
	watch_close(p->watch, on_watch_closed, p);
}
