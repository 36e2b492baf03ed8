/* tcp_stream.h - relaying for lanes that cannot do it themselves
 *
 * What lane_ops.relay means, made of open(), write() and the rest: reads the client
 * in pieces of 4 to 128 KiB, growing with what comes, which are handed to the lane
 * as they are. A lane that does not keep up stops the reading; a client that does
 * not keep up pauses the lane, with at most 256 KiB and one piece waiting.
 *
 * Until the lane said opened the client's descriptor is not looked at, and there is
 * no handle. An idle stream holds no buffer.
 */
#pragma once

#include "hostagent/forward/hub.h"
#include "hostagent/forward/lane.h"

/* As lane_ops.relay. */
int tcp_stream_relay(struct hub *hub, struct lane *lane, const struct lane_relay *relay,
		     struct lane_conn **ret, struct error *err);
/* As lane_ops.reset, for what the above returned. */
void tcp_stream_reset(struct lane_conn *c);
