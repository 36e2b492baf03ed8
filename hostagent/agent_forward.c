/* agent_forward.c - step listeners: host addresses, before and after the guest is up */
#include "hostagent/agent_impl.h"

#include <stdio.h>

#include "hostagent/loopback.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"

/* --- what is not for guests ---------------------------------------------- */

/* In libuv's pool. A stopped instance wants the port in its ssh.config again. */
static size_t list_ssh_ports(void *arg, struct forward_reserved *ret, size_t max)
{
	const struct agent_options *o = arg;
	scoped_strv struct strv names = { 0 };
	struct error err = ERROR_NONE;
	const char *name;
	size_t n = 0;

	if (instance_list(o->lima_home, &names, &err) < 0)
		return 0;
	strv_foreach (name, &names) {
		scoped_free char *dir = layout_instance_dir(o->lima_home, name);
		uint16_t port = streq(name, o->name) ? 0 : ssh_config_port(dir);

		if (!port || n == max)
			continue;
		ret[n].port = port;
		snprintf(ret[n++].name, sizeof(ret->name), "%s", name);
	}
	return n;
}

/* --- the step ------------------------------------------------------------ */

static void on_port_event(void *arg, const struct forward_event *ev)
{
	struct agent *a = arg;

	events_port(a->events, ev);
	port_feed_poke(a->port_feed);
}

static void on_socket_event(void *arg, const struct forward_event *ev)
{
	on_port_event(arg, ev);
	agent_guest_changed(arg);	/* the last step waits for them */
}

int agent_forward_prepare(struct agent *a, struct error *err)
{
	if (a->config->port_forwarding.conflict != CONFLICT_LOOPBACK)
		return 0;
	return loopback_choose(a->o->lima_home, a->o->name, &a->loopback, err);
}

static void start_sockets(struct agent *a)
{
	scoped_free char *prefix = layout_instance_file(a->dir, FILE_LANE_SOCKS);
	struct socket_forwards_options so = { .loop = &a->loop, .target = &a->ssh,
					      .socket_prefix = prefix,
					      .event = on_socket_event, .arg = a };
	struct forward_sockets ops;

	a->sockets = socket_forwards_new(&so);
	socket_forwards_ops(a->sockets, &ops);
	forward_set_sockets(a->forward, &ops);
}

void agent_forward_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	scoped_free char *remember = layout_instance_file(a->dir, FILE_HOST_PORTS);
	struct error err = ERROR_NONE;
	struct forward_options fo = {
		.config = a->config,
		.ssh_local_port = a->ssh_port,
		.reserved = { .list = list_ssh_ports, .arg = (void *)a->o },
		.loopback = a->loopback,
		.remember_file = remember,
		.event = on_port_event,
		.arg = a,
	};

	if (forward_new(&a->loop, &fo, &a->forward, &err) < 0) {
		steps_fail(s, &err);
		return;
	}
	forward_set_paused(a->forward, a->paused);	/* one that was adopted so */
	start_sockets(a);
	agent_lanes_start(a);
	forward_start(a->forward);
	agent_ports_start(a);
	steps_done(s, "");
}

void agent_forward_set_paused(struct agent *a, bool paused)
{
	a->paused = paused;
	if (a->forward)
		forward_set_paused(a->forward, paused);
}

static void on_sockets_closed(void *arg)
{
	struct agent *a = arg;

	forward_close(steal_ptr(&a->forward), agent_lanes_undo, a);
}

void agent_forward_undo(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	agent_ports_stop(a);
	forward_set_sockets(a->forward, NULL);
	socket_forwards_close(steal_ptr(&a->sockets), on_sockets_closed, a);
}
