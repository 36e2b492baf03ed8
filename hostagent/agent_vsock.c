/* The vsock device of the instance: listening for QEMU, plugging it in anew after
 * a host agent died, and who uses it: the forwards' fast lane and, if wanted, ssh.
 *
 * Nothing waits for it. While it is not there forwards go through gRPC, and ssh,
 * after some patience, over the VM's own network. */
#include "hostagent/agent_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "hostagent/forward/lane_vsock.h"
#include "hostagent/forward/unix.h"
#include "hostagent/ssh_vsock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"
#include "lib/virtio/vsock.h"

enum {
	GUEST_CID = 3,			/* each instance has a vsock of its own */
	TELL_LANE_MS = 10 * 1000,	/* a guest may let it come and go all day long */
	REPLUG_MAX_MS = 300 * 1000,	/* after a guest that did not let go, or a device that
					 * went down and stays so */
	REPLUG_BOOT_MS = 180 * 1000,	/* after a reset: a guest that boots lets go of nothing.
					 * Its agent's coming ends the wait */
};

enum ssh_at { SSH_NOWHERE, SSH_AT_VSOCK, SSH_AT_NETWORK };

struct agent_vsock {		/* refs: handles, device, lane, ssh, a change under way */
	struct agent *a;
	struct vsock *device;
	struct lane *lane;
	char *path;
	struct unix_id socket_id;
	bool up, lane_usable;
	bool lane_told;			/* what the newest event said */
	uv_timer_t tell_lane;		/* runs from one event to when the next may be */
	struct relay_ports relay;	/* of the guest's agent; first 0: none */
	struct error down_why;

	/* plugging */
	uv_timer_t replug;
	unsigned replug_ms;
	bool changing, was_up, impossible;
	bool held_out;			/* by a snapshot; it is a change under way */
	driver_done_fn held_done;
	void *held_arg;

	/* ssh.overVsock; NULL: not wanted */
	struct ssh_vsock *ssh;
	enum ssh_at ssh_at;
	bool ssh_moving;
	uv_timer_t patience;

	unsigned refs;
	bool closing;
};

static void unref(struct agent_vsock *v)
{
	struct agent *a = v->a;

	if (--v->refs > 0)
		return;
	unix_remove(v->path, &v->socket_id);
	free(v->path);
	free(v);
	a->vsock = NULL;
	steps_undone(a->steps);
}

static void on_closed(void *arg)
{
	unref(arg);
}

static void on_handle_closed(uv_handle_t *h)
{
	unref(h->data);
}

static bool driver_runs(const struct agent_vsock *v)
{
	const struct agent *a = v->a;

	return !v->closing && a->driver && !a->driver_exited && !steps_is_stopping(a->steps);
}

static bool link_is_up(const struct agent_vsock *v)
{
	return v->a->link && guest_link_info(v->a->link)->up;
}

/* --- ssh: over the vsock or over the VM's network ------------------------------------ */

static void judge_ssh(struct agent_vsock *v);

static void on_patience(uv_timer_t *t);

static void have_patience(struct agent_vsock *v, unsigned ms)
{
	uv_timer_start(&v->patience, on_patience, ms, 0);
}

static void tell_ssh(struct agent_vsock *v)
{
	scoped_free char *addr = xasprintf("127.0.0.1:%u", v->a->ssh_port);

	if (v->ssh_at == SSH_AT_VSOCK)
		events_vsock(v->a->events, "started", addr, SSH_VSOCK_PORT, "");
	else if (v->ssh_at == SSH_AT_NETWORK)
		events_vsock(v->a->events, "skipped", addr, 0,
			     v->impossible ? "the machine has no vsock" :
					     "no way to the guest's sshd by its vsock");
}

/* The caller gives up the reference that moving had. */
static void ssh_moved(struct agent_vsock *v, enum ssh_at at)
{
	v->ssh_moving = false;
	v->ssh_at = at;
	if (driver_runs(v))
		tell_ssh(v);
}

static void on_forward_on(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;

	if (err->code && driver_runs(v)) {
		log_warn("agent: ssh over the VM's network: %s; trying again", err->msg);
		have_patience(v, v->a->waits.ssh_again_ms);
	} else if (!err->code && driver_runs(v)) {
		events_notice(v->a->events,
			      "ssh.overVsock: no way to the guest's sshd by its vsock; ssh goes "
			      "over its network");
	}
	ssh_moved(v, err->code ? SSH_NOWHERE : SSH_AT_NETWORK);
	unref(v);
}

/* Off first: one that is there already, of a VM that was adopted, would be refused
 * like anybody else's who has the port. */
static void on_forward_off_before_on(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;
	struct agent *a = v->a;

	if (driver_runs(v)) {
		a->driver_ops->ssh_forward(a->driver, true, on_forward_on, v);
		return;
	}
	ssh_moved(v, SSH_NOWHERE);
	unref(v);
}

static void ssh_to_network(struct agent_vsock *v)
{
	struct agent *a = v->a;

	v->ssh_moving = true;
	v->refs++;
	uv_timer_stop(&v->patience);
	ssh_vsock_unlisten(v->ssh);
	a->driver_ops->ssh_forward(a->driver, false, on_forward_off_before_on, v);
}

static int listen_ssh(struct agent_vsock *v, struct error *err)
{
	struct agent *a = v->a;
	uint16_t port = a->ssh_port;

	if (a->port_fd < 0 && ssh_hold_port(port, true, &port, &a->port_fd, err) < 0)
		return err->code;
	return ssh_vsock_listen(v->ssh, steal_fd(&a->port_fd), err);
}

static void on_forward_off(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;
	struct error failed = *err;

	if (!driver_runs(v)) {
		ssh_moved(v, SSH_NOWHERE);
	} else if (failed.code || listen_ssh(v, &failed) < 0) {
		log_warn("agent: ssh over the vsock: %s", failed.msg);
		have_patience(v, v->a->waits.ssh_again_ms);
		ssh_moved(v, SSH_NOWHERE);
	} else {
		ssh_moved(v, SSH_AT_VSOCK);
	}
	if (driver_runs(v))
		judge_ssh(v);
	unref(v);
}

static void ssh_to_vsock(struct agent_vsock *v)
{
	struct agent *a = v->a;

	v->ssh_moving = true;
	v->refs++;
	uv_timer_stop(&v->patience);
	a->driver_ops->ssh_forward(a->driver, false, on_forward_off, v);
}

/* There is a way: the device is up, and either the agent relays or sshd itself
 * was reached. That sshd does not answer yet is no reason to leave. */
static bool has_way_to_sshd(const struct agent_vsock *v)
{
	return v->up && (v->relay.first || ssh_vsock_was_reached(v->ssh));
}

static void judge_ssh(struct agent_vsock *v)
{
	if (!v->ssh || v->ssh_moving || v->held_out || !driver_runs(v))
		return;
	if (has_way_to_sshd(v)) {
		uv_timer_stop(&v->patience);
		if (v->ssh_at != SSH_AT_VSOCK)
			ssh_to_vsock(v);
	} else if (v->ssh_at != SSH_AT_NETWORK && v->impossible) {
		ssh_to_network(v);
	} else if (v->ssh_at != SSH_AT_NETWORK && !uv_is_active((uv_handle_t *)&v->patience)) {
		have_patience(v, link_is_up(v) ? v->a->waits.ssh_agent_ms : v->a->waits.ssh_boot_ms);
	}
}

static void on_patience(uv_timer_t *t)
{
	struct agent_vsock *v = t->data;

	if (v->ssh_moving || v->held_out || !driver_runs(v) || has_way_to_sshd(v))
		judge_ssh(v);
	else
		ssh_to_network(v);
}

static void on_sshd_reached(void *arg)
{
	judge_ssh(arg);
}

/* --- plugging in anew ------------------------------------------------------------------ */

static void begin_replug(struct agent_vsock *v);

static void on_replug_timer(uv_timer_t *t)
{
	struct agent_vsock *v = t->data;

	if (!v->up)
		begin_replug(v);
}

static void replug_later(struct agent_vsock *v)
{
	if (v->impossible || uv_is_active((uv_handle_t *)&v->replug))
		return;
	uv_timer_start(&v->replug, on_replug_timer, v->replug_ms, 0);
	v->replug_ms = MIN(v->replug_ms * 2, (unsigned)REPLUG_MAX_MS);
}

static void change_is_done(struct agent_vsock *v)
{
	v->changing = false;
	if (driver_runs(v))
		judge_ssh(v);
	unref(v);
}

const char *agent_vsock_missing(const struct agent *a)
{
	if (!a->vsock)
		return "lane vsock: the machine was started without a vsock device";
	return a->vsock->impossible ? "lane vsock: QEMU has no vsock device" : NULL;
}

static void tell_missing(struct agent *a)
{
	if (a->forward)
		forward_set_lane_missing(a->forward, CONFIG_LANE_VSOCK, agent_vsock_missing(a));
}

static void replug_failed(struct agent_vsock *v, const struct error *why)
{
	if (driver_runs(v) && why->code == -ENOTSUP) {
		v->impossible = true;
		tell_missing(v->a);
		log_debug("agent: vsock: %s", why->msg);
	} else if (driver_runs(v)) {
		log_warn("agent: vsock: %s; forwards go through gRPC until it comes back", why->msg);
		replug_later(v);
	}
	change_is_done(v);
}

static void on_plugged(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;

	if (err->code) {
		replug_failed(v, err);
		return;
	}
	log_info("agent: vsock: plugged in anew");
	/* as after a start: sshd's way is taken before it is proven */
	if (driver_runs(v) && v->ssh && v->ssh_at == SSH_NOWHERE && !v->ssh_moving)
		ssh_to_vsock(v);
	change_is_done(v);
}

static void on_unplugged(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;
	struct agent *a = v->a;

	if (err->code || !driver_runs(v))
		replug_failed(v, err);
	else
		a->driver_ops->vsock_plug(a->driver, on_plugged, v);
}

static void begin_replug(struct agent_vsock *v)
{
	struct agent *a = v->a;

	if (v->changing || v->impossible || !driver_runs(v))
		return;
	v->changing = true;
	v->refs++;
	uv_timer_stop(&v->replug);
	a->driver_ops->vsock_unplug(a->driver, on_unplugged, v);
}

/* --- out and in for a snapshot --------------------------------------------------------- */

static void tell_holder(struct agent_vsock *v, const struct error *err)
{
	driver_done_fn done = steal_ptr(&v->held_done);

	done(v->held_arg, err);
}

static void on_taken_out(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;

	v->held_out = !err->code;
	tell_holder(v, err);
	if (!err->code)
		return;		/* the change is under way until it is in again */
	if (driver_runs(v) && !v->up)	/* it went while nobody looked */
		replug_later(v);
	change_is_done(v);
}

struct no_hold {
	driver_done_fn done;
	void *arg;
	struct error err;
};

static void on_no_hold(void *arg)
{
	struct no_hold *n = arg;

	n->done(n->arg, &n->err);
	free(n);
}

static void tell_soon(struct agent *a, driver_done_fn done, void *arg, const struct error *err)
{
	struct no_hold *n = xnew(struct no_hold);

	*n = (struct no_hold){ done, arg, *err };
	loop_post(&a->loop, on_no_hold, n);
}

void agent_vsock_take_out(struct agent *a, driver_done_fn done, void *arg)
{
	struct agent_vsock *v = a->vsock;
	struct error err = ERROR_NONE;

	if (!v || v->impossible || v->changing || !driver_runs(v)) {
		if (v && v->changing)
			error_set(&err, -EBUSY, "the guest's vsock device is being plugged in; try "
				  "again in a few seconds");
		tell_soon(a, done, arg, &err);
		return;
	}
	v->held_done = done;
	v->held_arg = arg;
	v->changing = true;
	v->refs++;
	uv_timer_stop(&v->replug);
	uv_timer_stop(&v->patience);
	a->driver_ops->vsock_unplug(a->driver, on_taken_out, v);
}

static void on_put_in(void *arg, const struct error *err)
{
	struct agent_vsock *v = arg;

	v->held_out = false;
	tell_holder(v, err);
	if (err->code)
		replug_failed(v, err);
	else
		change_is_done(v);
}

static void on_machine_ends(void *arg)
{
	struct error err = ERROR_NONE;

	error_set(&err, -ECANCELED, "the machine ends");
	on_put_in(arg, &err);
}

void agent_vsock_put_in(struct agent *a, driver_done_fn done, void *arg)
{
	struct agent_vsock *v = a->vsock;

	if (!v || !v->held_out) {
		tell_soon(a, done, arg, &ERROR_NONE);
		return;
	}
	v->held_done = done;
	v->held_arg = arg;
	if (driver_runs(v))
		a->driver_ops->vsock_plug(a->driver, on_put_in, v);
	else
		loop_post(&a->loop, on_machine_ends, v);
}

/* --- the device and the lane ------------------------------------------------------------- */

/* A guest may load its driver, or break its rings, all day long. */
static bool may_tell(void)
{
	static struct log_limit limit;

	return log_limit_pass(&limit);
}

static void on_up(void *arg)
{
	struct agent_vsock *v = arg;

	if (may_tell())
		log_info("agent: vsock: the guest's driver runs");
	v->up = v->was_up = true;
	v->replug_ms = v->a->waits.replug_ms;
	uv_timer_stop(&v->replug);
	lane_vsock_set_device(v->lane, true);
	if (v->ssh)
		ssh_vsock_set_device(v->ssh, true);
	judge_ssh(v);
}

static void on_down(void *arg, const struct error *why)
{
	struct agent_vsock *v = arg;

	if (may_tell())
		log_info("agent: vsock: down: %s", why->msg);
	v->up = false;
	v->down_why = *why;
	lane_vsock_set_device(v->lane, false);
	if (v->ssh)
		ssh_vsock_set_device(v->ssh, false);
	if (!driver_runs(v))
		return;
	/* it comes back by itself after a reboot; what broke for good does not */
	if (!v->changing)
		replug_later(v);
	judge_ssh(v);
}

static void on_tell_lane(uv_timer_t *t);

static void tell_lane(struct agent_vsock *v)
{
	if (v->lane_told == v->lane_usable || !driver_runs(v))
		return;
	v->lane_told = v->lane_usable;
	events_vsock(v->a->events, v->lane_told ? "lane-up" : "lane-down", "",
		     v->lane_told ? v->relay.first : 0,
		     v->lane_told ? "" : "forwards go through gRPC");
	uv_timer_start(&v->tell_lane, on_tell_lane, TELL_LANE_MS, 0);
}

static void on_tell_lane(uv_timer_t *t)
{
	tell_lane(t->data);
}

static void on_lane_changed(void *arg, struct lane *lane, bool usable)
{
	struct agent_vsock *v = arg;

	v->lane_usable = usable;
	log_debug("agent: vsock: the lane is %s", usable ? "usable" : "not usable");
	if (v->a->forward)
		forward_set_lane(v->a->forward, CONFIG_LANE_VSOCK, usable ? lane : NULL);
	if (usable && v->ssh)
		ssh_vsock_try_again(v->ssh);
	if (!uv_is_active((uv_handle_t *)&v->tell_lane))
		tell_lane(v);
}

/* --- what the rest of the agent tells ------------------------------------------------------ */

void agent_vsock_started(struct agent *a)
{
	struct agent_vsock *v = a->vsock;
	struct error err = ERROR_NONE;

	if (!v)
		return;
	v->impossible = !a->driver_info.vsock;
	if (v->impossible || !v->ssh) {
		v->ssh_at = SSH_AT_NETWORK;	/* the driver saw to it */
		if (v->ssh)
			tell_ssh(v);
		return;
	}
	v->ssh_at = SSH_AT_VSOCK;
	if (listen_ssh(v, &err) < 0) {
		log_warn("agent: %s", err.msg);
		v->ssh_at = SSH_NOWHERE;
		have_patience(v, v->a->waits.ssh_again_ms);
	}
	tell_ssh(v);
	judge_ssh(v);
}

void agent_vsock_forward_is_made(struct agent *a)
{
	tell_missing(a);
	if (a->vsock && a->vsock->lane_usable)
		forward_set_lane(a->forward, CONFIG_LANE_VSOCK, a->vsock->lane);
}

void agent_vsock_link_is_ready(struct agent *a)
{
	struct agent_vsock *v = a->vsock;

	if (!v)
		return;
	/* each time: what it did not accept before is tried again */
	v->relay = guest_link_info(a->link)->relay;
	lane_vsock_set_agent(v->lane, v->relay);
	if (uv_is_active((uv_handle_t *)&v->patience) && !has_way_to_sshd(v))
		have_patience(v, v->a->waits.ssh_agent_ms);
	judge_ssh(v);
	/* a guest that did not let go while it booted does now */
	if (!v->up && !v->changing && uv_is_active((uv_handle_t *)&v->replug)) {
		uv_timer_stop(&v->replug);
		v->replug_ms = v->a->waits.replug_ms;
		replug_later(v);
	}
}

void agent_vsock_link_changed(struct agent *a)
{
	struct agent_vsock *v = a->vsock;
	struct relay_ports relay;

	if (!v)
		return;
	relay = guest_link_info(a->link)->relay;
	if (relay.first != v->relay.first || relay.n != v->relay.n)
		agent_vsock_link_is_ready(a);
}

void agent_vsock_driver_event(struct agent *a, enum driver_event event)
{
	struct agent_vsock *v = a->vsock;

	if (!v || event != DRIVER_RESET)
		return;
	vsock_guest_was_reset(v->device);
	if (!v->changing && !v->impossible && driver_runs(v))
		uv_timer_start(&v->replug, on_replug_timer, REPLUG_BOOT_MS, 0);
	v->relay = (struct relay_ports){ 0 };
	lane_vsock_set_agent(v->lane, v->relay);
}

json_t *agent_vsock_info(const struct agent *a)
{
	const struct agent_vsock *v = a->vsock;
	struct vsock_stats st = { 0 };

	if (!v)
		return NULL;
	vsock_get_stats(v->device, &st);
	return json_pack("{s:b, s:b, s:b, s:i, s:I, s:I, s:I, s:I}", "up", (int)v->up, "lane",
			 (int)v->lane_usable, "ssh", (int)(v->ssh_at == SSH_AT_VSOCK),
			 "connections", (int)st.connections, "bytesToGuest",
			 (json_int_t)st.to_guest, "bytesFromGuest", (json_int_t)st.from_guest,
			 "buffered", (json_int_t)st.buffered, "rejected", (json_int_t)st.rejected);
}

/* --- step: vsock ----------------------------------------------------------------------------- */

/* Would any connection take it? */
static bool lanes_want_vsock(const struct config *c)
{
	static const bool want[] = {
		[CONFIG_LANE_AUTO] = true, [CONFIG_LANE_VSOCK] = true, [CONFIG_LANE_DIRECT] = true,
		[CONFIG_LANE_GRPC] = false, [CONFIG_LANE_SSH] = false,
	};

	for (size_t i = 0; i < c->n_port_forwards; i++)
		if (want[c->port_forwards[i].lane])
			return true;
	return want[c->port_forwarding.lane];
}

/* Lima reads the variable as well, over the key (reference/cli.md §7). */
bool agent_ssh_over_vsock(const struct agent *a)
{
	static const char *const yes[] = { "true", "1", "t", "T", "TRUE", "True" };
	const char *env = getenv("LIMA_SSH_OVER_VSOCK");

	if (!env || !*env)
		return a->config->ssh.over_vsock;
	for (size_t i = 0; i < ARRAY_SIZE(yes); i++)
		if (streq(env, yes[i]))
			return true;
	return false;
}

bool agent_vsock_wanted(void *ctx)
{
	const struct agent *a = ctx;
	const struct config *c = a->config;

	return (a->driver_ops->features & DRIVER_VSOCK) && !c->plain &&
	       (agent_ssh_over_vsock(a) || lanes_want_vsock(c));
}

static int make_device(struct agent_vsock *v, struct error *err)
{
	struct agent *a = v->a;
	const struct vsock_options o = { .loop = &a->loop, .guest_cid = GUEST_CID, .up = on_up,
					 .down = on_down, .arg = v };
	int fd;

	v->path = layout_instance_file(a->dir, FILE_VSOCK_SOCK);
	if (unix_listen(v->path, &fd, &v->socket_id, err) < 0)
		return err->code;
	if (vsock_new(&o, fd, &v->device, err) < 0) {
		/* nobody listens there any more, and no undo step will come */
		unix_remove(v->path, &v->socket_id);
		return err->code;
	}
	return 0;
}

static void make_users(struct agent_vsock *v)
{
	struct agent *a = v->a;
	const struct lane_vsock_options lo = { .loop = &a->loop, .vsock = v->device,
					       .changed = on_lane_changed, .arg = v };

	v->lane = lane_vsock_new(&lo);
	v->refs++;
	if (!agent_ssh_over_vsock(a))
		return;
	const struct ssh_vsock_options so = { .loop = &a->loop, .vsock = v->device,
					      .lane = v->lane, .reached = on_sshd_reached,
					      .arg = v };
	v->ssh = ssh_vsock_new(&so);
	v->refs++;
}

/* A start never fails because of it. */
void agent_vsock_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct agent_vsock *v = xnew(struct agent_vsock);
	struct error err = ERROR_NONE;

	v->a = a;
	if (make_device(v, &err) < 0) {
		log_warn("agent: %s; forwards go through gRPC", err.msg);
		free(v->path);
		free(v);
		steps_done(s, "");
		return;
	}
	v->refs = 4;	/* the device, three timers */
	uv_timer_init(&a->loop.uv, &v->replug);
	uv_timer_init(&a->loop.uv, &v->patience);
	uv_timer_init(&a->loop.uv, &v->tell_lane);
	v->replug.data = v->patience.data = v->tell_lane.data = v;
	v->replug_ms = v->a->waits.replug_ms;
	make_users(v);
	a->vsock = v;
	if (a->adopted)
		begin_replug(v);
	steps_done(s, "");
}

void agent_vsock_undo(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct agent_vsock *v = a->vsock;

	if (!v) {
		steps_undone(s);
		return;
	}
	v->closing = true;
	uv_close((uv_handle_t *)&v->replug, on_handle_closed);
	uv_close((uv_handle_t *)&v->patience, on_handle_closed);
	uv_close((uv_handle_t *)&v->tell_lane, on_handle_closed);
	if (v->ssh)
		ssh_vsock_close(v->ssh, on_closed, v);
	lane_vsock_close(v->lane, on_closed, v);
	vsock_close(v->device, on_closed, v);
}
