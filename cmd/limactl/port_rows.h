/* port_rows.h - forwards as people read them
 *
 * Pure: the JSON of GET /v1/ports and /v1/rules in, cells of a table or one line
 * about a row out. What comes from the host agent is treated as text of a peer.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "cmd/limactl/text_table.h"

enum port_columns {
	PORT_INSTANCE = 1,	/* first column: the instance */
	PORT_RATES = 2,		/* bytes per second and latency */
};

struct port_rates {
	double in, out;		/* bytes per second; 0: nothing moves */
};

/* The head of the table; @columns: of enum port_columns. */
void port_rows_begin(struct text_table *t, unsigned columns);
/* @rates: NULL without PORT_RATES. */
void port_rows_add(struct text_table *t, unsigned columns, const char *instance, const json_t *row,
		   const struct port_rates *rates);
/* Rows for live rules that none of @ports stands for: somebody added them and
 * looks for them. Newly made, the caller releases; @rules may be NULL. */
json_t *port_rows_idle(const json_t *ports, const json_t *rules);

/* Not forwarded because no rule wants it: shown with --all only. */
bool port_rows_is_dull(const json_t *row);
/* "forwarding", "waiting", "not-forwarded", … */
const char *port_rows_get(const json_t *row, const char *key);
uint64_t port_rows_number(const json_t *row, const char *key);
/* "tcp 127.0.0.1:80 on 127.0.0.1:8080: forwarding"; caller frees. */
char *port_rows_line(const json_t *row);
