/* port_feed.h - the forwards as a stream: all of them first, then what changes
 *
 * Each subscriber gets lines of JSON (docs/api.md): one `snapshot`, then a
 * `change` whenever a state changed (at most 20 a second) or counters moved (at
 * most two a second). A subscriber that did not read enough is left out until it
 * did, and then gets a snapshot again, so nobody ever holds more than one line.
 *
 * While somebody listens the table is walked twice a second and compared with
 * what was told; the walk's own cost stretches the interval, so that a guest
 * with 16,384 listeners costs no more than a twentieth of the loop. While nobody
 * does, nothing runs and nothing is kept.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "hostagent/forward/forward.h"
#include "lib/base/loop.h"

struct port_feed;

/* @forward: the forwards of the moment, NULL for none; asked at each look. */
struct port_feed *port_feed_new(struct loop *loop, struct forward *(*forward)(void *arg), void *arg);
/* No line after this; @feed frees itself later. */
void port_feed_close(struct port_feed *feed);

/* Something happened to a forward: look soon. */
void port_feed_poke(struct port_feed *feed);

/* GET /v1/ports, GET /v1/rules. */
json_t *port_feed_rows(struct port_feed *feed);
json_t *port_feed_rules(struct port_feed *feed);

/* @fn returns false when it did not take the line. One comes at once. */
unsigned port_feed_subscribe(struct port_feed *feed, bool (*fn)(void *to, const char *line), void *to);
void port_feed_unsubscribe(struct port_feed *feed, unsigned id);	/* also inside @fn */
