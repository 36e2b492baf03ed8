/* agent_snapshot.c - snapshots of the running machine
 *
 *	list, delete	ask the driver
 *	create		list and look whether it can be; the vsock device out, the driver
 *			saves, the device in again
 *	apply		the same; then everything that led into the guest is of another
 *			time, and is made anew: ssh's master connection, the agent's link,
 *			which also sets the clock; where there is no agent, ssh does
 *
 * One at a time. Who asked may hang up: it is done to the end all the same, and in
 * whichever way it goes the device is put in again. */
#include "hostagent/agent_impl.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/snapshot_room.h"

enum {
	CLOCK_MS = 5 * 1000,	/* what it is set to is late by as much */
	BACK_MS = 20 * 1000,	/* 1 to 2 s under TCG; a guest that was saved while it booted has
				 * neither agent nor sshd yet */
};

struct agent_snapshot {		/* owner: the agent. Freed when its timer is closed */
	struct agent *a;
	struct control_reply **replies;	/* one; of a list, of all who asked meanwhile */
	size_t n_replies;
	bool listing;
	enum snapshot_change change;
	char tag[SNAPSHOT_TAG_MAX_BYTES + 1];
	uint64_t began_ms;
	struct error err;	/* how the change went */
	bool plugging;		/* the device is out, or about to be in again */
	/* After "apply", until the timer: the link, and a master if there was one. A shell
	 * that is opened next shall not meet them half way. In plain mode the clock, when
	 * the master is there. */
	bool wants_link, wants_ssh, wants_clock;
	struct ready_probe *clock;	/* sets it; NULL: not now */
	uv_timer_t back;
	char *warning;		/* it is done, but …; NULL: nothing */
};

/* --- answers ------------------------------------------------------------------------ */

static int status_of(const struct error *err)
{
	static const struct {
		int code, status;
	} statuses[] = {
		{ -EINVAL, 400 }, { -ENOENT, 404 }, { -EEXIST, 409 }, { -ENOTSUP, 422 },
		{ -EREMOTEIO, 422 }, { -ENOSPC, 507 }, { -EAGAIN, 503 }, { -EBUSY, 503 },
		{ -ECANCELED, 503 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (statuses[i].code == err->code)
			return statuses[i].status;
	return 500;
}

static void refuse(struct control_reply *reply, const struct error *err)
{
	control_answer(reply, status_of(err), NULL, err);
}

static void on_closed(uv_handle_t *h)
{
	struct agent_snapshot *s = h->data;

	free(s->warning);
	free(s->replies);
	free(s);
}

static void add_reply(struct agent_snapshot *s, struct control_reply *reply)
{
	s->replies = xreallocarray(s->replies, s->n_replies + 1, sizeof(struct control_reply *));
	s->replies[s->n_replies++] = reply;
}

/* Takes @answer; NULL: s->err is it. */
static void finish(struct agent_snapshot *s, json_t *answer)
{
	struct agent *a = s->a;

	a->snapshot = NULL;
	for (size_t i = 0; i < s->n_replies; i++) {
		if (answer)
			control_answer(s->replies[i], 200, json_incref(answer), NULL);
		else
			refuse(s->replies[i], &s->err);
	}
	json_decref(answer);
	uv_close((uv_handle_t *)&s->back, on_closed);
}

static bool machine_runs(const struct agent *a)
{
	return a->driver && !a->driver_exited && !steps_is_stopping(a->steps);
}

/* However the driver puts it: a machine that ends is why. */
static void take_error(struct agent_snapshot *s, const struct error *err)
{
	s->err = *err;
	if (err->code == -ECANCELED || (err->code && !machine_runs(s->a)))
		error_set(&s->err, -ECANCELED, "`%s` is stopping", s->a->o->name);
}

/* --- the end of a change ------------------------------------------------------------- */

static void change_is_over(struct agent_snapshot *s)
{
	uint64_t ms = clock_mono_ms() - s->began_ms;

	if (s->wants_link || s->wants_ssh || s->wants_clock || s->plugging)
		return;
	uv_timer_stop(&s->back);
	if (s->err.code) {
		log_warn("snapshot: %s `%s`: %s", snapshot_change_name(s->change), s->tag, s->err.msg);
		finish(s, NULL);
		return;
	}
	log_info("snapshot: %s `%s`: done in %llu ms", snapshot_change_name(s->change), s->tag,
		 (unsigned long long)ms);
	finish(s, json_pack("{s:s, s:s, s:I, s:s*}", "change", snapshot_change_name(s->change), "tag",
			    s->tag, "millis", (json_int_t)ms, "warning", s->warning));
}

/* Takes @text. */
static void warn(struct agent_snapshot *s, char *text)
{
	log_warn("snapshot: %s", text);
	free(s->warning);
	s->warning = text;
}

/* --- the clock of a guest without an agent ----------------------------------------------- */

static void drop_clock(struct agent_snapshot *s)
{
	s->wants_clock = false;
	if (s->clock)
		ready_probe_close(steal_ptr(&s->clock));
}

static void warn_of_clock(struct agent_snapshot *s, const char *why)
{
	warn(s, xasprintf("the guest's clock is of the snapshot's time (%s); set it: limactl shell %s "
			  "sudo date -s @$(date +%%s)", why, s->a->o->name));
}

static void on_clock_set(void *arg, const struct error *err)
{
	struct agent_snapshot *s = arg;

	drop_clock(s);
	if (err->code)
		warn_of_clock(s, err->msg);
	change_is_over(s);
}

/* To the second; what keeps it in the guest (NTP) does the rest. */
static void set_clock(struct agent_snapshot *s)
{
	struct agent *a = s->a;
	scoped_free char *script = xasprintf("#!/bin/sh\nd='date -u -s @%jd'\n"
					     "if [ \"$(id -u)\" = 0 ]; then exec $d; fi\n"
					     "exec sudo -n $d\n", (intmax_t)time(NULL));
	const struct ready_script rs = { .description = "date", .script = script, .hint = "",
					 .mux = SSH_MUX, .deadline_ms = CLOCK_MS };

	s->clock = ready_probe_start(&a->loop, &a->ssh, &rs, on_clock_set, s);
}

/* --- what leads into the guest ------------------------------------------------------------ */

static void on_not_back(uv_timer_t *t)
{
	struct agent_snapshot *s = t->data;

	if (s->wants_clock)
		warn_of_clock(s, "ssh is not back");
	else
		warn(s, xasprintf("the guest's %s not back in %d s, going on",
				  s->wants_link ? "agent, which sets its clock, is" : "ssh is",
				  BACK_MS / 1000));
	s->wants_link = s->wants_ssh = false;
	drop_clock(s);
	change_is_over(s);
}

void agent_snapshot_link_is_ready(struct agent *a)
{
	struct agent_snapshot *s = a->snapshot;

	if (!s || !s->wants_link)
		return;
	s->wants_link = false;
	change_is_over(s);
}

void agent_snapshot_ssh_is_up(struct agent *a)
{
	struct agent_snapshot *s = a->snapshot;

	if (!s || !s->wants_ssh)
		return;
	s->wants_ssh = false;
	if (s->wants_clock)
		set_clock(s);
	change_is_over(s);
}

void agent_snapshot_ssh_is_lost(struct agent *a)
{
	if (a->snapshot && a->snapshot->wants_ssh)
		ssh_master_ensure(a->master);
}

void agent_snapshot_ends(struct agent *a)
{
	struct agent_snapshot *s = a->snapshot;

	if (!s || !(s->wants_link || s->wants_ssh || s->wants_clock))
		return;
	s->wants_link = s->wants_ssh = false;
	drop_clock(s);
	change_is_over(s);
}

/* Connections of before lead nowhere, and nobody in the guest will ever say so. */
static void lead_into_the_guest_anew(struct agent_snapshot *s)
{
	struct agent *a = s->a;

	s->wants_ssh = a->master && ssh_master_is_up(a->master);
	s->wants_link = a->link != NULL;
	s->wants_clock = s->wants_ssh && !s->wants_link;
	if (!s->wants_clock && !s->wants_link)
		warn_of_clock(s, "there is no ssh");
	uv_timer_start(&s->back, on_not_back, BACK_MS, 0);
	if (a->master)
		ssh_master_drop(a->master);
	if (a->link)
		guest_link_guest_was_set_back(a->link);
}

static void on_device_in(void *arg, const struct error *err)
{
	struct agent_snapshot *s = arg;

	s->plugging = false;	/* a failure is agent_vsock's, which tries again */
	change_is_over(s);
}

/* QEMU has no other word for it than "Input/output error". */
static void tell_of_full_disk(struct agent_snapshot *s)
{
	struct error full = ERROR_NONE;

	if (s->change == SNAPSHOT_CREATE && s->err.code == -EREMOTEIO &&
	    snapshot_room_check(s->a->dir, 0, &full) < 0)
		error_append(&s->err, "; the host's disk is full, and what was written stays in the "
			     "guest's: free some, then take a snapshot and delete it");
}

static void on_changed(void *arg, const struct error *err)
{
	struct agent_snapshot *s = arg;

	take_error(s, err);
	tell_of_full_disk(s);
	if (s->change == SNAPSHOT_APPLY && !err->code && machine_runs(s->a))
		lead_into_the_guest_anew(s);
	if (s->change == SNAPSHOT_DELETE)
		change_is_over(s);
	else
		agent_vsock_put_in(s->a, on_device_in, s);
}

/* --- its beginning -------------------------------------------------------------------- */

static void begin_change(struct agent_snapshot *s)
{
	struct agent *a = s->a;
	struct error ends = ERROR_NONE;

	if (machine_runs(a)) {
		a->driver_ops->snapshot(a->driver, s->change, s->tag, on_changed, s);
		return;
	}
	error_set(&ends, -ECANCELED, "the machine ends");
	on_changed(s, &ends);
}

static void on_device_out(void *arg, const struct error *err)
{
	struct agent_snapshot *s = arg;

	s->plugging = !err->code;
	if (!err->code) {
		begin_change(s);
		return;
	}
	take_error(s, err);
	if (s->err.code == -ETIMEDOUT)
		error_append(&s->err, ", and with it QEMU takes no snapshot; a guest that is paused or "
			     "boots cannot: try again, or stop it first");
	change_is_over(s);
}

static int check_change(const struct agent_snapshot *s, const struct snapshot_list *list,
			struct error *err)
{
	const struct agent *a = s->a;

	if (snapshot_check_change(list, s->change, s->tag, true, err) < 0)
		return err->code;
	if (s->change != SNAPSHOT_CREATE)
		return 0;
	return snapshot_room_check(a->dir, snapshot_room_needed(a->driver_info.pid,
								a->config->memory_bytes), err);
}

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	struct agent_snapshot *s = arg;
	json_t *answer = s->listing ? json_array() : NULL;

	take_error(s, err);
	for (size_t i = 0; i < list->n && s->listing; i++)
		json_array_append_new(answer, snapshot_json(&list->items[i]));
	if (!s->err.code && !s->listing)
		check_change(s, list, &s->err);
	if (s->err.code || s->listing) {
		if (s->err.code)
			json_decref(steal_ptr(&answer));
		finish(s, answer);
	} else if (s->change == SNAPSHOT_DELETE) {
		begin_change(s);
	} else {
		agent_vsock_take_out(s->a, on_device_out, s);
	}
}

static int check_may_begin(const struct agent *a, struct error *err)
{
	if (a->snapshot && a->snapshot->listing)
		return error_set(err, -EBUSY, "the snapshots of `%s` are being listed; try again",
				 a->o->name);
	if (a->snapshot)
		return error_set(err, -EBUSY, "`%s` is busy with `snapshot %s --tag %s`; try again when "
				 "that is done", a->o->name, snapshot_change_name(a->snapshot->change),
				 a->snapshot->tag);
	if (!machine_runs(a) || !steps_is_up(a->steps))
		return error_set(err, -EAGAIN, "`%s` is %s; try again when it runs", a->o->name,
				 steps_is_stopping(a->steps) ? "stopping" : "starting");
	if (!(a->driver_ops->features & DRIVER_SNAPSHOTS))
		return error_set(err, -ENOTSUP, "vmType %s takes no snapshots of a running machine; "
				 "stop it first", a->driver_ops->name);
	return 0;
}

static int read_tag(const json_t *body, const char **ret, struct error *err)
{
	*ret = json_string_value(json_object_get(body, "tag"));
	if (!*ret || json_object_size(body) != 1)
		return error_set(err, -EINVAL, "a snapshot is named by an object such as {\"tag\": "
				 "\"before-upgrade\"}");
	return snapshot_check_tag(*ret, err);
}

static void begin(struct agent *a, bool listing, enum snapshot_change change, const char *tag,
		  struct control_reply *reply)
{
	struct agent_snapshot *s = xnew(struct agent_snapshot);

	s->a = a;
	add_reply(s, reply);
	s->listing = listing;
	s->change = change;
	snprintf(s->tag, sizeof(s->tag), "%s", tag);
	s->began_ms = clock_mono_ms();
	uv_timer_init(&a->loop.uv, &s->back);
	s->back.data = s;
	a->snapshot = s;
	a->driver_ops->snapshots(a->driver, on_listed, s);
}

static void ask_for_change(void *arg, enum snapshot_change change, const json_t *body,
			   struct control_reply *reply)
{
	struct error err = ERROR_NONE;
	const char *tag;

	if (read_tag(body, &tag, &err) < 0 || check_may_begin(arg, &err) < 0)
		refuse(reply, &err);
	else
		begin(arg, false, change, tag, reply);
}

/* --- for control_path ------------------------------------------------------------------- */

void agent_get_snapshots(void *arg, const json_t *body, struct control_reply *reply)
{
	struct agent *a = arg;
	struct error err = ERROR_NONE;

	if (a->snapshot && a->snapshot->listing)
		add_reply(a->snapshot, reply);
	else if (check_may_begin(a, &err) < 0)
		refuse(reply, &err);
	else
		begin(a, true, SNAPSHOT_CREATE, "", reply);
}

void agent_create_snapshot(void *arg, const json_t *body, struct control_reply *reply)
{
	ask_for_change(arg, SNAPSHOT_CREATE, body, reply);
}

void agent_apply_snapshot(void *arg, const json_t *body, struct control_reply *reply)
{
	ask_for_change(arg, SNAPSHOT_APPLY, body, reply);
}

void agent_delete_snapshot(void *arg, const json_t *body, struct control_reply *reply)
{
	ask_for_change(arg, SNAPSHOT_DELETE, body, reply);
}
