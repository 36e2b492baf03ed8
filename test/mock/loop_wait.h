/* loop_wait.h - turns a loop until something is so, for tests
 *
 * Something in the loop has to tick, for it to be asked after now and then.
 */
#pragma once

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/loop.h"

enum { LOOP_WAIT_MS = 20000 };

#define loop_wait(loop_, cond)                                          \
	do {                                                            \
		uint64_t until_ms = clock_mono_ms() + LOOP_WAIT_MS;     \
		while (!(cond)) {                                       \
			if (clock_mono_ms() > until_ms)                 \
				fail_msg("never came true: %s", #cond); \
			uv_run(&(loop_)->uv, UV_RUN_ONCE);              \
		}                                                       \
	} while (0)
