#include "test/mock/qmp_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/buf.h"

#define SCHEMA TEST_DIR "/mock/qmp-schema.json"

enum { TICK_MS = 20 };

/* Ticks, so that a turn of the loop ends also when what it did was a timer's. */
static void on_guard(uv_timer_t *t)
{
	t->data = (char *)t->data + TICK_MS;
	if ((uintptr_t)t->data >= QMP_WORLD_GIVE_UP_MS)
		fail_msg("nothing happened for %d ms", QMP_WORLD_GIVE_UP_MS);
}

static void on_ready(void *arg, const struct qemu_version *version)
{
	((struct qmp_world *)arg)->ready = true;
}

static void on_event(void *arg, const char *name, json_t *data)
{
	struct qmp_world *w = arg;

	if (w->talk)
		w->talk_is->event(w->talk, name, data);
}

static void on_closed(void *arg, const struct error *why)
{
	struct qmp_world *w = arg;

	if (w->talk)
		w->talk_is->lost(w->talk);
	qmp_close(steal_ptr(&w->qmp));
}

void qmp_world_begin(struct qmp_world *w, const struct qmp_world_talk *talk_is)
{
	const struct qmp_callbacks cb = { on_ready, on_event, on_closed, w };
	struct error err = ERROR_NONE;
	int fd;

	*w = (struct qmp_world){ .talk_is = talk_is };
	assert_int_equal(loop_init(&w->loop, &err), 0);
	uv_timer_init(&w->loop.uv, &w->guard);
	w->guard.data = NULL;
	uv_timer_start(&w->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&w->guard);
	w->mock = mock_qmp_new(&w->loop, SCHEMA, &fd);
	assert_int_equal(qmp_open(&w->loop, fd, QMP_WORLD_GIVE_UP_MS, &cb, &w->qmp, &err), 0);
	mock_qmp_greet(w->mock);
	qmp_world_until(w, w->ready);
}

static void free_talk(struct qmp_world *w)
{
	if (w->talk)
		w->talk_is->free(steal_ptr(&w->talk));
}

void qmp_world_finish(struct qmp_world *w)
{
	free_talk(w);
	if (w->qmp)
		qmp_close(steal_ptr(&w->qmp));
	if (w->mock)
		mock_qmp_close(steal_ptr(&w->mock));
	uv_close((uv_handle_t *)&w->guard, NULL);
	assert_int_equal(loop_done(&w->loop), 0);
}

void qmp_world_is_done(void *arg, const struct error *err)
{
	struct qmp_world *w = arg;

	w->n_done++;
	w->err = *err;
	free_talk(w);
}

bool qmp_world_was_asked(const struct qmp_world *w, const char *command)
{
	return streq(w->mock->commands.items[w->mock->commands.len - 1], command);
}

char *qmp_world_said(const struct qmp_world *w, bool with_arguments)
{
	struct buf b = { 0 };

	for (size_t i = 1; i < w->mock->commands.len; i++) {
		buf_addf(&b, "%s%s", i == 1 ? "" : with_arguments ? "; " : " ",
			 w->mock->commands.items[i]);
		if (with_arguments)
			buf_addf(&b, " %s", w->mock->arguments.items[i]);
	}
	return buf_steal_str(&b);
}
