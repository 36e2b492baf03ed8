/* report.h - the messages of GuestService that tell about the guest
 *
 * Keeps the revision: it grows by one with each event, whatever it is about, so
 * that a host that missed one sees the gap. Messages returned live until the
 * next call of the same function; they borrow what they were built from.
 */
#pragma once

#include "guestagent/ports_list.h"
#include "proto/guestservice.pb-c.h"
#include "proto/relay.h"

struct report;

struct report *report_new(void);
void report_free(struct report *r);

/* For all messages from now on, the next change among them. */
void report_set_relay_ports(struct report *r, struct relay_ports ports);

const Info *report_info(struct report *r, const struct port_set *ports, const BootProgress *boot);
const Event *report_snapshot(struct report *r, const struct port_set *ports,
			     const BootProgress *boot);
/* Counts up. @boot: NULL when it did not change. */
const Event *report_change(struct report *r, const struct port_set *added,
			   const struct port_set *removed, const BootProgress *boot);
