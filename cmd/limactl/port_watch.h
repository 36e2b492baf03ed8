/* port_watch.h - the forwards of one instance, alive
 *
 * Follows the host agent's stream (docs/api.md): a snapshot, then changes. On a
 * terminal a table is drawn in place, at most ten times a second while states
 * change and twice while bytes move; what does not fit on the screen is counted.
 * Elsewhere each change of a state is one line, on stdout.
 *
 * A host agent that goes is told in a line on stderr and waited for, as long as the
 * machine runs; the next one's snapshot goes on where the old one's ended.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"

enum port_watch_host {		/* of the instance, as its pid files say */
	PORT_WATCH_THERE,	/* the host agent lives: it may listen already */
	PORT_WATCH_LOST,	/* it does not, the machine does */
	PORT_WATCH_STOPPED,
};

struct port_watch_options {
	const char *instance;
	bool all;	/* also what no rule forwards */
	bool json;	/* the stream's own lines */
	bool live;	/* a table, if stdout is a terminal */
	enum port_watch_host (*look)(void *arg);	/* asked while the host agent is gone */
	void *arg;
};

/* Until the instance stops or an interrupt, both success. */
int port_watch(const char *socket, const struct port_watch_options *o, struct error *err);
