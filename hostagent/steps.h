/* steps.h - a start as a table of named steps, each with its undo
 *
 * A step runs on the loop and says when it is done, now or later. When one
 * fails, the steps before it are undone in reverse order and the list ends with
 * that error; steps_stop() undoes whatever was done, in the middle of a start
 * as well as hours later. So there is one way up and one way down, and nothing
 * is taken down that did not come up.
 *
 * A step that fails has cleaned up after itself: its own undo does not run.
 * At most 64 steps. Each transition is its own turn of the loop, so a step may report from within
 * its run function. What happens is told to `event`, which turns it into lines
 * of the event log.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hostagent/events.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct steps;

struct step {
	const char *name;
	bool quiet;		/* tells only failures: nobody waits for it */
	/* Asked when its turn comes; false: passed over, nothing told or undone.
	 * NULL: always. */
	bool (*wanted)(void *ctx);
	/* Ends by exactly one steps_done(), steps_fail() or steps_degrade(). */
	void (*run)(void *ctx, struct steps *s);
	/* Asked to end early while it runs; it then ends soon by steps_fail().
	 * NULL: short, is waited for. */
	void (*abort)(void *ctx, struct steps *s);
	/* Ends by steps_undone(). NULL: nothing to undo. Must not fail: it logs
	 * and goes on. */
	void (*undo)(void *ctx, struct steps *s);
};

struct steps_options {
	const struct step *table;
	size_t n;
	void *ctx;
	void (*event)(void *ctx, const char *name, enum step_state state, uint64_t ms,
		      const char *detail, const char *error);
	/* All are done. */
	void (*up)(void *ctx);
	/* All that was done is undone; last callback. @why: what failed, the
	 * reason given to steps_stop(), or code 0. */
	void (*down)(void *ctx, const struct error *why);
};

struct steps *steps_new(struct loop *loop, const struct steps_options *opts);
void steps_free(struct steps *s);	/* before start or after down */

void steps_start(struct steps *s);
/* Walks back. @why may be NULL (asked for). Called again: no effect, except
 * that a reason given later does not replace the first. */
void steps_stop(struct steps *s, const struct error *why);
bool steps_is_up(const struct steps *s);
bool steps_is_stopping(const struct steps *s);

/* --- for the running step ------------------------------------------------ */
void steps_done(struct steps *s, const char *detail);	/* "" or what is worth knowing */
void steps_fail(struct steps *s, const struct error *why);
/* It failed but the machine is of use: the list goes on, the event says failed,
 * and the step counts as done (its undo will run). */
void steps_degrade(struct steps *s, const struct error *why);
void steps_progress(struct steps *s, const char *detail);
/* --- for the step being undone ------------------------------------------- */
void steps_undone(struct steps *s);
