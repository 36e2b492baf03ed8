#include "hostagent/steps.h"

#include <assert.h>
#include <errno.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum state {
	STATE_NEW,	/* steps_start() */
	STATE_RUNNING,	/* a step runs: done, fail, degrade, progress, stop */
	STATE_ABORTING,	/* a step was asked to end early: done, fail, degrade */
	STATE_UP,	/* stop */
	STATE_UNDOING,	/* undone */
	STATE_DOWN,	/* free */
};

struct steps {
	struct loop *loop;
	struct steps_options o;
	enum state state;
	size_t at;		/* steps [0, at) were run or passed over; table[at] runs */
	uint64_t ran;		/* bit i: table[i] is done, not passed over */
	uint64_t begun_ms;	/* when table[at] began */
	bool reported;		/* table[at] ended, the next turn is under way */
	struct error why;
};

static void next_step(void *arg);
static void undo_step(void *arg);

struct steps *steps_new(struct loop *loop, const struct steps_options *opts)
{
	struct steps *s = xnew(struct steps);

	assert(opts->n <= 64);
	s->loop = loop;
	s->o = *opts;
	return s;
}

void steps_free(struct steps *s)
{
	if (!s)
		return;
	assert(s->state == STATE_NEW || s->state == STATE_DOWN);
	free(s);
}

bool steps_is_up(const struct steps *s)
{
	return s->state == STATE_UP;
}

bool steps_is_stopping(const struct steps *s)
{
	return s->state == STATE_ABORTING || s->state >= STATE_UNDOING;
}

static void tell(struct steps *s, enum step_state state, const char *detail, const char *error)
{
	const struct step *step = &s->o.table[s->at];
	uint64_t ms = state == STEP_STARTED ? 0 : clock_mono_ms() - s->begun_ms;

	if (step->quiet && state != STEP_FAILED)
		return;
	s->o.event(s->o.ctx, step->name, state, ms, detail, error);
}

void steps_start(struct steps *s)
{
	assert(s->state == STATE_NEW);
	s->state = STATE_RUNNING;
	s->reported = true;
	loop_ref(s->loop);	/* until down: posts must find the loop running */
	loop_post(s->loop, next_step, s);
}

/* Begins table[at], or reports that all are done. A stop may have come since
 * the turn was posted. */
static void next_step(void *arg)
{
	struct steps *s = arg;

	s->reported = false;
	if (s->state == STATE_ABORTING) {
		s->state = STATE_UNDOING;
		undo_step(s);
		return;
	}
	assert(s->state == STATE_RUNNING);
	while (s->at < s->o.n && s->o.table[s->at].wanted && !s->o.table[s->at].wanted(s->o.ctx))
		s->at++;
	if (s->at == s->o.n) {
		s->state = STATE_UP;
		s->o.up(s->o.ctx);
		return;
	}
	s->begun_ms = clock_mono_ms();
	tell(s, STEP_STARTED, "", "");
	s->o.table[s->at].run(s->o.ctx, s);
}

/* The running step has ended and counts as done. */
static void step_ended(struct steps *s)
{
	assert((s->state == STATE_RUNNING || s->state == STATE_ABORTING) && !s->reported);
	s->reported = true;
	s->ran |= UINT64_C(1) << s->at;
	s->at++;
	loop_post(s->loop, next_step, s);
}

void steps_done(struct steps *s, const char *detail)
{
	tell(s, STEP_DONE, detail, "");
	step_ended(s);
}

void steps_degrade(struct steps *s, const struct error *why)
{
	tell(s, STEP_FAILED, "", why->msg);
	step_ended(s);
}

void steps_fail(struct steps *s, const struct error *why)
{
	assert((s->state == STATE_RUNNING || s->state == STATE_ABORTING) && !s->reported);
	assert(why->code < 0);
	if (s->state == STATE_RUNNING) {	/* aborted ones are no news */
		tell(s, STEP_FAILED, "", why->msg);
		s->why = *why;
		error_wrap(&s->why, "%s", s->o.table[s->at].name);
	}
	s->reported = true;
	s->state = STATE_UNDOING;
	loop_post(s->loop, undo_step, s);
}

void steps_progress(struct steps *s, const char *detail)
{
	if (s->state == STATE_RUNNING && !s->reported)
		tell(s, STEP_PROGRESS, detail, "");
}

void steps_stop(struct steps *s, const struct error *why)
{
	if (s->state != STATE_RUNNING && s->state != STATE_UP)
		return;
	if (why)
		s->why = *why;
	if (s->state == STATE_UP) {
		s->state = STATE_UNDOING;
		loop_post(s->loop, undo_step, s);
		return;
	}
	s->state = STATE_ABORTING;
	/* between two steps: the posted turn sees the new state */
	if (!s->reported && s->o.table[s->at].abort)
		s->o.table[s->at].abort(s->o.ctx, s);
}

static bool needs_undo(const struct steps *s, size_t i)
{
	return (s->ran & UINT64_C(1) << i) && s->o.table[i].undo;
}

/* Undoes table[at - 1], skipping what has nothing to undo. */
static void undo_step(void *arg)
{
	struct steps *s = arg;

	while (s->at > 0 && !needs_undo(s, s->at - 1))
		s->at--;
	if (s->at == 0) {
		s->state = STATE_DOWN;
		loop_unref(s->loop);
		s->o.down(s->o.ctx, &s->why);	/* may free */
		return;
	}
	s->at--;
	s->reported = false;
	log_debug("steps: undoing `%s`", s->o.table[s->at].name);
	s->o.table[s->at].undo(s->o.ctx, s);
}

void steps_undone(struct steps *s)
{
	assert(s->state == STATE_UNDOING && !s->reported);
	s->reported = true;
	loop_post(s->loop, undo_step, s);
}
