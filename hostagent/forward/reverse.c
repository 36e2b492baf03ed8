#include "hostagent/forward/reverse.h"

#include <assert.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/un.h>

#include "hostagent/forward/hub.h"
#include "hostagent/forward/lane_socket.h"
#include "hostagent/forward/target.h"
#include "hostagent/forward/tcp.h"
#include "hostagent/forward/unix.h"
#include "lib/base/mem.h"

enum { CONNECT_MS = 10 * 1000 };	/* a host's server whose queue is full */

struct reverse {	/* owner: the set */
	TAILQ_ENTRY(reverse) next;
	struct reverse_set *set;
	struct tcp_listener *listener;
	struct target *target;	/* its address is the host's socket */
	char *path;
	struct unix_id id;
};

struct reverse_set {	/* freed when the hub is idle and the lane's sockets are gone */
	struct hub hub;
	struct lane lane;
	struct lane_sockets sockets;
	TAILQ_HEAD(, reverse) all;
	unsigned parts;
	void (*closed)(void *arg);
	void *closed_arg;
};

static int relay(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
		 struct error *err)
{
	struct reverse_set *set = container_of(lane, struct reverse_set, lane);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct lane_socket_options o = { .address = (struct sockaddr *)&address,
					 .address_len = sizeof(address),
					 .connect_ms = CONNECT_MS,
					 .failed_code = -ECONNREFUSED };

	assert(strlen(relay->guest_addr) < sizeof(address.sun_path));
	memcpy(address.sun_path, relay->guest_addr, strlen(relay->guest_addr));
	return lane_socket_relay(&set->sockets, &o, relay, ret, err);
}

static const struct lane_ops ops = {
	.name = "ssh",
	.relay = relay,
	.reset = lane_socket_reset,
};

struct reverse_set *reverse_set_new(struct loop *loop)
{
	struct reverse_set *set = xnew(struct reverse_set);

	TAILQ_INIT(&set->all);
	set->lane.ops = &ops;
	lane_sockets_init(&set->sockets, loop);
	set->hub.loop = loop;
	set->hub.limits = (struct forward_limits){ .max_connections = REVERSE_CONNECTIONS_MAX,
						   .lane_wait_ms = CONNECT_MS,
						   .open_wait_ms = 2 * CONNECT_MS };
	set->hub.lanes.of[CONFIG_LANE_SSH] = &set->lane;
	set->hub.tcp = tcp_set_new(&set->hub);
	return set;
}

static struct target *pick(void *arg)
{
	return ((struct reverse *)arg)->target;
}

int reverse_new(struct reverse_set *set, const char *path, const char *host, struct reverse **ret,
		struct error *err)
{
	scoped_free struct reverse *r = xnew(struct reverse);
	int fd;

	if (strlen(host) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return error_set(err, -ENAMETOOLONG, "`%s` is too long for a socket", host);
	if (unix_listen(path, &fd, &r->id, err) < 0)
		return err->code;
	if (tcp_listener_new(&set->hub, fd, pick, r, &r->listener, err) < 0) {
		unix_remove(path, &r->id);
		return err->code;
	}
	r->set = set;
	r->path = xstrdup(path);
	r->target = target_new(host);
	r->target->lane_wanted = CONFIG_LANE_SSH;
	TAILQ_INSERT_TAIL(&set->all, r, next);
	*ret = steal_ptr(&r);
	return 0;
}

/* A target counts as if it were in the guest: here in and out change places. */
void reverse_fill_row(const struct reverse *r, struct forward_row *row)
{
	const struct target *t = r->target;

	row->connections_total = t->connections_total;
	row->connections_now = t->connections_now;
	row->bytes_in = t->bytes_out;
	row->bytes_out = t->bytes_in;
	row->refused = t->refused;
	row->resets = t->resets;
	row->timeouts = t->timeouts;
	row->lane = "ssh";
	row->connect_last_us = latency_last_us(&t->connect);
	row->connect_p50_us = latency_quantile_us(&t->connect, 50);
	row->connect_p99_us = latency_quantile_us(&t->connect, 99);
}

void reverse_free(struct reverse *r)
{
	TAILQ_REMOVE(&r->set->all, r, next);
	tcp_listener_close(r->listener);
	unix_remove(r->path, &r->id);
	target_unref(r->target);
	free(r->path);
	free(r);
}

static void part_closed(void *arg)
{
	struct reverse_set *set = arg;
	void (*closed)(void *arg) = set->closed;
	void *closed_arg = set->closed_arg;

	if (--set->parts)
		return;
	tcp_set_free(set->hub.tcp);
	free(set);
	if (closed)
		closed(closed_arg);
}

void reverse_set_close(struct reverse_set *set, void (*closed)(void *arg), void *arg)
{
	set->closed = closed;
	set->closed_arg = arg;
	set->parts = 2;
	set->hub.idle = part_closed;
	set->hub.idle_arg = set;
	while (!TAILQ_EMPTY(&set->all))
		reverse_free(TAILQ_FIRST(&set->all));
	tcp_set_close(set->hub.tcp);
	lane_sockets_close(&set->sockets, part_closed, set);
}
