/* events.h - JSON lines in ha.stdout.log, written and read
 *
 * The shape is Lima's (reference/hostagent.md §6), one object a line:
 * {"time": RFC3339, "status": {running, degraded, exiting, errors, sshLocalPort,
 * portForward, vsock}}. Ours adds status.step {name, state: started|done|failed,
 * ms, detail, error} which `start` turns into its display, status.notice and, with
 * it, status.delayMillis: a stop takes up to as much longer.
 * Sub-objects describe this event only and are not repeated in later ones.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "hostagent/forward/forward.h"

enum step_state { STEP_STARTED, STEP_PROGRESS, STEP_DONE, STEP_FAILED };

/* --- writing: the host agent ------------------------------------------- */
struct events;
/* Events go to @fd (stdout) and to whoever subscribed (ha.sock). */
struct events *events_new(int fd);
void events_free(struct events *e);
void events_set_ssh_port(struct events *e, uint16_t port);
void events_booting(struct events *e);
void events_running(struct events *e);
void events_degraded(struct events *e, const char *error);	/* running, but */
void events_exiting(struct events *e, const char *error);	/* NULL: in order */
void events_step(struct events *e, const char *name, enum step_state state, uint64_t ms,
		 const char *detail, const char *error);
void events_notice(struct events *e, const char *text);
/* A notice that stopping takes up to @ms longer. */
void events_delay(struct events *e, const char *text, uint64_t ms);
void events_port(struct events *e, const struct forward_event *ev);
/* @type: Lima's "started", "skipped" about ssh over the vsock; ours "lane-up",
 * "lane-down" about forwards. @host_addr, @reason: "" for none, @vsock_port: 0. */
void events_vsock(struct events *e, const char *type, const char *host_addr, uint32_t vsock_port,
		  const char *reason);
/* @fn gets each line (without newline) from now on; one line of the current
 * status is delivered at once. Returns an id for unsubscribe. */
unsigned events_subscribe(struct events *e, void (*fn)(void *arg, const char *line), void *arg);
void events_unsubscribe(struct events *e, unsigned id);

/* --- reading: limactl start, stop, watch --------------------------------- */
struct event_view {	/* borrowed from the parsed line */
	const char *time;
	bool running, degraded, exiting;
	uint16_t ssh_port;		/* 0: not told */
	const char *first_error;	/* NULL: none */
	struct {
		const char *name;	/* NULL: no step in this event */
		enum step_state state;
		uint64_t ms;
		const char *detail, *error;	/* "" when absent */
	} step;
	const char *notice;		/* NULL: none */
	uint64_t delay_ms;		/* of a stop, 0: none */
	struct {
		const char *type;	/* NULL: no port event; "forwarding" … */
		const char *protocol, *guest_addr, *host_addr, *error;
	} port;
};
/* Parses one line; *ret_root keeps @view alive, release with json_decref().
 * Lima's own host agent's lines are understood too. */
int event_parse(const char *line, size_t len, struct event_view *view, json_t **ret_root,
		struct error *err);
