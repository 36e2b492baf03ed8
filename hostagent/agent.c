#include "hostagent/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hostagent/agent_impl.h"
#include "lib/base/log.h"
#include "lib/base/log_file.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"
#include "lib/store/pid.h"

enum {
	YAML_MAX_BYTES = 4 << 20,	/* config_load()'s own bound */
	NOFILE_MAX = 1 << 20,	/* enough; containers have limits of 2^30, and some
				 * programs we start close them one by one */
};

static const struct agent_waits default_waits = {
	.guest_up_ms = 600 * 1000,	/* a first boot under TCG takes minutes */
	.ssh_ms = 600 * 1000,
	.boot_quiet_ms = 600 * 1000,
	.probe_ms = 600 * 1000,
	.ports_ms = 60 * 1000,
	.no_agent_ms = 5 * 1000,
	.ssh_boot_ms = 120 * 1000,
	.ssh_agent_ms = 15 * 1000,
	.ssh_again_ms = 2 * 1000,
	.replug_ms = 10 * 1000,
};

/* --- the steps ----------------------------------------------------------- */

/* In the order of docs/architecture.md, "Order of life". */
static const struct step step_table[] = {
	{ .name = "adopt", .quiet = true, .run = agent_adopt_run, .undo = agent_driver_undo },
	{ .name = "seed", .wanted = agent_seed_wanted, .run = agent_seed_run },
	{ .name = "vsock", .quiet = true, .wanted = agent_vsock_wanted, .run = agent_vsock_run,
	  .undo = agent_vsock_undo },
	{ .name = "qemu", .run = agent_driver_run, .abort = agent_driver_abort,
	  .undo = agent_driver_undo },
	{ .name = "listeners", .quiet = true, .run = agent_forward_run,
	  .undo = agent_forward_undo },
	{ .name = "link", .quiet = true, .wanted = agent_has_link, .run = agent_link_run,
	  .undo = agent_link_undo },
	{ .name = "guest up", .run = agent_up_run, .abort = agent_wait_abort },
	{ .name = "ssh", .wanted = agent_hopeful, .run = agent_ssh_run, .abort = agent_ssh_abort,
	  .undo = agent_ssh_undo },
	{ .name = "provision", .wanted = agent_hopeful_link, .run = agent_provision_run,
	  .abort = agent_wait_abort },
	{ .name = "probes", .wanted = agent_has_probes, .run = agent_probes_run,
	  .abort = agent_wait_abort },
	{ .name = "forwards", .wanted = agent_hopeful_link, .run = agent_forwards_run,
	  .abort = agent_wait_abort },
};

void agent_degrade(struct agent *a, const struct error *why)
{
	strv_add(&a->problems, why->msg);
	steps_degrade(a->steps, why);
}

static void on_step(void *ctx, const char *name, enum step_state state, uint64_t ms,
		    const char *detail, const char *error)
{
	struct agent *a = ctx;

	log_debug("step `%s`: %s%s%s, %u ms", name,
		  state == STEP_STARTED ? "started" : state == STEP_DONE ? "done" :
		  state == STEP_FAILED ? "failed" : "progress",
		  *detail || *error ? ": " : "", *error ? error : detail, (unsigned)ms);
	events_step(a->events, name, state, ms, detail, error);
}

static void on_up(void *ctx)
{
	struct agent *a = ctx;
	const char *problem;

	if (a->problems.len == 0)
		events_running(a->events);
	strv_foreach (problem, &a->problems)
		events_degraded(a->events, problem);
	log_info("agent: `%s` is up%s", a->o->name, a->problems.len ? ", with problems" : "");
}

static void on_control_closed(void *arg)
{
	struct agent *a = arg;

	if (a->rpc)
		rpc_free(steal_ptr(&a->rpc));
}

static void on_down(void *ctx, const struct error *why)
{
	struct agent *a = ctx;

	if (why->code)
		a->why = *why;
	events_exiting(a->events, a->why.code ? a->why.msg : NULL);
	agent_guest_done(a);
	for (size_t i = 0; i < ARRAY_SIZE(a->signals); i++)
		uv_close((uv_handle_t *)&a->signals[i], NULL);
	uv_close((uv_handle_t *)&a->logs, NULL);
	control_close(a->control, on_control_closed, a);
	agent_ports_done(a);	/* its readers went with control */
}

/* --- signals ------------------------------------------------------------- */

static void on_signal(uv_signal_t *handle, int sig)
{
	struct agent *a = handle->data;

	/* the terminal of whoever started us is gone: our business only when it
	 * is our terminal (limactl start --foreground) */
	if (sig == SIGHUP && !isatty(STDIN_FILENO))
		return;
	log_info("agent: signal %d, %s", sig, a->stop_asked ? "ending the VM now" : "stopping");
	if (a->stop_asked) {
		a->stop_forced = true;
		agent_driver_force(a);
	}
	a->stop_asked = true;
	steps_stop(a->steps, NULL);
}

static void watch_signals(struct agent *a)
{
	static const int wanted[] = { SIGINT, SIGTERM, SIGHUP };

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		uv_signal_init(&a->loop.uv, &a->signals[i]);
		a->signals[i].data = a;
		uv_signal_start(&a->signals[i], on_signal, wanted[i]);
		uv_unref((uv_handle_t *)&a->signals[i]);
	}
}

/* --- logs that grow ------------------------------------------------------ */

/* What a guest may make us say has a bound by the second only. */
static void on_logs_timer(uv_timer_t *timer)
{
	static const enum instance_file files[] = { FILE_HA_STDOUT, FILE_HA_STDERR };
	struct agent *a = timer->data;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		scoped_free char *path = layout_instance_file(a->dir, files[i]);
		struct error err = ERROR_NONE;

		if (log_file_trim(path, LOG_FILE_MAX_BYTES, LOG_FILE_KEEP_BYTES, "", &err) < 0)
			log_warn_limited("agent: %s, ignoring", err.msg);
	}
}

static void watch_logs(struct agent *a)
{
	uv_timer_init(&a->loop.uv, &a->logs);
	a->logs.data = a;
	uv_timer_start(&a->logs, on_logs_timer, LOG_FILE_LOOK_MS, LOG_FILE_LOOK_MS);
	uv_unref((uv_handle_t *)&a->logs);
}

/* --- ha.sock ------------------------------------------------------------- */

static const char *status_name(const struct agent *a)
{
	if (steps_is_stopping(a->steps))
		return "Stopping";
	if (!steps_is_up(a->steps))
		return "Starting";
	return a->problems.len ? "Degraded" : "Running";
}

/* Lima's fields (reference/hostagent.md §7) and ours. */
static json_t *get_info(void *arg)
{
	const struct agent *a = arg;
	const struct driver_info *d = &a->driver_info;
	json_t *o = json_pack("{s:i, s:s, s:i, s:s, s:s}", "sshLocalPort", (int)a->ssh_port,
			      "version", LIMA_VERSION, "pid", (int)getpid(), "name", a->o->name,
			      "status", status_name(a));

	if (!IN6_IS_ADDR_UNSPECIFIED(&a->loopback)) {
		char text[INET6_ADDRSTRLEN];

		inet_ntop(AF_INET, a->loopback.s6_addr + 12, text, sizeof(text));
		json_object_set_new(o, "loopback", json_string(text));
	}
	if (a->driver)
		json_object_set_new(o, "driver",
				    json_pack("{s:s, s:s, s:s, s:s, s:i}", "name",
					      a->driver_ops->name, "accel", d->accel, "machine",
					      d->machine, "version", d->version, "pid",
					      (int)d->pid));
	if (a->vsock)
		json_object_set_new(o, "vsock", agent_vsock_info(a));
	if (a->link) {
		const struct guest_link_info *g = guest_link_info(a->link);

		json_object_set_new(o, "guest",
				    json_pack("{s:b, s:s, s:s, s:s, s:s}", "connected", (int)g->up,
					      "link", g->way, "agentVersion", g->agent_version,
					      "kernel", g->kernel, "bootId", g->boot_id));
	}
	return o;
}

static int serve(struct agent *a, struct error *err)
{
	static const struct control_path paths[] = {
		{ .path = "/v1/info", .get = get_info },
		{ .path = "/v1/ports", .get = agent_get_ports, .post = agent_post_ports,
		  .del = agent_delete_ports },
		{ .path = "/v1/ports/events", .stream = &agent_port_stream },
		{ .path = "/v1/rules", .get = agent_get_rules },
		{ .path = "/v1/snapshots", .tasks = { agent_get_snapshots, agent_create_snapshot,
						      agent_delete_snapshot } },
		{ .path = "/v1/snapshots/apply", .tasks = { .post = agent_apply_snapshot } },
		{ .path = "/v1/events" },
	};
	struct control_options opts = {
		.socket = a->o->socket,
		.events = a->events,
		.paths = paths,
		.n_paths = ARRAY_SIZE(paths),
		.arg = a,
	};

	agent_ports_init(a);
	if (control_new(&a->loop, &opts, &a->control, err) < 0) {
		agent_ports_done(a);
		return err->code;
	}
	return 0;
}

/* --- life ---------------------------------------------------------------- */

/* The lock is on the directory's own inode: nothing to clean up after a crash,
 * and no file to race for. */
static int lock_directory(struct agent *a, struct error *err)
{
	a->lock_fd = open(a->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (a->lock_fd < 0)
		return error_sys(err, -errno, "open %s", a->dir);
	if (flock(a->lock_fd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno != EWOULDBLOCK)
		return error_sys(err, -errno, "lock %s", a->dir);
	return error_set(err, -EBUSY, "another host agent runs `%s` already (pid %d)", a->o->name,
			 (int)pid_file_read(a->o->pid_file, NULL));
}

static int load_config(struct agent *a, struct error *err)
{
	scoped_free char *path = layout_instance_file(a->dir, FILE_LIMA_YAML);
	scoped_buf struct buf b = { 0 };
	struct config_context ctx = { .instance = a->o->name, .instance_dir = a->dir,
				      .lima_home = a->o->lima_home };

	if (path_read_file(path, YAML_MAX_BYTES, &b, err) < 0)
		return err->code;
	if (config_load(&ctx, path, buf_str(&b), b.len, NULL, &a->config, err) < 0)
		return err->code;
	a->driver_ops = a->o->driver_ops ? a->o->driver_ops : driver_find(a->config->vm_type);
	if (!a->driver_ops)
		return error_set(err, -EINVAL, "%s: no driver for vmType `%s`", path,
				 a->config->vm_type);
	return 0;
}

static void set_waits(struct agent *a)
{
	const struct agent_waits *w = &a->o->waits;

	a->waits = default_waits;
#define TAKE(field) a->waits.field = w->field ? w->field : a->waits.field
	TAKE(guest_up_ms);
	TAKE(ssh_ms);
	TAKE(boot_quiet_ms);
	TAKE(probe_ms);
	TAKE(ports_ms);
	TAKE(no_agent_ms);
	TAKE(ssh_boot_ms);
	TAKE(ssh_agent_ms);
	TAKE(ssh_again_ms);
	TAKE(replug_ms);
#undef TAKE
}

/* Each forwarded connection is two descriptors. */
static void raise_nofile(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) < 0)
		return;
	r.rlim_cur = MIN(r.rlim_max, (rlim_t)NOFILE_MAX);
	if (setrlimit(RLIMIT_NOFILE, &r) < 0)
		log_warn("agent: raise the limit of open files: %s, ignoring", error_text(-errno));
}

static int prepare(struct agent *a, struct error *err)
{
	set_waits(a);
	raise_nofile();
	a->agent_socket = layout_instance_file(a->dir, FILE_GA_FWD_SOCK);
	if (load_config(a, err) < 0)
		return err->code;
	agent_lanes_prepare(a);
	if (agent_forward_prepare(a, err) < 0 || agent_machine_prepare(a, err) < 0)
		return err->code;
	return pid_file_write(a->o->pid_file, getpid(), err);
}

static int run(struct agent *a, struct error *err)
{
	struct steps_options so = { .table = step_table, .n = ARRAY_SIZE(step_table), .ctx = a,
				    .event = on_step, .up = on_up, .down = on_down };

	if (!a->config->plain && rpc_new(&a->loop, &a->rpc, err) < 0)
		return err->code;
	if (serve(a, err) < 0) {
		if (a->rpc)
			rpc_free(steal_ptr(&a->rpc));
		return err->code;
	}
	watch_signals(a);
	watch_logs(a);
	agent_guest_init(a);
	a->steps = steps_new(&a->loop, &so);
	events_set_ssh_port(a->events, a->ssh_port);
	events_booting(a->events);
	steps_start(a->steps);
	loop_run(&a->loop);
	if (a->why.code)
		*err = a->why;
	return a->why.code;
}

static int run_locked(struct agent *a, struct error *err)
{
	int rc = prepare(a, err);
	unsigned left;

	if (rc == 0)
		rc = loop_init(&a->loop, err);
	if (rc == 0) {
		rc = run(a, err);
		left = loop_done(&a->loop);
		if (left)
			log_error("agent: %u handles were left open", left);
	}
	if (!a->steps)	/* it ended before there was anything to undo */
		events_exiting(a->events, err->msg);
	unlink(a->o->pid_file);
	return rc;
}

static void agent_done(struct agent *a)
{
	steps_free(a->steps);
	events_free(a->events);
	config_free(a->config);
	ssh_target_done(&a->ssh);
	strv_done(&a->problems);
	free(a->agent_socket);
	free(a->instance_id);
	free(a->dir);
	scoped_close_fd(&a->port_fd);
	scoped_close_fd(&a->lock_fd);	/* last: the next host agent may come */
}

int agent_run(const struct agent_options *opts, struct error *err)
{
	struct agent a = { .o = opts, .lock_fd = -1, .port_fd = -1 };
	int rc;

	a.dir = layout_instance_dir(opts->lima_home, opts->name);
	a.events = events_new(STDOUT_FILENO);
	rc = lock_directory(&a, err);
	if (rc == 0)
		rc = run_locked(&a, err);
	agent_done(&a);
	return rc;
}
