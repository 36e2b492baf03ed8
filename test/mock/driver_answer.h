/* driver_answer.h - what a played driver was asked for, answered at a later turn of the
 * loop, as a driver does (drivers/driver.h)
 */
#pragma once

#include "drivers/driver.h"
#include "lib/base/loop.h"

struct driver_answer;

/* @code 0: done. */
struct driver_answer *driver_answer_new(driver_done_fn done, void *arg, int code);
/* At the next turn; takes it. */
void driver_answer_give(struct driver_answer *a, struct loop *loop);
