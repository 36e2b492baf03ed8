#include "drivers/qemu/snapshot.h"

#include <errno.h>

#include "drivers/qemu/args.h"
#include "drivers/qemu/run_state.h"
#include "drivers/qemu/talk.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum { CALL_MS = 10 * 1000 };

/* One at a time, so one name is enough. */
#define JOB_ID "lima-snapshot"

struct qemu_snapshot {
	struct talk talk;	/* its timer is the job's deadline */
	struct qemu_snapshot_options o;
	bool listing;
	enum snapshot_change change;
	char *tag;
	bool job_asked, job_begun;	/* its command went out; was answered */
	bool concluded;
	struct snapshot_list list;
	char *text;		/* why the job failed, as QEMU has it; NULL: QEMU did not say */
	struct error err;	/* … and as the user reads it */
	bool goes_on;		/* after a load that failed: it ran before */
};

static void end(struct qemu_snapshot *s, const struct error *err)
{
	talk_end(&s->talk, err);
}

static void call(struct qemu_snapshot *s, const char *command, json_t *args, unsigned ms,
		 talk_reply_fn replied)
{
	talk_call(&s->talk, command, args, ms, replied);
}

/* --- which there are --------------------------------------------------------------- */

static void on_nodes(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;
	const json_t *disk = talk_find(ret, "node-name", QEMU_DISK_NODE);
	const char *format = json_string_value(json_object_get(disk, "drv"));
	struct error failed = *err;

	if (!failed.code && !(format && streq(format, "qcow2")))
		error_set(&failed, -ENOTSUP, "the disk of this machine cannot hold snapshots, only "
			  "qcow2 can");
	if (!failed.code)
		snapshot_list_parse(&s->list, json_object_get(json_object_get(disk, "image"),
							      "snapshots"));
	end(s, &failed);
}

static void begin_list(struct qemu_snapshot *s)
{
	/* flat: without the files behind files, which we do not have */
	call(s, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), CALL_MS, on_nodes);
}

/* --- after a load that failed, or nobody knows ----------------------------------------- */

static void stands_still(struct qemu_snapshot *s, const struct error *why)
{
	log_warn("driver: %s", why->msg);
	error_append(&s->err, "; the guest stands still, end it with: limactl stop");
	end(s, &s->err);
}

static void on_going_on(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code)
		stands_still(s, err);
	else
		end(s, &s->err);
}

static void on_was_reset(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code)		/* with half of its memory of then it must not run */
		stands_still(s, err);
	else if (s->goes_on)
		call(s, "cont", NULL, CALL_MS, on_going_on);
	else
		end(s, &s->err);
}

/* QEMU migration/savevm.c, load_snapshot(): how the texts begin that it has before it
 * touches the disk. What comes later in them may be a tag, which is anything. */
static bool nothing_was_changed(const char *text)
{
	static const char *const before[] = {
		"Snapshot '", "Snapshot can not be found", "This is a disk-only", "Device '",
		"No block device", "vmstate block device", "Could not check", "Record/replay",
	};

	for (size_t i = 0; text && i < ARRAY_SIZE(before); i++)
		if (strncmp(text, before[i], strlen(before[i])) == 0)
			return true;
	return false;
}

/* Disk and memory no longer belong together. */
static void reset_guest(struct qemu_snapshot *s)
{
	if (!s->text)
		error_append(&s->err, "; how far it came is not known: the guest boots from the disk as "
			     "it is now");
	else if (strncmp(s->text, "Could not load", strlen("Could not load")) == 0)
		error_append(&s->err, "; the disk could not be set back, or not whole: the guest boots "
			     "from the disk as it is now");
	else
		error_append(&s->err, "; the disk is of the snapshot, the memory could not be set back "
			     "(another QEMU, other CPUs or other memory than then): the guest boots "
			     "from that disk");
	call(s, "system_reset", NULL, CALL_MS, on_was_reset);
}

static void on_status_after_load(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code) {
		log_warn("driver: %s", err->msg);
		error_append(&s->err, "; where the guest stands still now, end it with: limactl stop");
		end(s, &s->err);
		return;
	}
	/* else it stood still before, and is to go on when whoever stopped it says so */
	s->goes_on = run_state_is_half_loaded(ret);
	/* it is let run again by a load that went well, and by no other */
	if (!s->text && json_is_true(json_object_get(ret, "running")))
		end(s, &ERROR_NONE);
	else if (!nothing_was_changed(s->text))
		reset_guest(s);
	else if (s->goes_on)
		call(s, "cont", NULL, CALL_MS, on_going_on);
	else
		end(s, &s->err);
}

/* --- the job ---------------------------------------------------------------------- */

static bool is_concluded(const json_t *job)
{
	const char *status = json_string_value(json_object_get(job, "status"));

	return status && streq(status, "concluded");
}

static void look_after_guest(struct qemu_snapshot *s)
{
	if (s->err.code && s->change == SNAPSHOT_APPLY)
		call(s, "query-status", NULL, CALL_MS, on_status_after_load);
	else
		end(s, &s->err);
}

/* What is not dismissed now is by the next change. */
static void on_dismissed(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code)
		log_debug("driver: %s", err->msg);
	look_after_guest(s);
}

static void dismiss(struct qemu_snapshot *s, talk_reply_fn replied)
{
	call(s, "job-dismiss", json_pack("{s:s}", "id", JOB_ID), CALL_MS, replied);
}

static void on_result(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;
	const json_t *job = talk_find(ret, "id", JOB_ID);
	const char *text = json_string_value(json_object_get(job, "error"));

	s->err = *err;
	if (!s->err.code && !job)
		error_set(&s->err, -EPROTO, "QEMU has forgotten the job and how it went");
	if (s->err.code) {
		look_after_guest(s);
		return;
	}
	if (text) {
		scoped_free char *shown = log_escape(text, 400);

		s->text = xstrdup(text);
		error_set(&s->err, -EREMOTEIO, "QEMU: %s", shown);
	}
	dismiss(s, on_dismissed);
}

static void job_is_over(struct qemu_snapshot *s)
{
	talk_not_later(&s->talk);
	call(s, "query-jobs", NULL, CALL_MS, on_result);
}

static void on_deadline(void *arg)
{
	struct qemu_snapshot *s = arg;
	struct error err = ERROR_NONE;

	error_set(&err, -ETIMEDOUT, "QEMU was not done in %u s and goes on; the guest stands still "
		  "until then%s. `limactl snapshot list` answers again when it is, and `limactl "
		  "stop` waits for it", s->o.job_ms / 1000,
		  s->change == SNAPSHOT_APPLY ? ", and for good if it fails" : "");
	end(s, &err);
}

void qemu_snapshot_event(struct qemu_snapshot *s, const char *name, json_t *data)
{
	const char *id = json_string_value(json_object_get(data, "id"));

	if (s->listing || s->talk.ended || !streq(name, "JOB_STATUS_CHANGE") || !id ||
	    !streq(id, JOB_ID) || !is_concluded(data) || s->concluded)
		return;
	s->concluded = true;
	if (s->job_begun)	/* else the reply is next */
		job_is_over(s);
}

static void on_job_begun(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code) {
		end(s, err);
		return;
	}
	s->job_begun = true;
	if (s->concluded)
		job_is_over(s);
}

static void begin_job(struct qemu_snapshot *s)
{
	static const char *const commands[] = {
		[SNAPSHOT_CREATE] = "snapshot-save",
		[SNAPSHOT_APPLY] = "snapshot-load",
		[SNAPSHOT_DELETE] = "snapshot-delete",
	};
	json_t *args = json_pack("{s:s, s:s, s:[s]}", "job-id", JOB_ID, "tag", s->tag, "devices",
				 QEMU_DISK_NODE);

	if (s->change != SNAPSHOT_DELETE)
		json_object_set_new(args, "vmstate", json_string(QEMU_DISK_NODE));
	s->job_asked = true;
	s->concluded = false;	/* of this job nothing came yet */
	talk_later(&s->talk, s->o.job_ms, on_deadline);
	/* longer than the deadline, which says it better */
	call(s, commands[s->change], args, s->o.job_ms + CALL_MS, on_job_begun);
}

static void on_stale_dismissed(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;

	if (err->code)
		end(s, err);
	else
		begin_job(s);
}

static void on_jobs(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_snapshot *s = arg;
	const json_t *job = talk_find(ret, "id", JOB_ID);
	struct error busy = ERROR_NONE;

	if (err->code && strstr(err->msg, "not been found"))
		error_set(&busy, -ENOTSUP, "this QEMU is older than 6.0 and cannot take snapshots of a "
			  "running machine; stop it first");
	else if (err->code)
		busy = *err;
	else if (job && !is_concluded(job))
		error_set(&busy, -EBUSY, "QEMU is still busy with an earlier one; try again later");
	if (busy.code)
		end(s, &busy);
	else if (job)
		dismiss(s, on_stale_dismissed);
	else
		begin_job(s);
}

static void begin_change(struct qemu_snapshot *s)
{
	call(s, "query-jobs", NULL, CALL_MS, on_jobs);
}

/* --- life --------------------------------------------------------------------------- */

static void begin(void *arg)
{
	struct qemu_snapshot *s = arg;

	if (s->listing)
		begin_list(s);
	else
		begin_change(s);
}

static void tell(void *arg)
{
	struct qemu_snapshot *s = arg;

	if (s->listing)
		s->o.listed(s->o.arg, &s->list, &s->talk.err);
	else
		s->o.done(s->o.arg, &s->talk.err);
}

static void release(void *arg)
{
	struct qemu_snapshot *s = arg;

	snapshot_list_done(&s->list);
	free(s->text);
	free(s->tag);
	free(s);
}

static struct qemu_snapshot *new(const struct qemu_snapshot_options *o)
{
	static const struct talk_owner owner_is = { begin, tell, release };
	struct qemu_snapshot *s = xnew(struct qemu_snapshot);

	s->o = *o;
	talk_begin(&s->talk, o->loop, o->qmp, &owner_is, s);
	return s;
}

struct qemu_snapshot *qemu_snapshot_list(const struct qemu_snapshot_options *o)
{
	struct qemu_snapshot *s = new(o);

	s->listing = true;
	return s;
}

struct qemu_snapshot *qemu_snapshot_change(const struct qemu_snapshot_options *o,
					   enum snapshot_change change, const char *tag)
{
	struct qemu_snapshot *s = new(o);

	s->change = change;
	s->tag = xstrdup(tag);
	return s;
}

void qemu_snapshot_qmp_lost(struct qemu_snapshot *s)
{
	talk_qmp_lost(&s->talk, s->job_asked ?
		      "; `limactl snapshot list` shows what came of it" : "");
}

bool qemu_snapshot_job_goes_on(const struct qemu_snapshot *s)
{
	int code = s->talk.err.code;

	return s->talk.ended && s->job_asked && (code == -ETIMEDOUT || code == -ECONNRESET);
}

void qemu_snapshot_free(struct qemu_snapshot *s)
{
	if (s)
		talk_free(&s->talk);
}
