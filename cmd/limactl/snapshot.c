/* snapshot.c - `limactl snapshot`: states of an instance, kept and gone back to
 *
 * A running machine is its host agent's to change, of a stopped one qemu-img
 * changes the disk, under the instance's lock (lib/store/snapshot.h). */
#include "cmd/limactl/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/ha_client.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/text_table.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"
#include "lib/store/snapshot.h"

enum {
	CHANGE_MS = 24 * 3600 * 1000,	/* the host agent has a deadline of its own, which knows
					 * the guest's memory */
	WARNING_MAX_BYTES = 800,
};

static const struct flag tag_flags[] = {
	{ "tag", 0, FLAG_STRING, "TAG", "the snapshot's name", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* > 0: it runs, ha.sock is @ret_socket; 0: it does not. */
static int find_out_who(const struct instance *inst, char **ret_socket, struct error *err)
{
	if (inst->ha_pid) {
		*ret_socket = layout_instance_file(inst->dir, FILE_HA_SOCK);
		return 1;
	}
	if (inst->driver_pid)
		return error_set(err, -ESRCH, "instance `%s` has lost its host agent; bring it back "
				 "with: limactl start %s", inst->name, inst->name);
	return 0;
}

static int find_disk(const struct instance *inst, char **ret, struct error *err)
{
	scoped_free char *disk = layout_instance_file(inst->dir, FILE_DISK);

	if (!path_exists(disk))
		return error_set(err, -ENOENT, "instance `%s` has no disk yet; its first start makes "
				 "one: limactl start %s", inst->name, inst->name);
	*ret = steal_ptr(&disk);
	return 0;
}

/* --- create, apply, delete ------------------------------------------------------- */

/* *@ret_warning: what is to be said although it is done, or NULL; caller frees. */
static int ask_agent(const char *socket, enum snapshot_change change, const char *tag,
		     char **ret_warning, struct error *err)
{
	static const struct {
		const char *method, *path;
	} requests[] = {
		[SNAPSHOT_CREATE] = { "POST", "/v1/snapshots" },
		[SNAPSHOT_APPLY] = { "POST", "/v1/snapshots/apply" },
		[SNAPSHOT_DELETE] = { "DELETE", "/v1/snapshots" },
	};
	json_t *body = json_pack("{s:s}", "tag", tag), *answer = NULL;
	int rc = ha_client_call_for(socket, requests[change].method, requests[change].path, body,
				    CHANGE_MS, &answer, err);

	const char *warning = json_string_value(json_object_get(answer, "warning"));

	if (warning)
		*ret_warning = log_escape(warning, WARNING_MAX_BYTES);	/* the guest's words, too */
	json_decref(body);
	json_decref(answer);
	if (rc == -ECANCELED)
		error_append(err, "; what has begun is done to its end");
	return rc;
}

/* Under its lock, nobody starts it meanwhile. */
static int change_stopped(const char *name, enum snapshot_change change, const char *tag,
			  struct error *err)
{
	char path[VERB_PATH_SIZE];
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL, *disk = NULL;
	scoped_fd int lock = -1;

	snprintf(path, sizeof(path), "snapshot %s", snapshot_change_name(change));
	if (instance_arg_open_locked(name, path, false, &home, &lock, &inst, err) < 0)
		return err->code;
	if (inst->ha_pid || inst->driver_pid)
		return error_set(err, -EBUSY, "`%s` was started just now; try again", name);
	if (find_disk(inst, &disk, err) < 0)
		return err->code;
	return snapshot_disk_change(disk, change, tag, err);
}

static int change_instance(const char *name, enum snapshot_change change, const char *tag,
			   char **ret_warning, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL, *socket = NULL;
	int running;

	if (snapshot_check_tag(tag, err) < 0 || instance_arg_open(name, &home, &inst, err) < 0)
		return err->code;
	running = find_out_who(inst, &socket, err);
	if (running < 0)
		return err->code;
	return running ? ask_agent(socket, change, tag, ret_warning, err)
		       : change_stopped(name, change, tag, err);
}

static int run_change(const struct args *a, enum snapshot_change change)
{
	static const char *const done[] = {
		[SNAPSHOT_CREATE] = "snapshot `%s` of `%s` is taken",
		[SNAPSHOT_APPLY] = "back at snapshot `%s` of `%s`",
		[SNAPSHOT_DELETE] = "snapshot `%s` of `%s` is deleted",
	};
	const char *name = instance_arg_name(a), *tag = args_str(a, "tag");
	scoped_free char *warning = NULL;
	struct error err = ERROR_NONE;

	interrupt_install();
	if (!tag)
		error_set(&err, -EINVAL, "expected tag: limactl snapshot %s %s --tag TAG",
			  snapshot_change_name(change), name);
	else if (change_instance(name, change, tag, &warning, &err) < 0)
		error_wrap(&err, "snapshot %s %s", snapshot_change_name(change), name);
	if (err.code)
		return verb_fail(&err);
	scoped_free char *text = xasprintf(done[change], tag, name);
	log_info("%s", text);
	if (warning)
		log_warn("%s", warning);
	return 0;
}

static int run_create(const struct args *a)
{
	return run_change(a, SNAPSHOT_CREATE);
}

static int run_apply(const struct args *a)
{
	return run_change(a, SNAPSHOT_APPLY);
}

static int run_delete(const struct args *a)
{
	return run_change(a, SNAPSHOT_DELETE);
}

/* --- list ------------------------------------------------------------------------- */

enum column { TAG, DATE, RAN, MEMORY, N_COLUMNS };

static const struct flag list_flags[] = {
	{ "quiet", 'q', FLAG_BOOL, NULL, "tags only, one a line", false },
	{ "json", 0, FLAG_BOOL, NULL, "one JSON object a line", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int list_stopped(const struct instance *inst, json_t **ret, struct error *err)
{
	scoped_snapshot_list struct snapshot_list list = { 0 };
	scoped_free char *disk = NULL;

	if (find_disk(inst, &disk, err) < 0 || snapshot_disk_list(disk, &list, err) < 0)
		return err->code;
	*ret = json_array();
	for (size_t i = 0; i < list.n; i++)
		json_array_append_new(*ret, snapshot_json(&list.items[i]));
	return 0;
}

static int get_list(const char *name, json_t **ret, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL, *socket = NULL;
	int running;

	if (instance_arg_open(name, &home, &inst, err) < 0)
		return err->code;
	running = find_out_who(inst, &socket, err);
	if (running < 0)
		return err->code;
	return running ? ha_client_call(socket, "GET", "/v1/snapshots", NULL, ret, err)
		       : list_stopped(inst, ret, err);
}

/* "2026-11-21 22:41:07", as the user's clock shows it */
static char *local_date(const char *rfc3339)
{
	struct timespec at;
	char text[64];
	struct tm tm;

	if (clock_rfc3339_parse(rfc3339, &at) < 0 || !localtime_r(&at.tv_sec, &tm) ||
	    !strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm))
		return xstrdup("");
	return xstrdup(text);
}

/* "1:02:03" */
static char *how_long(uint64_t ms)
{
	uint64_t s = ms / 1000;

	return xasprintf("%ju:%02ju:%02ju", (uintmax_t)(s / 3600), (uintmax_t)(s / 60 % 60),
			 (uintmax_t)(s % 60));
}

static void add_row(struct text_table *t, const json_t *s)
{
	uint64_t bytes = (uint64_t)json_integer_value(json_object_get(s, "memoryBytes"));
	uint64_t ran_ms = (uint64_t)json_integer_value(json_object_get(s, "vmClockMillis"));
	const char *tag = json_string_value(json_object_get(s, "tag"));
	const char *date = json_string_value(json_object_get(s, "date"));

	strv_add(&t->cells, tag ? tag : "");
	strv_take(&t->cells, local_date(date ? date : ""));
	strv_take(&t->cells, bytes ? how_long(ran_ms) : xstrdup("-"));
	strv_take(&t->cells, bytes ? xasprintf("%.1fMiB", (double)bytes / (1 << 20))
				   : xstrdup("disk only"));
}

static void print_table(const json_t *list)
{
	scoped_text_table struct text_table t = { .n_columns = N_COLUMNS,
						  .right = 1UL << RAN | 1UL << MEMORY };
	const json_t *s;
	size_t i;

	strv_add_all(&t.cells, "TAG", "DATE", "VM CLOCK", "MEMORY", NULL);
	json_array_foreach(list, i, s)
		add_row(&t, s);
	for (i = 0; i < text_table_rows(&t); i++) {
		scoped_buf struct buf line = { 0 };

		text_table_line(&t, i, 0, &line);
		puts(buf_str(&line));
	}
}

static void print_json(const char *instance, const json_t *s)
{
	json_t *o = json_pack("{s:s}", "instance", instance);

	json_object_update(o, (json_t *)s);
	json_dumpf(o, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(o);
}

static int run_list(const struct args *a)
{
	const char *name = instance_arg_name(a);
	bool quiet = args_bool(a, "quiet", false), json = args_bool(a, "json", false);
	struct error err = ERROR_NONE;
	json_t *list = NULL;
	const json_t *s;
	size_t i;

	interrupt_install();
	if (quiet && json)
		error_set(&err, -EINVAL, "--quiet goes with the table only");
	else if (get_list(name, &list, &err) < 0)
		error_wrap(&err, "snapshot list %s", name);
	if (err.code)
		return verb_fail(&err);
	json_array_foreach(list, i, s) {
		const char *tag = json_string_value(json_object_get(s, "tag"));

		if (json)
			print_json(name, s);
		else if (quiet && tag)
			puts(tag);
	}
	if (!json && !quiet)
		print_table(list);
	json_decref(list);
	return 0;
}

/* --- the table -------------------------------------------------------------------- */

const struct verb verb_snapshot_create = {
	.name = "create",
	.parent = &verb_snapshot,
	.aliases = "save",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE --tag TAG",
	.summary = "take a snapshot",
	.text = "Of a running instance with the guest's memory, so that `limactl snapshot apply` goes on\n"
		"there; the guest stands still while it is written, some seconds for each GiB it uses.\n"
		"Connections that are forwarded over vsock are reset, and so is ssh over vsock; new ones\n"
		"work all the time the guest does. Of a stopped instance it is the disk alone.",
	.examples = "  limactl snapshot create web --tag before-upgrade",
	.flags = (const struct flag *const[]){ tag_flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run_create,
};

const struct verb verb_snapshot_apply = {
	.name = "apply",
	.parent = &verb_snapshot,
	.aliases = "load",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE --tag TAG",
	.summary = "go back to a snapshot",
	.text = "What came after it on the disk is lost, and in a running instance what the guest is doing.\n"
		"That goes on where it was when the snapshot was taken, with the clock set, and connections\n"
		"into it begin anew. It needs the CPUs, the memory and the QEMU of then. A stopped instance\n"
		"has its disk as it was; one that was taken while it ran is there as after a power cut.",
	.examples = "  limactl snapshot apply web --tag before-upgrade",
	.flags = (const struct flag *const[]){ tag_flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run_apply,
};

const struct verb verb_snapshot_delete = {
	.name = "delete",
	.parent = &verb_snapshot,
	.aliases = "del",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE --tag TAG",
	.summary = "drop a snapshot",
	.examples = "  limactl snapshot delete web --tag before-upgrade",
	.flags = (const struct flag *const[]){ tag_flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run_delete,
};

const struct verb verb_snapshot_list = {
	.name = "list",
	.parent = &verb_snapshot,
	.aliases = "ls",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE",
	.summary = "show the snapshots",
	.text = "VM CLOCK is how long the machine had run, MEMORY what the guest's memory takes; a snapshot\n"
		"of a stopped instance has neither.",
	.examples = "  limactl snapshot list web\n  limactl snapshot list --json web | jq -r .tag",
	.flags = (const struct flag *const[]){ list_flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run_list,
};

static const struct verb *const snapshot_verbs[] = {
	&verb_snapshot_create, &verb_snapshot_apply, &verb_snapshot_delete, &verb_snapshot_list, NULL,
};

const struct verb verb_snapshot = {
	.name = "snapshot",
	.group = VERB_ADVANCED,
	.usage = "COMMAND",
	.summary = "keep states of an instance and go back to them",
	.text = "A snapshot is in the instance's disk and takes as much room there as changes after it, and\n"
		"the guest's memory if it ran. `limactl clone` copies them too, `limactl factory-reset` and\n"
		"`limactl delete` drop them.",
	.examples = "  limactl snapshot create web --tag before-upgrade\n"
		    "  limactl snapshot apply web --tag before-upgrade",
	.verbs = snapshot_verbs,
};
