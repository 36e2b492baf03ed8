/* run_state.h - may a guest that stands still be let run
 *
 * QEMU refuses `cont` in some states (internal-error, shutdown). In others it obeys,
 * and the guest goes on with a memory that is not, or no longer, its own: it would
 * write that to its disk. Such a guest can only be reset or ended.
 * (QEMU qapi/run-state.json, RunState; monitor/qmp-cmds.c, qmp_cont())
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

/* All of them take what query-status returned, whatever it is. */

/* A snapshot's load began, and failed or still goes on. */
bool run_state_is_half_loaded(const json_t *status);
/* NULL: `cont` is fine, or QEMU sees to it that it is. Else why it must not be sent:
 * "the guest …". */
const char *run_state_forbids(const json_t *status);
