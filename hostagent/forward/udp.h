/* udp.h - datagrams between host clients and a guest server
 *
 * One host socket holds a table of flows, one per client address, each with a
 * lane connection of its own, so a reply finds its client. A flow ends when
 * neither side sent for limits.udp_idle_ms, when the guest refuses or the client is
 * gone (udp_refused.h), or when limits.max_flows others were busier. Datagrams
 * arrive whole, up to 65,507 bytes (the most IPv4 carries), empty ones too;
 * what waits for the lane is bounded, for each flow and for all (anybody may send
 * from any address), and so is the number of flows: others need the lane's tunnels.
 * The oldest datagram and the flow idle longest go first.
 *
 * One timer per socket, armed only while there are flows, for when the one
 * idle longest is due but never in less than a second.
 */
#pragma once

#include "hostagent/forward/hub.h"
#include "hostagent/forward/tcp.h" /* target_pick_fn */

struct udp_socket;

struct udp_set *udp_set_new(struct hub *hub);
void udp_set_lane_changed(struct udp_set *set); /* flows that wait try hub->lanes */
void udp_set_free(struct udp_set *set);         /* when the hub is idle */

/* Takes @fd, also on failure: a bound datagram socket. */
int udp_socket_new(struct hub *hub, int fd, target_pick_fn pick, void *arg, struct udp_socket **ret,
		   struct error *err);
/* Ends its flows; the descriptor is closed on return. */
void udp_socket_close(struct udp_socket *u);
