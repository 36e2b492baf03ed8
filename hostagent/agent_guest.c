#include "hostagent/agent_impl.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "hostagent/tail.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

enum {
	FALLBACK_MS = 5000,	/* between tries to reach the agent over ssh */
};

/* The guest's end of the agent's socket, for agents without a serial port and
 * Lima's own (reference/hostagent.md §5). */
#define GUEST_AGENT_SOCKET "/run/lima-guestagent.sock"

/* --- waiting ------------------------------------------------------------- */

static const struct guest_link_info *info_of(const struct agent *a)
{
	static const struct guest_link_info none = { .way = "" };

	return a->link ? guest_link_info(a->link) : &none;
}

static bool agent_tells(const struct agent *a)
{
	const struct guest_link_info *i = info_of(a);

	return i->up && i->tells_boot;
}

/* Answers about another seed are not about this boot. */
static bool is_our_boot(const struct agent *a)
{
	const struct guest_link_info *i = info_of(a);

	if (!*i->instance_id || streq(i->instance_id, a->instance_id))
		return true;
	log_warn_limited("agent: the guest was seeded as `%s`, expected `%s`", i->instance_id,
			 a->instance_id);
	return false;
}

static void drop_probe(struct agent *a)
{
	if (a->probe)
		ready_probe_close(a->probe);
	a->probe = NULL;
}

static void drop_banner(struct agent *a)
{
	if (a->banner)
		banner_close(a->banner);
	a->banner = NULL;
}

/* Every waiting step ends through here first. */
static void end_wait(struct agent *a)
{
	a->poll = NULL;
	a->shown[0] = 0;
	uv_timer_stop(&a->timer);
	drop_probe(a);
}

static void wait_done(struct agent *a, const char *detail)
{
	end_wait(a);
	steps_done(a->steps, detail);
}

static void wait_failed(struct agent *a, const struct error *why)
{
	end_wait(a);
	agent_degrade(a, why);
}

/* Begins a wait: @poll looks now, and again whenever something changed. */
static void begin_wait(struct agent *a, void (*poll)(struct agent *a), unsigned ms,
		       uv_timer_cb on_deadline)
{
	a->poll = poll;
	uv_timer_start(&a->timer, on_deadline, ms, 0);
	poll(a);
}

void agent_wait_abort(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct error why = ERROR_NONE;

	end_wait(a);
	drop_banner(a);
	if (a->master)
		ssh_master_rest(a->master);
	error_set(&why, -ECANCELED, "stopped");
	steps_fail(s, &why);
}

static void show(struct agent *a, const char *text)
{
	if (streq(a->shown, text))
		return;
	snprintf(a->shown, sizeof(a->shown), "%s", text);
	steps_progress(a->steps, text);
}

bool agent_hopeful(void *ctx)
{
	const struct agent *a = ctx;

	return !a->hopeless;
}

bool agent_hopeful_link(void *ctx)
{
	return agent_hopeful(ctx) && agent_has_link(ctx);
}

/* --- step: guest up ------------------------------------------------------ */

static void poll_up(struct agent *a)
{
	const struct guest_link_info *i = info_of(a);
	char detail[256];

	if (i->up) {
		snprintf(detail, sizeof(detail), "agent %s%s%s",
			 *i->agent_version ? i->agent_version : "(not ours)",
			 *i->kernel ? ", kernel " : "", i->kernel);
		drop_banner(a);
		wait_done(a, detail);
	} else if (a->sshd_seen && a->config->plain) {
		wait_done(a, "sshd answers");
	}
}

static void on_no_agent(uv_timer_t *t)
{
	wait_done(t->data, "sshd answers, no word from the guest agent yet");
}

static void on_banner(void *arg)
{
	struct agent *a = arg;

	a->sshd_seen = true;
	drop_banner(a);
	if (a->poll != poll_up)
		return;
	if (!a->config->plain)
		uv_timer_start(&a->timer, on_no_agent, a->waits.no_agent_ms, 0);
	poll_up(a);
}

static void on_never_up(uv_timer_t *t)
{
	struct agent *a = t->data;
	struct error why = ERROR_NONE;
	scoped_free char *console = tail_line(a->dir, FILE_SERIAL_LOG);

	a->hopeless = true;
	drop_banner(a);
	error_set(&why, -ETIMEDOUT,
		  "neither the guest agent nor sshd answered within %u s; the console (%s/%s) says "
		  "last: %s", a->waits.guest_up_ms / 1000, a->dir,
		  layout_file_name(FILE_SERIAL_LOG), *console ? console : "nothing");
	wait_failed(a, &why);
}

void agent_up_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	a->banner = banner_start(&a->loop, a->ssh.host, a->ssh_port, on_banner, a);
	begin_wait(a, poll_up, a->waits.guest_up_ms, on_never_up);
}

/* --- step: ssh ----------------------------------------------------------- */

static void on_marker(void *arg, const struct error *err);

/* Guests whose agent does not tell are asked over ssh. */
static void ask_marker(struct agent *a, const char *marker, enum ssh_mux mux, unsigned ms)
{
	scoped_free char *script = NULL;
	struct ready_script rs = { .description = marker, .hint = "", .mux = mux,
				   .deadline_ms = ms };

	if (a->probe)
		return;
	script = ready_marker_script(marker, a->instance_id);
	rs.script = script;
	a->probe = ready_probe_start(&a->loop, &a->ssh, &rs, on_marker, a);
}

static void poll_master(struct agent *a)
{
	char detail[64];

	if (!ssh_master_is_up(a->master)) {
		ssh_master_ensure(a->master);
		return;
	}
	snprintf(detail, sizeof(detail), "%s:%u", a->ssh.host, a->ssh_port);
	wait_done(a, detail);
}

static void may_log_in(struct agent *a)
{
	drop_probe(a);
	a->poll = poll_master;
	poll_master(a);
}

/* The boot scripts end sessions that began before the user's environment was
 * in place, so the marker is asked for without a master. */
static void poll_login(struct agent *a)
{
	if (a->config->plain) {
		may_log_in(a);
	} else if (agent_tells(a)) {
		drop_probe(a);
		show(a, info_of(a)->step);
		if (info_of(a)->ssh_ready && is_our_boot(a))
			may_log_in(a);
	} else {
		ask_marker(a, "/run/lima-ssh-ready", SSH_NO_MUX, a->waits.ssh_ms);
	}
}

static void on_no_login(uv_timer_t *t)
{
	struct agent *a = t->data;
	const struct error *last = ssh_master_last_error(a->master);
	struct error why = ERROR_NONE;

	if (agent_tells(a) && !info_of(a)->ssh_ready)
		error_set(&why, -ETIMEDOUT, "the guest is not ready for logins after %u s%s%s",
			  a->waits.ssh_ms / 1000, *info_of(a)->step ? ", it runs: " : "",
			  info_of(a)->step);
	else
		error_set(&why, -ETIMEDOUT, "no login at %s:%u within %u s%s%s", a->ssh.host,
			  a->ssh_port, a->waits.ssh_ms / 1000, last->code ? ": " : "", last->msg);
	ssh_master_rest(a->master);
	a->no_login = true;
	a->hopeless = !info_of(a)->up;
	wait_failed(a, &why);
}

static void look_for_agent_over_ssh(struct agent *a);

static void on_master_up(void *arg)
{
	struct agent *a = arg;

	if (a->sockets)
		socket_forwards_set_master(a->sockets, true);
	agent_lanes_set_master(a, true);
	agent_snapshot_ssh_is_up(a);
	if (a->poll)
		a->poll(a);
	look_for_agent_over_ssh(a);
}

static void on_master_lost(void *arg, const struct error *why)
{
	struct agent *a = arg;

	log_info("ssh: the master connection is lost: %s", why->msg);
	a->socket_forwarded = false;
	if (a->sockets)
		socket_forwards_set_master(a->sockets, false);
	agent_lanes_set_master(a, false);
	if (steps_is_stopping(a->steps))
		return;
	if (agent_lanes_want_ssh(a) || socket_forwards_any(a->sockets))
		ssh_master_ensure(a->master);	/* nobody else may ask for it */
	agent_snapshot_ssh_is_lost(a);
	if (!a->link)
		return;
	guest_link_set_ssh(a->link, false);
	look_for_agent_over_ssh(a);
}

void agent_ssh_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;
	struct ssh_master_callbacks cb = { .up = on_master_up, .lost = on_master_lost, .arg = a };

	a->master = ssh_master_new(&a->loop, &a->ssh, &cb);
	begin_wait(a, poll_login, a->waits.ssh_ms, on_no_login);
}

static void on_master_closed(void *arg)
{
	struct agent *a = arg;

	steps_undone(a->steps);
}

void agent_ssh_undo(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	agent_snapshot_ends(a);
	if (a->forward_child)
		child_close(a->forward_child);
	a->forward_child = NULL;
	uv_timer_stop(&a->fallback);
	unlink(a->agent_socket);
	agent_lanes_set_master(a, false);
	ssh_master_close(steal_ptr(&a->master), on_master_closed, a);
}

/* An aborted step has to clean up by itself. */
void agent_ssh_abort(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	end_wait(a);
	uv_timer_stop(&a->fallback);
	agent_lanes_set_master(a, false);
	ssh_master_close(steal_ptr(&a->master), NULL, NULL);
	agent_wait_abort(a, s);
}

/* --- the agent's socket over ssh ----------------------------------------- */

static void on_socket_forwarded(void *arg, const struct child_result *r)
{
	struct agent *a = arg;

	child_close(steal_ptr(&a->forward_child));
	if (r->exit_code != 0) {
		log_debug("agent: ssh -O forward: %s", buf_str(&r->err));
		return;
	}
	a->socket_forwarded = true;
	if (a->link)
		guest_link_set_ssh(a->link, true);
}

static void ask_for_socket(struct agent *a, const char *command, child_exit_fn done)
{
	scoped_free char *pair = xasprintf("%s:" GUEST_AGENT_SOCKET, a->agent_socket);
	const char *more[] = { "-L", pair, NULL };
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = { .own_group = true };
	struct error err = ERROR_NONE;
	int rc = ssh_add_program(&argv, &err);

	unlink(a->agent_socket);
	if (rc == 0) {
		ssh_add_control(&argv, &a->ssh, command, more);
		spec.argv = (const char *const *)argv.items;
		rc = child_start(&a->loop, &spec, done, a, &a->forward_child, &err);
	}
	if (rc < 0) {
		a->forward_child = NULL;
		log_debug("agent: ssh -O %s: %s", command, err.msg);
	}
}

static void on_socket_cancelled(void *arg, const struct child_result *r)
{
	struct agent *a = arg;

	child_close(steal_ptr(&a->forward_child));
	ask_for_socket(a, "forward", on_socket_forwarded);
}

static void on_fallback(uv_timer_t *t)
{
	struct agent *a = t->data;

	if (info_of(a)->up || !a->master || steps_is_stopping(a->steps))
		return;
	uv_timer_start(&a->fallback, on_fallback, FALLBACK_MS, 0);
	if (!ssh_master_is_up(a->master)) {
		ssh_master_ensure(a->master);
	} else if (!a->socket_forwarded && !a->forward_child) {
		/* a master of a host agent before us has it, and would make nothing then */
		ask_for_socket(a, "cancel", on_socket_cancelled);
	}
}

/* Without a link the socket is forwarded after a while; at once when the serial
 * port was never heard of. */
static void look_for_agent_over_ssh(struct agent *a)
{
	if (!a->link || !a->master || a->poll == poll_login || a->poll == poll_master)
		return;
	if (info_of(a)->up)
		uv_timer_stop(&a->fallback);
	else if (!uv_is_active((uv_handle_t *)&a->fallback))
		uv_timer_start(&a->fallback, on_fallback, a->link_was_up ? FALLBACK_MS : 0, 0);
}

/* --- step: provision ----------------------------------------------------- */

static void on_boot_stuck(uv_timer_t *t)
{
	struct agent *a = t->data;
	struct error why = ERROR_NONE;

	error_set(&why, -ETIMEDOUT,
		  "the boot scripts are not done, no progress for %u s%s%s; see "
		  "/var/log/cloud-init-output.log or `journalctl` in the guest",
		  a->waits.boot_quiet_ms / 1000, *info_of(a)->step ? "; running: " : "",
		  info_of(a)->step);
	wait_failed(a, &why);
}

/* A script that failed is told but does not make the machine useless; Lima only
 * warns as well. */
static void boot_done(struct agent *a)
{
	const struct guest_link_info *i = info_of(a);
	char detail[64] = "";

	for (size_t f = 0; f < MIN(i->n_failed, (unsigned)ARRAY_SIZE(i->failed)); f++) {
		scoped_free char *text = xasprintf("provisioning: %s failed; see its output with "
						   "`limactl shell %s sudo journalctl -b`",
						   i->failed[f], a->o->name);

		events_notice(a->events, text);
	}
	if (i->n_failed)
		snprintf(detail, sizeof(detail), "%u script%s failed", i->n_failed,
			 i->n_failed == 1 ? "" : "s");
	wait_done(a, detail);
}

static void poll_boot(struct agent *a)
{
	const struct guest_link_info *i = info_of(a);

	if (!agent_tells(a)) {
		ask_marker(a, "/run/lima-boot-done", SSH_MUX, a->waits.boot_quiet_ms);
		return;
	}
	drop_probe(a);
	if (i->boot_done && is_our_boot(a)) {
		boot_done(a);
		return;
	}
	if (!streq(a->shown, i->step))	/* it moves: patience starts anew */
		uv_timer_start(&a->timer, on_boot_stuck, a->waits.boot_quiet_ms, 0);
	show(a, i->step);
}

static void on_marker(void *arg, const struct error *err)
{
	struct agent *a = arg;

	if (err->code < 0)	/* the step's own deadline says it better */
		return;
	if (a->poll == poll_login)
		may_log_in(a);
	else
		boot_done(a);
}

void agent_provision_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	begin_wait(a, poll_boot, a->waits.boot_quiet_ms, on_boot_stuck);
	look_for_agent_over_ssh(a);
}

/* --- step: probes -------------------------------------------------------- */

bool agent_has_probes(void *ctx)
{
	const struct agent *a = ctx;

	return !a->hopeless && !a->no_login && a->config->n_probes > 0;
}

static void next_probe(struct agent *a);

static void on_user_probe(void *arg, const struct error *err)
{
	struct agent *a = arg;

	drop_probe(a);
	if (err->code < 0 && a->probe_failures++ == 0)
		a->probe_err = *err;
	if (err->code < 0)
		strv_add(&a->problems, err->msg);
	a->probe_at++;
	next_probe(a);
}

static void next_probe(struct agent *a)
{
	const struct config_probe *p;
	struct ready_script rs = { .mux = SSH_MUX, .param = &a->config->param,
				   .deadline_ms = a->waits.probe_ms };
	char detail[256];

	if (a->probe_at == a->config->n_probes) {
		end_wait(a);
		if (a->probe_failures)
			steps_degrade(a->steps, &a->probe_err);
		else
			steps_done(a->steps, "");
		return;
	}
	p = &a->config->probes[a->probe_at];
	snprintf(detail, sizeof(detail), "%zu/%zu %s", a->probe_at + 1, a->config->n_probes,
		 p->description);
	show(a, detail);
	rs.description = *p->description ? p->description : "probe";
	rs.script = p->script;
	rs.hint = p->hint ? p->hint : "";
	a->probe = ready_probe_start(&a->loop, &a->ssh, &rs, on_user_probe, a);
}

void agent_probes_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	next_probe(a);
}

/* --- step: forwards ------------------------------------------------------ */

static void count_row(void *arg, const struct forward_row *row)
{
	unsigned *n = arg;

	*n += streq(row->state, "forwarding");
}

static void poll_forwards(struct agent *a)
{
	unsigned n = 0;
	char detail[64] = "";

	if (!info_of(a)->up || !info_of(a)->has_ports ||
	    (ssh_master_is_up(a->master) && !socket_forwards_settled(a->sockets)))
		return;
	forward_list(a->forward, count_row, &n);
	if (n)
		snprintf(detail, sizeof(detail), "%u port%s", n, n == 1 ? "" : "s");
	wait_done(a, detail);
}

static void on_no_ports(uv_timer_t *t)
{
	struct agent *a = t->data;
	struct error why = ERROR_NONE;

	error_set(&why, -ETIMEDOUT,
		  "the guest agent does not answer: port forwards will not work until it does; look "
		  "with `limactl shell %s systemctl status lima-guestagent`", a->o->name);
	wait_failed(a, &why);
}

void agent_forwards_run(void *ctx, struct steps *s)
{
	struct agent *a = ctx;

	begin_wait(a, poll_forwards, a->waits.ports_ms, on_no_ports);
	look_for_agent_over_ssh(a);
}

/* --- everything that changes --------------------------------------------- */

/* After the start too: a reboot, an agent that comes and goes. */
void agent_guest_changed(struct agent *a)
{
	if (steps_is_stopping(a->steps))
		return;
	if (a->poll) {
		a->poll(a);
		return;
	}
	if (!steps_is_up(a->steps))
		return;
	if (a->master && info_of(a)->ssh_ready && !ssh_master_is_up(a->master))
		ssh_master_ensure(a->master);
	look_for_agent_over_ssh(a);
}

void agent_guest_init(struct agent *a)
{
	uv_timer_init(&a->loop.uv, &a->timer);
	uv_timer_init(&a->loop.uv, &a->fallback);
	a->timer.data = a->fallback.data = a;
	/* waits never keep the loop alive by themselves; steps do */
	uv_unref((uv_handle_t *)&a->fallback);
}

void agent_guest_done(struct agent *a)
{
	drop_probe(a);
	drop_banner(a);
	uv_close((uv_handle_t *)&a->timer, NULL);
	uv_close((uv_handle_t *)&a->fallback, NULL);
}
