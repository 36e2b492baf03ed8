/* interrupt.h - Ctrl-C in the short-lived commands, which block
 *
 * interrupt_install() catches SIGINT, SIGTERM and SIGHUP: the first one only
 * sets a flag and makes blocking calls end with EINTR, so that the command can
 * undo what it began and leave a state the next command understands. A SIGINT
 * after that ends the process at once. SIGPIPE is ignored: whoever read our
 * messages may go (`limactl start 2>&1 | head -1`), the work is done or undone
 * all the same. The host agent does not use this; it has uv_signal_t.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"

void interrupt_install(void);
bool interrupt_pending(void);
/* The signal that came, 0 for none. The exit code is 128 + this. */
int interrupt_signal(void);
/* 0, or -ECANCELED with "interrupted" in @err when one is pending. */
int interrupt_check(struct error *err);
