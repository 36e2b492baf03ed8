/* port_list.c - show what is forwarded */
#include <errno.h>
#include <stdio.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/port.h"
#include "cmd/limactl/port_rows.h"
#include "cmd/limactl/port_watch.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "all", 'a', FLAG_BOOL, NULL, "also what no rule forwards", false },
	{ "json", 0, FLAG_BOOL, NULL, "one JSON object a line", false },
	{ "quiet", 'q', FLAG_BOOL, NULL, "host addresses that answer, one a line", false },
	{ "watch", 'w', FLAG_BOOL, NULL, "go on until Ctrl-C, showing every change", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

struct list {
	bool all, json, quiet;
	unsigned columns;
	struct text_table table;
};

static void show_json(const char *instance, const json_t *row)
{
	json_t *o = json_pack("{s:s}", "instance", instance);

	json_object_update(o, (json_t *)row);
	json_dumpf(o, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(o);
}

static void show_row(struct list *l, const char *instance, const json_t *row)
{
	if (l->json)
		show_json(instance, row);
	else if (!l->quiet && (l->all || !port_rows_is_dull(row)))
		port_rows_add(&l->table, l->columns, instance, row, NULL);
	else if (l->quiet && streq(port_rows_get(row, "state"), "forwarding"))
		puts(port_rows_get(row, "hostAddr"));
}

static int show_instance(struct list *l, const char *name, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *socket = NULL;
	scoped_json json_t *rows = NULL;
	const json_t *row;
	size_t i;

	if (port_open(name, &socket, &inst, err) < 0)
		return err->code;
	if (port_get_rows(socket, &rows, err) < 0)
		return error_wrap(err, "port list %s", name);
	json_array_foreach(rows, i, row)
		show_row(l, name, row);
	return 0;
}

static void print_table(struct text_table *t)
{
	for (size_t i = 0; i < text_table_rows(t); i++) {
		scoped_buf struct buf line = { 0 };

		text_table_line(t, i, 0, &line);
		puts(buf_str(&line));
	}
}

static bool is_running(const char *home, const char *name)
{
	scoped_instance struct instance *inst = NULL;
	struct error ignored = ERROR_NONE;

	return instance_inspect(home, name, &inst, &ignored) == 0 && inst->ha_pid;
}

/* Those named, or all that run. */
static int choose(const struct args *a, struct strv *ret, struct error *err)
{
	scoped_strv struct strv all = { 0 };
	scoped_free char *home = NULL;
	const char *name;

	strv_foreach(name, &a->positional)
		strv_add(ret, name);
	if (ret->len)
		return 0;
	if (layout_lima_home(&home, err) < 0 || instance_list(home, &all, err) < 0)
		return err->code;
	strv_foreach(name, &all)
		if (is_running(home, name))
			strv_add(ret, name);
	return 0;
}

static enum port_watch_host look(void *arg)
{
	const struct instance *was = arg;
	scoped_instance struct instance *is = NULL;
	struct error ignored = ERROR_NONE;

	if (instance_inspect(was->lima_home, was->name, &is, &ignored) < 0)
		return PORT_WATCH_STOPPED;	/* and deleted */
	return is->ha_pid ? PORT_WATCH_THERE : is->driver_pid ? PORT_WATCH_LOST : PORT_WATCH_STOPPED;
}

static int watch(const struct args *a, const struct strv *names)
{
	struct port_watch_options o = {
		.all = args_bool(a, "all", false),
		.json = args_bool(a, "json", false),
		.live = args_wants_tty(a),
		.look = look,
	};
	scoped_instance struct instance *inst = NULL;
	scoped_free char *socket = NULL;
	struct error err = ERROR_NONE;

	if (names->len != 1) {
		error_set(&err, -EINVAL, "--watch shows one instance%s: limactl port list --watch NAME",
			  names->len ? "" : ", and none runs");
		return verb_fail(&err);
	}
	interrupt_install();
	o.instance = names->items[0];
	if (port_open(o.instance, &socket, &inst, &err) < 0)
		return verb_fail(&err);
	o.arg = inst;
	if (port_watch(socket, &o, &err) < 0)
		return verb_fail(&err);
	return 0;
}

static int run(const struct args *a)
{
	struct list l = { .all = args_bool(a, "all", false), .json = args_bool(a, "json", false),
			  .quiet = args_bool(a, "quiet", false) };
	scoped_strv struct strv names = { 0 };
	struct error err = ERROR_NONE;
	const char *name;
	int code = 0;

	if (l.quiet && (l.json || args_bool(a, "watch", false))) {
		error_set(&err, -EINVAL, "--quiet goes with the table only");
		return verb_fail(&err);
	}
	if (choose(a, &names, &err) < 0)
		return verb_fail(&err);
	if (args_bool(a, "watch", false))
		return watch(a, &names);
	if (!names.len) {
		log_warn("no instance runs; limactl start starts one");
		return 0;
	}
	l.columns = a->positional.len == 1 ? 0 : PORT_INSTANCE;
	port_rows_begin(&l.table, l.columns);
	strv_foreach(name, &names)
		if (show_instance(&l, name, &err) < 0)
			code = verb_fail(&err);
	if (!l.json && !l.quiet && !(code && text_table_rows(&l.table) == 1))
		print_table(&l.table);
	text_table_done(&l.table);
	return code;
}

const struct verb verb_port_list = {
	.name = "list",
	.parent = &verb_port,
	.aliases = "ls",
	.group = VERB_BASIC,
	.usage = "[INSTANCE…]",
	.summary = "show what is forwarded",
	.text = "Without names all instances that run. CONNS is connections now and since the start, IN\n"
		"is bytes into the guest, OUT out of it. NOTE says why something is not forwarded, or\n"
		"which rule decided and for how long it stands so.\n"
		"\n"
		"`--watch` shows one instance until Ctrl-C, with bytes per second and how long the guest\n"
		"takes to answer a connection (median of the newest); away from a terminal it prints a\n"
		"line a change, with `--json` the events of the host agent as they are. It waits for a\n"
		"host agent that went, and ends when the instance has stopped.",
	.examples = "  limactl port list\n  limactl port list --watch web\n"
		    "  limactl port list --json web | jq -r '.hostAddr + \" \" + .state'",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run,
};
