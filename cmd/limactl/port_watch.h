/* port_watch.h - the forwards of one instance, alive
 *
 * Follows the host agent's stream (docs/api.md): a snapshot, then changes. On a
 * terminal a table is drawn in place, at most ten times a second while states
 * change and twice while bytes move; what does not fit on the screen is counted.
 * Elsewhere each change of a state is one line, on stdout.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"

struct port_watch_options {
	const char *instance;
	bool all;	/* also what no rule forwards */
	bool json;	/* the stream's own lines */
	bool live;	/* a table, if stdout is a terminal */
};

/* Until the instance stops or an interrupt, both success. */
int port_watch(const char *socket, const struct port_watch_options *o, struct error *err);
