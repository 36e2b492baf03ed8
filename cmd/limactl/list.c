/* list.c - show instances
 *
 * Table columns, JSON keys and their order are Lima's (reference/cli.md §3).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/instance_view.h"
#include "cmd/limactl/text_table.h"
#include "cmd/limactl/view_filter.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "format", 'f', FLAG_STRING, "FORMAT", "table, json, yaml, or a template such as '{{.Name}}'", false },
	{ "json", 0, FLAG_BOOL, NULL, "one JSON object a line; the same as --format json", false },
	{ "list-fields", 0, FLAG_BOOL, NULL, "what a template may name, and end", false },
	{ "all-fields", 0, FLAG_BOOL, NULL, "taken for Lima's sake: the table leaves nothing out", false },
	{ "quiet", 'q', FLAG_BOOL, NULL, "names only", false },
	{ "filter", 'l', FLAG_STRINGS, "EXPR",
	  "only those of which EXPR is true: '.status == \"Running\"' (repeatable)", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* "4GiB", with up to four significant digits, as in lima.yaml */
static char *size_text(uint64_t bytes)
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u + 1 < ARRAY_SIZE(unit))
		v /= 1024, u++;
	return xasprintf("%.4g%s", v, unit[u]);
}

static char *short_dir(const char *dir)
{
	const char *home = getenv("HOME");
	size_t n = home ? strlen(home) : 0;

	if (n > 1 && strncmp(dir, home, n) == 0 && dir[n] == '/')
		return xasprintf("~%s", dir + n);
	return xstrdup(dir);
}

static void add_row(struct text_table *t, const struct instance *inst)
{
	const struct config *c = inst->config;

	strv_add(&t->cells, inst->name);
	strv_add(&t->cells, instance_status_name(inst->status));
	if (inst->status == STATUS_BROKEN && !inst->ssh_local_port)
		strv_add(&t->cells, ":0");
	else
		strv_addf(&t->cells, "127.0.0.1:%u", inst->ssh_local_port);
	strv_add(&t->cells, c ? c->vm_type : "");
	strv_add(&t->cells, c ? arch_name(c->arch) : "");
	strv_addf(&t->cells, "%u", c ? c->cpus : 0);
	strv_take(&t->cells, size_text(c ? c->memory_bytes : 0));
	strv_take(&t->cells, size_text(c ? c->disk_bytes : 0));
	strv_take(&t->cells, short_dir(inst->dir));
}

static void print_table(struct text_table *t)
{
	for (size_t i = 0; i < text_table_rows(t); i++) {
		scoped_buf struct buf line = { 0 };

		text_table_line(t, i, 0, &line);
		puts(buf_str(&line));
	}
}

enum format { FORMAT_TABLE, FORMAT_JSON, FORMAT_YAML, FORMAT_TEMPLATE, FORMAT_QUIET };

static int parse_format(const char *f, enum format *ret, struct error *err)
{
	static const struct {
		const char *name;
		enum format format;
	} formats[] = { { "table", FORMAT_TABLE }, { "json", FORMAT_JSON }, { "yaml", FORMAT_YAML } };

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (streq(f, formats[i].name)) {
			*ret = formats[i].format;
			return 0;
		}
	}
	if (!strstr(f, "{{"))
		return error_set(err, -EINVAL, "--format: `%s` is none of table, json, yaml, '{{.FIELD}}'", f);
	*ret = FORMAT_TEMPLATE;
	return 0;
}

static int pick_format(const struct args *a, enum format *ret, struct error *err)
{
	const char *f = args_str(a, "format");
	enum format format = FORMAT_TABLE;

	if (f && args_bool(a, "json", false))
		return error_set(err, -EINVAL, "--format and --json contradict each other");
	if (args_bool(a, "json", false))
		format = FORMAT_JSON;
	else if (f && parse_format(f, &format, err) < 0)
		return err->code;
	if (args_bool(a, "quiet", false)) {
		if (format != FORMAT_TABLE)
			return error_set(err, -EINVAL, "--quiet goes with the table format only");
		format = FORMAT_QUIET;
	}
	*ret = format;
	return 0;
}

struct listing {
	const char *home, *template;
	enum format format;
	struct strv filters;	/* all must hold */
	struct text_table table;
	struct buf out;		/* all of it is printed, or nothing */
};

static int filter(const struct listing *l, const json_t *view, bool *ret, struct error *err)
{
	bool all = true, holds;
	const char *text;

	strv_foreach(text, &l->filters) {
		if (view_filter(text, view, &holds, err) < 0)
			return error_wrap(err, "--filter");
		all &= holds;
	}
	*ret = all;
	return 0;
}

static int add_view(struct listing *l, const json_t *view, struct error *err)
{
	scoped_free char *json = NULL;

	if (l->format == FORMAT_YAML)
		return instance_view_yaml(view, &l->out, err);
	if (l->format == FORMAT_TEMPLATE)
		return instance_view_template(view, l->template, &l->out, err);
	json = json_dumps(view, JSON_COMPACT);
	buf_addf(&l->out, "%s\n", json);
	return 0;
}

static int add_inspected(struct listing *l, const struct instance *inst, struct error *err)
{
	json_t *view = l->format == FORMAT_TABLE && !l->filters.len ? NULL : instance_view_json(inst);
	bool wanted = false;
	int rc = filter(l, view, &wanted, err);

	if (wanted && l->format == FORMAT_TABLE)
		add_row(&l->table, inst);
	else if (wanted && l->format == FORMAT_QUIET)
		buf_addf(&l->out, "%s\n", inst->name);
	else if (wanted)
		rc = add_view(l, view, err);
	json_decref(view);
	return rc;
}

static int add_instance(struct listing *l, const char *name, struct error *err)
{
	scoped_instance struct instance *inst = NULL;

	if (l->format == FORMAT_QUIET && !l->filters.len) {
		buf_addf(&l->out, "%s\n", name);
		return 0;
	}
	if (instance_inspect(l->home, name, &inst, err) < 0) {
		log_debug("list: %s", err->msg); /* deleted while we looked */
		return 0;
	}
	for (size_t i = 0; i < inst->errors.len; i++)
		log_warn("instance `%s`: %s", name, inst->errors.items[i]);
	return add_inspected(l, inst, err);
}

/* The names to show, in order; those that do not exist are told and counted. */
static unsigned choose(const struct args *a, const struct strv *all, struct strv *ret)
{
	unsigned unmatched = 0;
	const char *name;

	if (!a->positional.len) {
		strv_foreach(name, all)
			strv_add(ret, name);
		return 0;
	}
	strv_foreach(name, &a->positional) {
		if (strv_contains(all, name)) {
			strv_add(ret, name);
		} else {
			log_warn("no instance matches `%s`", name);
			unmatched++;
		}
	}
	return unmatched;
}

static int print(struct listing *l, const struct strv *names, struct error *err)
{
	const char *name;

	l->table = (struct text_table){ .n_columns = 9, .gap = 4 };
	strv_add_all(&l->table.cells, "NAME", "STATUS", "SSH", "VMTYPE", "ARCH", "CPUS", "MEMORY", "DISK",
		     "DIR", NULL);
	strv_foreach(name, names)
		if (add_instance(l, name, err) < 0)
			return err->code;
	if (l->format == FORMAT_TABLE && names->len)
		print_table(&l->table);
	fwrite(buf_str(&l->out), 1, l->out.len, stdout);
	return 0;
}

static int run(const struct args *a)
{
	scoped_strv struct strv all = { 0 }, names = { 0 };
	struct listing l = { .template = args_str(a, "format") };
	scoped_free char *home = NULL;
	struct error err = { 0 };
	unsigned unmatched;
	int rc;

	if (args_bool(a, "list-fields", false)) {
		if (args_has(a, "format") || args_has(a, "filter")) {
			error_set(&err, -EINVAL, "--list-fields goes with neither --format nor --filter");
			return verb_fail(&err);
		}
		instance_view_fields(stdout);
		return 0;
	}
	if (pick_format(a, &l.format, &err) < 0 || layout_lima_home(&home, &err) < 0 ||
	    instance_list(home, &all, &err) < 0)
		return verb_fail(&err);
	if (!all.len && !a->positional.len) {
		log_warn("no instance yet; limactl start creates the first one");
		return 0;
	}
	unmatched = choose(a, &all, &names);
	l.home = home;
	args_list(a, "filter", &l.filters);
	rc = print(&l, &names, &err);
	text_table_done(&l.table);
	buf_done(&l.out);
	strv_done(&l.filters);
	if (rc == 0 && unmatched)
		error_set(&err, -ENOENT, "unmatched instances");
	return rc < 0 || unmatched ? verb_fail(&err) : 0;
}

const struct verb verb_list = {
	.name = "list",
	.aliases = "ls",
	.group = VERB_BASIC,
	.usage = "[INSTANCE…]",
	.summary = "show instances",
	.text = "Without names all are shown. The data goes to stdout, what is wrong with an instance to\n"
		"stderr. --filter asks the object that --json shows, in yq's words: .KEY.KEY[N], == (text with\n"
		"* and ?), !=, <, <=, >, >=, and, or, parentheses.",
	.examples = "  limactl list\n"
		    "  limactl list -q\n"
		    "  limactl list --filter '.status == \"Running\" and .cpus >= 4'\n"
		    "  limactl list --json web | jq .status\n"
		    "  limactl list --format '{{.Name}} {{.SSHLocalPort}}'",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run,
};
