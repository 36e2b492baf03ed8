/* port_json.h - forwards and their rules as docs/api.md shows them
 *
 * The names are stable: programs read them. A field is never taken away or given
 * another meaning; new ones may come.
 */
#pragma once

#include <jansson.h>

#include "hostagent/forward/forward.h"

/* @now_ms: uv_now(), for `since`. */
json_t *port_json_row(const struct forward_row *row, uint64_t now_ms);
/* The three fields that tell one row from all others. */
json_t *port_json_key(const char *protocol, const char *guest_addr, const char *host_addr);
/* With every key filled in, ranges also for single ports. */
json_t *port_json_rule(const struct forward_rule_info *info);
