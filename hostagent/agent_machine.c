#include "hostagent/agent_impl.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

#include "drivers/mac.h"
#include "hostagent/cidata.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"
#include "lib/store/pid.h"

static_assert((int)GUEST_LINK_SECRET_SIZE == (int)CIDATA_SECRET_BYTES, "one secret, two ends");

/* --- before the steps ---------------------------------------------------- */

/* The port that was used last is taken again when it is free, so that scripts
 * and known connections go on working. */
static int choose_port(struct agent *a, struct error *err)
{
	uint16_t fixed = a->config->ssh.local_port;

	return ssh_hold_port(fixed ? fixed : ssh_config_port(a->dir), fixed != 0, &a->ssh_port,
			     &a->port_fd, err);
}

/* Kept over restarts: a VM that outlived its host agent knows this one. */
static int load_secret(struct agent *a, struct error *err)
{
	scoped_free char *path = layout_instance_file(a->dir, FILE_GA_SECRET);
	scoped_buf struct buf b = { 0 };

	if (path_read_file(path, 4096, &b, err) == 0 && b.len == sizeof(a->secret)) {
		memcpy(a->secret, b.data, sizeof(a->secret));
		return 0;
	}
	*err = ERROR_NONE;
	if (getrandom(a->secret, sizeof(a->secret), 0) != (ssize_t)sizeof(a->secret))
		return error_sys(err, -errno, "getrandom");
	return path_write_file(path, a->secret, sizeof(a->secret), 0600, err);
}

static bool vm_may_run(const struct agent *a)
{
	scoped_free char *path = layout_instance_file(a->dir, FILE_QEMU_PID);
	scoped_free char *qmp = layout_instance_file(a->dir, FILE_QMP_SOCK);

	return (a->driver_ops->features & DRIVER_CAN_ADOPT) &&
	       (pid_file_read(path, NULL) > 0 || pid_of_listener(qmp, "qemu") > 0);
}

int agent_machine_prepare(struct agent *a, struct error *err)
{
	a->port_fd = -1;
	if (load_secret(a, err) < 0 || cidata_instance_id(a->dir, &a->instance_id, err) < 0)
		return err->code;
	a->adopted = vm_may_run(a) && ssh_config_port(a->dir);
	if (a->adopted)
		a->ssh_port = ssh_config_port(a->dir);
	else if (choose_port(a, err) < 0)
		return err->code;
	return ssh_ensure_user_key(a->o->lima_home, err);
}

/* --- the driver's callbacks ---------------------------------------------- */

static void on_driver_event(void *arg, enum driver_event event, const char *detail)
{
	struct agent *a = arg;
	struct error why = ERROR_NONE;

	log_debug("driver: event %d %s", event, detail);
	if (a->link)
		guest_link_driver_event(a->link, event);
	agent_vsock_driver_event(a, event);
	if (event == DRIVER_PAUSED || event == DRIVER_RESUMED)
		agent_forward_set_paused(a, event == DRIVER_PAUSED);
	if (event == DRIVER_SHUTDOWN)
		a->guest_shutdown = true;
	if (event == DRIVER_RESET && steps_is_up(a->steps))
		events_notice(a->events, "the guest reboots");
	if (event == DRIVER_RESET && a->master)
		ssh_master_drop(a->master);
	if (event == DRIVER_RESUMED && a->link)
		guest_link_sync_time(a->link);
	if (event != DRIVER_EXITED)
		return;
	a->driver_exited = true;
	if (steps_is_stopping(a->steps))
		return;
	/* A guest that powers itself off has done what its user wanted. */
	if (a->guest_shutdown && steps_is_up(a->steps)) {
		events_notice(a->events, *detail ? detail : "the guest powered off");
		steps_stop(a->steps, NULL);
		return;
	}
	error_set(&why, -EIO, "%s", *detail ? detail : "the VM ended");
	steps_stop(a->steps, &why);
}

static void on_driver_notice(void *arg, const char *text)
{
	struct agent *a = arg;

	events_notice(a->events, text);
}

static void on_driver_delayed(void *arg, const char *text, unsigned ms)
{
	struct agent *a = arg;

	events_delay(a->events, text, ms);
}

static int open_driver(struct agent *a, struct error *err)
{
	struct driver_callbacks cb = { .event = on_driver_event, .notice = on_driver_notice,
				       .delayed = on_driver_delayed, .arg = a };

	a->driver_spec = (struct driver_spec){
		.name = a->o->name,
		.dir = a->dir,
		.config = a->config,
		.ssh_port = a->ssh_port,
		.vsock = a->vsock != NULL,
		.ssh_over_vsock = agent_ssh_over_vsock(a),
	};
	a->driver_exited = a->guest_shutdown = false;
	return a->driver_ops->open(&a->loop, &a->driver_spec, &cb, &a->driver, err);
}

static void close_driver(struct agent *a)
{
	if (a->driver)
		a->driver_ops->close(a->driver);
	a->driver = NULL;
}

/* The port is the driver's now, or agent_vsock's; ssh.config may say so. */
static int driver_runs(struct agent *a, struct error *err)
{
	a->driver_ops->info(a->driver, &a->driver_info);
	agent_vsock_started(a);
	scoped_close_fd(&a->port_fd);
	a->port_fd = -1;
	ssh_target_init(&a->ssh, a->o->lima_home, a->o->name, a->dir, a->config, a->ssh_port);
	return ssh_config_write(&a->ssh, err);
}

static char *driver_detail(const struct agent *a)
{
	const struct driver_info *i = &a->driver_info;

	return xasprintf("%s%s%s, pid %d%s", i->accel, *i->accel ? ", " : "", i->machine,
			 (int)i->pid, a->adopted ? ", ran already" : "");
}

/* --- step: adopt --------------------------------------------------------- */

/* The step's end for a VM that is not there after all: the next steps make one. */
static void nothing_to_adopt(struct agent *a)
{
	struct error err = ERROR_NONE;

	a->adopted = false;
	close_driver(a);
	if (choose_port(a, &err) < 0) {
		steps_fail(a->steps, &err);
		return;
	}
	events_set_ssh_port(a->events, a->ssh_port);
	steps_done(a->steps, "");
}

static void on_adopted(void *arg, const struct error *err)
{
	struct agent *a = arg;
	struct error why = *err;

	if (err->code == -ENOENT) {
		nothing_to_adopt(a);
		return;
	}
	if (err->code < 0) {
		close_driver(a);
		steps_fail(a->steps, &why);
		return;
	}
	if (driver_runs(a, &why) < 0)	/* the one from before will do */
		log_warn("agent: %s, ignoring", why.msg);
	events_notice(a->events, "the VM ran already, its host agent was gone");
	steps_done(a->steps, "");
}

void agent_adopt_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct error err = ERROR_NONE;

	if (!a->adopted) {
		steps_done(s, "");
		return;
	}
	if (open_driver(a, &err) < 0) {
		steps_fail(s, &err);
		return;
	}
	a->driver_ops->adopt(a->driver, on_adopted, a);
}

/* --- step: seed ---------------------------------------------------------- */

bool agent_seed_wanted(void *ctx)
{
	const struct agent *a = ctx;

	return !a->adopted && !(a->driver_ops->features & DRIVER_NO_CLOUD_INIT);
}

static void write_seed(uv_work_t *work)	/* in libuv's pool */
{
	struct agent *a = work->data;
	scoped_free char *hostname = layout_hostname(a->o->name);
	scoped_strv struct strv keys = { 0 };
	char mac[DRIVER_MAC_SIZE];
	struct cidata_spec spec = {
		.name = a->o->name,
		.dir = a->dir,
		.hostname = hostname,
		.config = a->config,
		.ssh_public_keys = &keys,
		.mac = mac,
		.guest_agent = a->config->plain ? NULL : a->o->guest_agent,
		.secret = a->config->plain ? NULL : a->secret,
	};

	if (driver_mac(a->dir, mac, &a->seed_err) == 0 &&
	    ssh_public_keys(a->o->lima_home, a->config, &keys, &a->seed_err) == 0)
		cidata_write(&spec, &a->seed_err);
}

static void on_seed_written(uv_work_t *work, int status)
{
	struct agent *a = work->data;

	if (a->seed_err.code < 0)
		steps_fail(a->steps, &a->seed_err);
	else
		steps_done(a->steps, "");
}

void agent_seed_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	a->seed_err = ERROR_NONE;
	a->seed_work.data = a;
	uv_queue_work(&a->loop.uv, &a->seed_work, write_seed, on_seed_written);
}

/* --- step: the driver ---------------------------------------------------- */

static void ignore_done(void *arg, const struct error *err)
{
}

static void on_half_start_stopped(void *arg, const struct error *err)
{
	struct agent *a = arg;

	close_driver(a);
	ssh_target_done(&a->ssh);
	steps_fail(a->steps, &a->why);
}

static void on_started(void *arg, const struct error *err)
{
	struct agent *a = arg;
	struct error why = *err;
	scoped_free char *detail = NULL;

	if (err->code < 0) {
		close_driver(a);
		steps_fail(a->steps, &why);
		return;
	}
	if (driver_runs(a, &a->why) < 0) {
		a->driver_ops->stop(a->driver, true, on_half_start_stopped, a);
		return;
	}
	detail = driver_detail(a);
	steps_done(a->steps, detail);
}

void agent_driver_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct error err = ERROR_NONE;

	if (a->adopted) {
		scoped_free char *detail = driver_detail(a);

		steps_done(s, detail);
	} else if (open_driver(a, &err) < 0) {
		steps_fail(s, &err);
	} else {
		a->driver_ops->start(a->driver, on_started, a);
	}
}

/* start's own callback ends the step. */
void agent_driver_abort(void *ctx, struct steps *s)
{
	agent_driver_force(ctx);
}

void agent_driver_force(struct agent *a)
{
	if (a->driver && !a->driver_exited)
		a->driver_ops->stop(a->driver, true, ignore_done, NULL);
}

static void on_stopped(void *arg, const struct error *err)
{
	struct agent *a = arg;

	if (err->code < 0 && a->why.code == 0)
		a->why = *err;
	close_driver(a);
	ssh_target_done(&a->ssh);
	steps_undone(a->steps);
}

/* A guest that never came up cannot hear a polite request. Undoes adopt as well:
 * whichever comes first does it. */
void agent_driver_undo(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	bool polite = a->adopted || a->sshd_seen || a->link_was_up;

	if (!a->driver || a->driver_exited) {
		on_stopped(a, &ERROR_NONE);
		return;
	}
	a->driver_ops->stop(a->driver, !polite || a->stop_forced, on_stopped, a);
}

/* --- step: link ---------------------------------------------------------- */

bool agent_has_link(void *ctx)
{
	const struct agent *a = ctx;

	return !a->config->plain;
}

/* A guest may open and close the agent's port all day long. */
static bool may_tell_of_link(void)
{
	static struct log_limit limit;

	return log_limit_pass(&limit);
}

static void on_link_ready(void *arg)
{
	struct agent *a = arg;
	const struct guest_link_info *i = guest_link_info(a->link);

	if (may_tell_of_link())
		log_info("link: agent `%s`, kernel `%s`, over %s", i->agent_version, i->kernel,
			 i->way);
	a->link_was_up = true;
	agent_vsock_link_is_ready(a);
	agent_snapshot_link_is_ready(a);
	agent_guest_changed(a);
}

static void on_link_progress(void *arg)
{
	agent_vsock_link_changed(arg);
	agent_guest_changed(arg);
}

static void on_link_lost(void *arg, const struct error *why)
{
	if (may_tell_of_link())
		log_info("link: lost: %s", why->msg);
	agent_guest_changed(arg);
}

void agent_link_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct guest_link_options lo = {
		.loop = &a->loop,
		.rpc = a->rpc,
		.driver_ops = a->driver_ops,
		.driver = a->driver,
		.secret = a->secret,
		.ssh_socket = a->agent_socket,
		.ready = on_link_ready,
		.progress = on_link_progress,
		.lost = on_link_lost,
		.arg = a,
	};

	agent_vsock_forward_is_made(a);
	lo.forward = a->forward;
	a->link = guest_link_new(&lo);
	guest_link_start(a->link);
	steps_done(s, "");
}

static void on_link_closed(void *arg)
{
	struct agent *a = arg;

	steps_undone(a->steps);
}

void agent_link_undo(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	agent_snapshot_ends(a);
	guest_link_close(steal_ptr(&a->link), on_link_closed, a);
}
