/* talk.h - QMP calls one after the other, with one end
 *
 * What a change to a running QEMU and a snapshot of it have in common. The first
 * step is taken at the next turn of the loop, each other one by the reply to a call,
 * by the timer or by an event. The end is told at a turn of its own, so that nobody
 * is freed under the feet of whoever found it. At most one call is in flight, and
 * the timer runs for one thing: a new one takes the place of the one before.
 *
 * A talk is a member of its owner, whom all its functions get.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "drivers/qemu/qmp.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

typedef void (*talk_turn_fn)(void *owner);
typedef void (*talk_reply_fn)(void *owner, json_t *ret, const struct error *err);

struct talk_owner {
	talk_turn_fn begin;
	talk_turn_fn tell;	/* it ended: talk.err says how */
	talk_turn_fn release;	/* after talk_free(), when nothing is in flight */
};

struct talk {			/* refs: the timer's handle and a call in flight */
	struct qmp *qmp;	/* borrowed until talk_free() */
	const struct talk_owner *owner_is;
	void *owner;
	uv_timer_t timer;
	talk_turn_fn next;
	talk_reply_fn replied;
	unsigned refs;
	bool freed, ended;
	bool asking;		/* a call is in flight */
	struct error err;
};

/* @qmp NULL: it ends as with talk_qmp_lost(). */
void talk_begin(struct talk *t, struct loop *loop, struct qmp *qmp,
		const struct talk_owner *owner_is, void *owner);
void talk_later(struct talk *t, unsigned ms, talk_turn_fn fn);
void talk_not_later(struct talk *t);
/* @args: taken, as qmp_call() does. */
void talk_call(struct talk *t, const char *command, json_t *args, unsigned ms,
	       talk_reply_fn replied);
/* The first end counts. @err may be t->err. */
void talk_end(struct talk *t, const struct error *err);
/* The connection is gone: ends with -ECONNRESET. @more: for the text, "" nothing. Is to
 * be called then: steps do not get that code. */
void talk_qmp_lost(struct talk *t, const char *more);
/* The first object in the array @list whose @key is the string @value; NULL: none.
 * Anything may be given for a list, and be in it. */
json_t *talk_find(const json_t *list, const char *key, const char *value);
/* Any time, twice is fine; no step follows but release. */
void talk_free(struct talk *t);
