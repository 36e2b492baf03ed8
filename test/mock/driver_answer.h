/* driver_answer.h - what a played driver was asked for, answered at a later turn of the
 * loop, as a driver does (drivers/driver.h)
 */
#pragma once

#include <cmocka.h>

#include "drivers/driver.h"
#include "lib/base/clock.h"
#include "lib/base/loop.h"

struct driver_answer;

/* @code 0: done. */
struct driver_answer *driver_answer_new(driver_done_fn done, void *arg, int code);
/* At the next turn; takes it. */
void driver_answer_give(struct driver_answer *a, struct loop *loop);

/* Turns the loop, which has a timer that ticks, until then. */
#define driver_answer_wait(loop_, cond)                                 \
	do {                                                            \
		uint64_t until_ms = clock_mono_ms() + 20000;            \
		while (!(cond)) {                                       \
			if (clock_mono_ms() > until_ms)                 \
				fail_msg("never came true: %s", #cond); \
			uv_run(&(loop_)->uv, UV_RUN_ONCE);              \
		}                                                       \
	} while (0)
