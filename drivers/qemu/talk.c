#include "drivers/qemu/talk.h"

#include <errno.h>

#include "lib/base/mem.h"

static void unref(struct talk *t)
{
	if (--t->refs == 0)
		t->owner_is->release(t->owner);
}

static void on_closed(uv_handle_t *h)
{
	unref(h->data);
}

static void on_timer(uv_timer_t *timer)
{
	struct talk *t = timer->data;

	if (!t->freed)
		t->next(t->owner);
}

void talk_later(struct talk *t, unsigned ms, talk_turn_fn fn)
{
	t->next = fn;
	uv_timer_start(&t->timer, on_timer, ms, 0);
}

void talk_not_later(struct talk *t)
{
	uv_timer_stop(&t->timer);
}

void talk_begin(struct talk *t, struct loop *loop, struct qmp *qmp,
		const struct talk_owner *owner_is, void *owner)
{
	*t = (struct talk){ .qmp = qmp, .owner_is = owner_is, .owner = owner, .refs = 1 };
	uv_timer_init(&loop->uv, &t->timer);
	t->timer.data = t;
	if (qmp)
		talk_later(t, 0, owner_is->begin);
	else
		talk_qmp_lost(t, "");
}

static void on_reply(void *arg, json_t *ret, const struct error *err)
{
	struct talk *t = arg;

	t->asking = false;
	/* a lost connection is told to its owner next, and talk_qmp_lost() says it better */
	if (!t->freed && !t->ended && err->code != -ECONNRESET)
		t->replied(t->owner, ret, err);
	unref(t);
}

void talk_call(struct talk *t, const char *command, json_t *args, unsigned ms,
	       talk_reply_fn replied)
{
	t->replied = replied;
	t->asking = true;
	t->refs++;
	qmp_call(t->qmp, command, args, ms, on_reply, t);
}

void talk_end(struct talk *t, const struct error *err)
{
	if (t->ended)
		return;
	t->ended = true;
	t->err = *err;
	talk_later(t, 0, t->owner_is->tell);
}

void talk_qmp_lost(struct talk *t, const char *more)
{
	struct error err = ERROR_NONE;

	error_set(&err, -ECONNRESET, "the control channel to QEMU is lost%s", more);
	talk_end(t, &err);
}

json_t *talk_find(const json_t *list, const char *key, const char *value)
{
	json_t *o;
	size_t i;

	json_array_foreach(list, i, o) {
		const char *is = json_string_value(json_object_get(o, key));

		if (is && streq(is, value))
			return o;
	}
	return NULL;
}

void talk_free(struct talk *t)
{
	if (t->freed)
		return;
	t->freed = true;
	uv_close((uv_handle_t *)&t->timer, on_closed);
}
