/* port_model.h - what the lines of GET /v1/ports/events add up to
 *
 * Pure. Rows keep their order: what was there first stays first. Rates are bytes
 * per second over the newest changes and fall to 0 when nothing came for a while.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmd/limactl/port_rows.h"
#include "lib/base/error.h"

struct port_model_row {
	json_t *row;
	struct port_rates rates;
	uint64_t at_ms;		/* when its counters moved last */
};

struct port_model {
	struct port_model_row *rows;
	size_t n;
	json_t *index;		/* key of a row: its place in rows */
	json_t *idle;		/* rows of live rules without one; an array */
	json_t *rules;
	/* Called for a row that is new or came to another state, and with
	 * @gone for one that is not there any more; may be NULL. */
	void (*changed)(void *arg, const json_t *row, bool gone);
	void *arg;
};

void port_model_done(struct port_model *m);
/* One line of the stream. A type nobody knows is ignored; -EBADMSG when it is no
 * such line. */
int port_model_take(struct port_model *m, const char *line, uint64_t now_ms, struct error *err);
/* Lets rates fall; true while some are not 0. */
bool port_model_age(struct port_model *m, uint64_t now_ms);
