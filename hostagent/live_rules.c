#include "hostagent/live_rules.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>

#include "hostagent/forward/rule.h"
#include "lib/base/buf.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

enum {
	LINE_MAX_BYTES = sizeof("4294967295 \n") - 1 + LIVE_RULE_MAX_BYTES,
	FILE_MAX_BYTES = RULE_LIVE_MAX * LINE_MAX_BYTES,	/* 1 MiB */
	ID_MAX = 1 << 30,		/* ids go on from the highest */
};

struct kept {
	TAILQ_ENTRY(kept) next;
	unsigned id;
	char *text;
};

struct live_rules {
	struct loop *loop;
	char *path;
	TAILQ_HEAD(, kept) rules;	/* the oldest first */
	bool dirty, writing, closing;
	uv_work_t work;
	struct buf text;		/* the pool's while writing */
	struct error err;
};

static void drop(struct live_rules *l, struct kept *k)
{
	TAILQ_REMOVE(&l->rules, k, next);
	free(k->text);
	free(k);
}

/* --- writing ------------------------------------------------------------- */

static void write_file(uv_work_t *work)
{
	struct live_rules *l = work->data;

	if (l->text.len == 0)
		unlink(l->path);
	else
		path_write_file(l->path, l->text.data, l->text.len, 0600, &l->err);
}

static void finish(struct live_rules *l)
{
	unlink(l->path);
	buf_done(&l->text);
	free(l->path);
	free(l);
}

static void save(struct live_rules *l);

static void on_written(uv_work_t *work, int status)
{
	struct live_rules *l = work->data;

	l->writing = false;
	if (l->err.code < 0)
		log_warn("ports: rules would not outlive this host agent: %s, ignoring", l->err.msg);
	if (l->closing)
		finish(l);
	else if (l->dirty)
		save(l);
}

static void save(struct live_rules *l)
{
	struct kept *k;

	l->dirty = l->writing;
	if (l->writing)
		return;		/* when that one is through */
	l->writing = true;
	l->err = ERROR_NONE;
	buf_reset(&l->text);
	TAILQ_FOREACH(k, &l->rules, next)
		buf_addf(&l->text, "%u %s\n", k->id, k->text);
	l->work.data = l;
	uv_queue_work(&l->loop->uv, &l->work, write_file, on_written);
}

/* --- reading ------------------------------------------------------------- */

static bool parse_line(const char *line, unsigned *ret_id, const char **ret_text)
{
	char *end;
	unsigned long id = strtoul(line, &end, 10);

	if (end == line || *end != ' ' || end[1] != '{' || id == 0 || id > ID_MAX)
		return false;
	*ret_id = (unsigned)id;
	*ret_text = end + 1;
	return strlen(*ret_text) <= LIVE_RULE_MAX_BYTES;
}

void live_rules_read(struct live_rules *l, void (*each)(void *arg, unsigned id, const char *text),
		     void *arg)
{
	scoped_buf struct buf b = { 0 };
	scoped_strv struct strv lines = { 0 };
	struct error err = ERROR_NONE;
	const char *line, *text;
	unsigned id;

	if (!path_exists(l->path))
		return;
	if (path_read_file(l->path, FILE_MAX_BYTES, &b, &err) < 0) {
		log_warn("ports: rules added before are lost: %s, ignoring", err.msg);
		return;
	}
	strv_split(&lines, buf_str(&b), "\n");
	strv_foreach (line, &lines)
		if (parse_line(line, &id, &text))
			each(arg, id, text);
}

/* --- the list ------------------------------------------------------------ */

int live_rules_check(const char *text, struct error *err)
{
	if (strlen(text) > LIVE_RULE_MAX_BYTES)
		return error_set(err, -EMSGSIZE, "a rule of %zu bytes; %d are possible, shorten its paths",
				 strlen(text), LIVE_RULE_MAX_BYTES);
	return 0;
}

void live_rules_add(struct live_rules *l, unsigned id, const char *text)
{
	struct kept *k = xnew(struct kept);

	assert(strlen(text) <= LIVE_RULE_MAX_BYTES);
	k->id = id;
	k->text = xstrdup(text);
	TAILQ_INSERT_TAIL(&l->rules, k, next);
	save(l);
}

void live_rules_remove(struct live_rules *l, unsigned id)
{
	struct kept *k;

	TAILQ_FOREACH(k, &l->rules, next)
		if (k->id == id)
			break;
	if (!k)
		return;
	drop(l, k);
	save(l);
}

struct live_rules *live_rules_new(struct loop *loop, const char *path)
{
	struct live_rules *l = xnew(struct live_rules);

	l->loop = loop;
	l->path = xstrdup(path);
	TAILQ_INIT(&l->rules);
	return l;
}

void live_rules_close(struct live_rules *l)
{
	while (!TAILQ_EMPTY(&l->rules))
		drop(l, TAILQ_FIRST(&l->rules));
	l->closing = true;
	if (!l->writing)
		finish(l);
}
