#include "hostagent/forward/lane.h"

#include <netinet/in.h>

/* What may carry a TCP connection, best first; CONFIG_LANE_AUTO ends a row. */
static const enum config_lane tcp_order[LANE_COUNT][LANE_COUNT] = {
	[CONFIG_LANE_AUTO] = { CONFIG_LANE_VSOCK, CONFIG_LANE_GRPC },
	[CONFIG_LANE_VSOCK] = { CONFIG_LANE_VSOCK },
	[CONFIG_LANE_GRPC] = { CONFIG_LANE_GRPC },
	[CONFIG_LANE_SSH] = { CONFIG_LANE_SSH },
	[CONFIG_LANE_DIRECT] = { CONFIG_LANE_DIRECT, CONFIG_LANE_VSOCK, CONFIG_LANE_GRPC },
};

static const enum config_lane udp_order[LANE_COUNT][LANE_COUNT] = {
	[CONFIG_LANE_AUTO] = { CONFIG_LANE_GRPC },
	[CONFIG_LANE_VSOCK] = { CONFIG_LANE_GRPC },
	[CONFIG_LANE_GRPC] = { CONFIG_LANE_GRPC },
	[CONFIG_LANE_DIRECT] = { CONFIG_LANE_GRPC },
};

struct lane *lanes_choose(const struct lanes *lanes, enum config_lane wanted, int proto,
			  const char *guest_addr, unsigned tried, enum config_lane *ret)
{
	const enum config_lane *at = proto == IPPROTO_UDP ? udp_order[wanted] : tcp_order[wanted];

	for (; *at != CONFIG_LANE_AUTO; at++) {
		struct lane *lane = lanes->of[*at];

		if (!lane || tried & 1u << *at)
			continue;
		if (lane->ops->can && !lane->ops->can(lane, proto, guest_addr))
			continue;
		*ret = *at;
		return lane;
	}
	return NULL;
}
