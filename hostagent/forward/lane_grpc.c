/* lane_grpc.c - the lane that every guest has: tunnels of GuestService
 *
 * A lane connection is a guest_tunnel; the callbacks mean the same, one by one.
 */
#include "hostagent/forward/lane.h"

#include "lib/base/mem.h"
#include "proto/guest_client.h"

struct lane_grpc {
	struct lane lane;
	struct guest_client *client; /* borrowed */
};

static struct guest_tunnel *tunnel(struct lane_conn *c)
{
	return (struct guest_tunnel *)c;
}

static int grpc_open(struct lane *lane, int proto, const char *guest_addr,
		     const struct lane_callbacks *cb, struct lane_conn **ret, struct error *err)
{
	struct lane_grpc *l = container_of(lane, struct lane_grpc, lane);
	struct guest_tunnel_callbacks tunnel_cb = {
		.opened = cb->opened,
		.data = cb->data,
		.eof = cb->eof,
		.writable = cb->writable,
		.closed = cb->closed,
		.arg = cb->arg,
	};
	struct guest_tunnel *t;
	int rc = guest_tunnel_open(l->client, proto, guest_addr, &tunnel_cb, &t, err);

	if (rc == 0)
		*ret = (struct lane_conn *)t;
	return rc;
}

static bool grpc_write(struct lane_conn *c, uint8_t *data, size_t len)
{
	return guest_tunnel_write(tunnel(c), data, len);
}

static void grpc_eof(struct lane_conn *c)
{
	guest_tunnel_eof(tunnel(c));
}

static void grpc_pause(struct lane_conn *c)
{
	guest_tunnel_pause(tunnel(c));
}

static void grpc_resume(struct lane_conn *c)
{
	guest_tunnel_resume(tunnel(c));
}

static void grpc_reset(struct lane_conn *c)
{
	guest_tunnel_reset(tunnel(c));
}

static void grpc_close(struct lane_conn *c)
{
	guest_tunnel_close(tunnel(c));
}

static const struct lane_ops ops = {
	.name = "grpc",
	.open = grpc_open,
	.write = grpc_write,
	.eof = grpc_eof,
	.pause = grpc_pause,
	.resume = grpc_resume,
	.reset = grpc_reset,
	.close = grpc_close,
};

struct lane *lane_grpc_new(struct guest_client *client)
{
	struct lane_grpc *l = xnew(struct lane_grpc);

	l->lane.ops = &ops;
	l->client = client;
	return &l->lane;
}

void lane_grpc_free(struct lane *lane)
{
	if (lane)
		free(container_of(lane, struct lane_grpc, lane));
}
