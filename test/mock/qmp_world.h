/* qmp_world.h - a QEMU played in the same loop, and one talk with it
 *
 * For tests of what talks to a running QEMU (drivers/qemu/talk.h): connects to the
 * mock, passes its events on, and ends what does not end by itself.
 */
#pragma once

#include "drivers/qemu/qmp.h"
#include "lib/base/mem.h"
#include "test/mock/qmp.h"

enum { QMP_WORLD_GIVE_UP_MS = 20000 };

struct qmp_world_talk {		/* what is tested; @talk is never NULL */
	void (*event)(void *talk, const char *name, json_t *data);
	void (*lost)(void *talk);
	void (*free)(void *talk);
};

struct qmp_world {
	struct loop loop;
	uv_timer_t guard;
	struct mock_qmp *mock;
	struct qmp *qmp;
	const struct qmp_world_talk *talk_is;
	void *talk;		/* under way; NULL: none */
	bool ready;
	unsigned n_done;
	struct error err;	/* how it ended */
};

#define qmp_world_until(w, cond) \
	while (!(cond))          \
	uv_run(&(w)->loop.uv, UV_RUN_ONCE)

void qmp_world_begin(struct qmp_world *w, const struct qmp_world_talk *talk_is);
void qmp_world_finish(struct qmp_world *w);
/* A driver_done_fn: notes the end and frees the talk. */
void qmp_world_is_done(void *arg, const struct error *err);
/* The newest command. */
bool qmp_world_was_asked(const struct qmp_world *w, const char *command);
/* The commands since qmp_capabilities: "name name", or "name args; name args". Caller
 * frees. */
char *qmp_world_said(const struct qmp_world *w, bool with_arguments);
