#include "guestagent/agent.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "guestagent/clock.h"
#include "guestagent/lane.h"
#include "guestagent/ports.h"
#include "guestagent/provision.h"
#include "guestagent/report.h"
#include "guestagent/serial.h"
#include "guestagent/touch.h"
#include "guestagent/tunnel.h"
#include "lib/base/log.h"
#include "lib/base/loop.h"
#include "lib/base/mem.h"
#include "proto/guest_server.h"
#include "proto/rpc.h"

enum { SIGNALS = 2 };

struct agent {
	const struct agent_options *opts;
	struct loop loop;
	struct rpc *rpc;
	struct report *report;
	struct ports *ports;
	struct provision *provision;
	struct touch *touch;
	struct tunnels *tunnels;
	struct lane *lane;	/* NULL: not wanted */
	struct guest_server *server;
	struct serial *serial;
	uv_signal_t signals[SIGNALS];
	unsigned steps_done;
	bool stopping;
	bool touch_hangs;	/* a pool thread sits in a file system that does not answer */
};

/* --- what the host asks --------------------------------------------------- */

static const Info *get_info(void *arg)
{
	struct agent *a = arg;

	return report_info(a->report, ports_current(a->ports), provision_current(a->provision));
}

static const Event *get_snapshot(void *arg)
{
	struct agent *a = arg;

	return report_snapshot(a->report, ports_current(a->ports), provision_current(a->provision));
}

static void sync_time(void *arg, const TimeSyncRequest *req, TimeSyncResponse *res)
{
	guest_clock_sync(req, res);
}

static void inotify(void *arg, const Inotify *msg)
{
	touch_path(((struct agent *)arg)->touch, msg);
}

static void tunnel(void *arg, struct guest_stream *s, int proto, const char *guest_addr)
{
	tunnels_open(((struct agent *)arg)->tunnels, s, proto, guest_addr);
}

/* --- what the host is told ------------------------------------------------ */

static void on_ports_changed(void *arg, const struct port_set *added,
			     const struct port_set *removed)
{
	struct agent *a = arg;

	log_debug("ports: %zu opened, %zu closed, now %zu", added->len, removed->len,
		  ports_current(a->ports)->len);
	if (a->server)
		guest_server_publish(a->server, report_change(a->report, added, removed, NULL));
}

static void on_progress(void *arg)
{
	struct agent *a = arg;

	if (a->server)
		guest_server_publish(a->server, report_change(a->report, NULL, NULL,
							      provision_current(a->provision)));
}

static void on_lane_opened(void *arg)
{
	struct agent *a = arg;

	report_set_relay_ports(a->report, lane_ports(a->lane));
	if (a->server)
		guest_server_publish(a->server, report_change(a->report, NULL, NULL, NULL));
}

/* --- steps with their undo ------------------------------------------------ */

static void stop_next(void *arg);

static int start_ports(struct agent *a, struct error *err)
{
	struct ports_options opts = { .no_bpf = a->opts->poll_ports };
	scoped_free char *udp_keep = NULL;
	int rc;

	if (a->opts->runtime_dir)
		opts.udp_keep = udp_keep = xasprintf("%s/udp-servers", a->opts->runtime_dir);
	rc = ports_new(&a->loop, &opts, on_ports_changed, a, &a->ports, err);
	if (rc < 0)
		return rc;
	log_info("ports: found by %s%s%s", ports_mode(a->ports),
		 *ports_bpf_problem(a->ports) ? ": " : "", ports_bpf_problem(a->ports));
	return 0;
}

static void stop_ports(struct agent *a)
{
	ports_close(a->ports, stop_next, a);
}

static int start_provision(struct agent *a, struct error *err)
{
	a->provision = provision_new(&a->loop, a->opts->progress_dir, on_progress, a);
	return 0;
}

static void stop_provision(struct agent *a)
{
	provision_close(a->provision, stop_next, a);
}

static void dial_more(void *arg, int proto, struct dial *d)
{
	struct agent *a = arg;

	ports_dial(a->ports, proto, d);
}

/* From the relay's thread. */
static void dial_more_tcp(void *arg, struct dial *d)
{
	dial_more(arg, IPPROTO_TCP, d);
}

static int start_tunnels(struct agent *a, struct error *err)
{
	a->touch = touch_new(&a->loop);
	a->tunnels = tunnels_new(&a->loop);
	tunnels_set_more(a->tunnels, dial_more, a);
	return 0;
}

static void stop_tunnels(struct agent *a)
{
	a->touch_hangs = touch_pending(a->touch) > 0;
	touch_close(a->touch);
	tunnels_close(a->tunnels, stop_next, a);
}

/* Before the server: its port is then in what a host hears first. */
static int start_lane(struct agent *a, struct error *err)
{
	struct lane_options opts = { .port = a->opts->relay_vsock_port,
				     .opened = on_lane_opened,
				     .dial_more = dial_more_tcp,
				     .arg = a };
	int rc;

	if (opts.port == 0)
		return 0;
	rc = lane_new(&a->loop, &opts, &a->lane, err);
	if (rc == 0)
		report_set_relay_ports(a->report, lane_ports(a->lane));
	return rc;
}

static void stop_lane(struct agent *a)
{
	if (a->lane)
		lane_close(a->lane, stop_next, a);
	else
		loop_post(&a->loop, stop_next, a);
}

static int start_server(struct agent *a, struct error *err)
{
	static const struct guest_server_callbacks calls = { .get_info = get_info,
							     .get_snapshot = get_snapshot,
							     .sync_time = sync_time,
							     .inotify = inotify,
							     .tunnel = tunnel };
	struct guest_server_callbacks cb = calls;

	cb.arg = a;
	return guest_server_new(&a->loop, a->rpc, &cb, &a->server, err);
}

static void stop_server(struct agent *a)
{
	guest_server_close(steal_ptr(&a->server), stop_next, a);
}

/* One channel that does not work leaves the others; none at all is an error. */
static int start_channels(struct agent *a, struct error *err)
{
	const struct agent_options *o = a->opts;
	int wanted = !!o->socket + !!o->vsock_port, failed = 0;

	if (o->socket && guest_server_listen_unix(a->server, o->socket, o->socket_owner, err) < 0)
		failed++, log_warn("agent: %s, ignoring", err->msg);
	if (o->vsock_port && guest_server_listen_vsock(a->server, o->vsock_port, err) < 0)
		failed++, log_warn("agent: %s, ignoring", err->msg);
	if (o->virtio_port)
		a->serial = serial_new(&a->loop,
				       &(struct serial_options){ .name = o->virtio_port,
								 .secret_file = o->secret_file },
				       a->server);
	return !a->serial && failed == wanted ? err->code : 0;
}

static void stop_channels(struct agent *a)
{
	if (a->serial)
		serial_close(a->serial, stop_next, a);
	else
		loop_post(&a->loop, stop_next, a);
}

static const struct step {
	const char *what;
	int (*start)(struct agent *a, struct error *err);
	void (*stop)(struct agent *a);	/* calls stop_next() when done, later */
} steps[] = {
	{ "ports", start_ports, stop_ports },
	{ "boot progress", start_provision, stop_provision },
	{ "tunnels", start_tunnels, stop_tunnels },
	{ "lane", start_lane, stop_lane },
	{ "server", start_server, stop_server },
	{ "channels", start_channels, stop_channels },
};

/* Undoes the last step that was started; the loop ends after the first one. */
static void stop_next(void *arg)
{
	struct agent *a = arg;

	if (a->steps_done) {
		const struct step *s = &steps[--a->steps_done];

		log_debug("agent: stopping %s", s->what);
		s->stop(a);
		return;
	}
	loop_unref(&a->loop);
	if (a->touch_hangs)
		loop_stop(&a->loop);
}

static void stop(struct agent *a)
{
	if (a->stopping)
		return;
	a->stopping = true;
	for (unsigned i = 0; i < SIGNALS; i++)
		uv_close((uv_handle_t *)&a->signals[i], NULL);
	loop_ref(&a->loop);	/* until the last step is undone */
	stop_next(a);
}

static void on_signal(uv_signal_t *handle, int sig)
{
	log_info("agent: signal %d, stopping", sig);
	stop(handle->data);
}

static void start_signals(struct agent *a)
{
	static const int which[SIGNALS] = { SIGTERM, SIGINT };

	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < SIGNALS; i++) {
		uv_signal_init(&a->loop.uv, &a->signals[i]);
		a->signals[i].data = a;
		uv_signal_start(&a->signals[i], on_signal, which[i]);
	}
}

static int start(struct agent *a, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		int rc = steps[i].start(a, err);

		if (rc < 0)
			return error_wrap(err, "start %s", steps[i].what);
		a->steps_done++;
	}
	return 0;
}

int agent_run(const struct agent_options *opts, struct error *err)
{
	struct agent a = { .opts = opts };
	int rc = loop_init(&a.loop, err);

	if (rc < 0)
		return rc;
	rc = rpc_new(&a.loop, &a.rpc, err);
	if (rc < 0) {
		loop_done(&a.loop);
		return rc;
	}
	a.report = report_new();
	start_signals(&a);
	rc = start(&a, err);
	if (rc < 0)
		stop(&a);
	loop_run(&a.loop);
	if (a.touch_hangs)	/* exit() would join that thread, and shutdown wait for us */
		_exit(rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
	rpc_free(a.rpc);
	report_free(a.report);
	loop_done(&a.loop);
	return rc;
}
