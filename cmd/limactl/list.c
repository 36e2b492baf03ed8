/* list.c - show instances
 *
 * Table columns, JSON keys and their order are Lima's (reference/cli.md §3).
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/instance_arg.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "format", 'f', FLAG_STRING, "FORMAT", "table or json", false },
	{ "json", 0, FLAG_BOOL, NULL, "one JSON object a line; the same as --format json", false },
	{ "quiet", 'q', FLAG_BOOL, NULL, "names only", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

enum { COLUMNS = 9, PAD = 4 };

struct table {
	struct strv cells;	/* row by row */
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

static void add_row(struct table *t, const struct instance *inst)
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

static void print_table(const struct table *t)
{
	size_t width[COLUMNS] = { 0 };

	for (size_t i = 0; i < t->cells.len; i++)
		width[i % COLUMNS] = MAX(width[i % COLUMNS], strlen(t->cells.items[i]));
	for (size_t i = 0; i < t->cells.len; i++) {
		bool last = i % COLUMNS == COLUMNS - 1;

		if (last)
			printf("%s\n", t->cells.items[i]);
		else
			printf("%-*s", (int)width[i % COLUMNS] + PAD, t->cells.items[i]);
	}
}

static json_t *string_list(const struct strv *v)
{
	json_t *list = json_array();
	const char *s;

	strv_foreach(s, v)
		json_array_append_new(list, json_string(s));
	return list;
}

static void add_config(json_t *o, const struct config *c)
{
	json_t *config = json_loadb((const char *)c->json.data, c->json.len, 0, NULL);
	json_t *param = json_object_get(config, "param");

	json_object_set_new(o, "vmType", json_string(c->vm_type));
	json_object_set_new(o, "arch", json_string(arch_name(c->arch)));
	json_object_set_new(o, "cpus", json_integer(c->cpus));
	json_object_set_new(o, "memory", json_integer((json_int_t)c->memory_bytes));
	json_object_set_new(o, "disk", json_integer((json_int_t)c->disk_bytes));
	if (*c->message)
		json_object_set_new(o, "message", json_string(c->message));
	if (json_object_size(param))
		json_object_set(o, "param", param);
	if (config)
		json_object_set_new(o, "config", config);
}

static void print_json(const struct instance *inst)
{
	scoped_free char *ssh_config = layout_instance_file(inst->dir, FILE_SSH_CONFIG);
	scoped_free char *key = layout_user_key(inst->lima_home);
	json_t *o = json_object();

	json_object_set_new(o, "name", json_string(inst->name));
	json_object_set_new(o, "hostname", json_string(inst->hostname));
	json_object_set_new(o, "status", json_string(instance_status_name(inst->status)));
	json_object_set_new(o, "dir", json_string(inst->dir));
	if (inst->config)
		add_config(o, inst->config);
	json_object_set_new(o, "sshLocalPort", json_integer(inst->ssh_local_port));
	json_object_set_new(o, "sshConfigFile", json_string(ssh_config));
	if (inst->ha_pid)
		json_object_set_new(o, "hostAgentPID", json_integer(inst->ha_pid));
	if (inst->driver_pid)
		json_object_set_new(o, "driverPID", json_integer(inst->driver_pid));
	if (inst->errors.len)
		json_object_set_new(o, "errors", string_list(&inst->errors));
	json_object_set_new(o, "sshAddress", json_string("127.0.0.1"));
	json_object_set_new(o, "protected", json_boolean(inst->is_protected));
	json_object_set_new(o, "limaVersion", json_string(inst->lima_version));
	json_object_set_new(o, "HostOS", json_string("linux"));
	json_object_set_new(o, "HostArch", json_string(arch_name(arch_host())));
	json_object_set_new(o, "LimaHome", json_string(inst->lima_home));
	json_object_set_new(o, "IdentityFile", json_string(key));
	json_dumpf(o, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(o);
}

enum format { FORMAT_TABLE, FORMAT_JSON, FORMAT_QUIET };

static int pick_format(const struct args *a, enum format *ret, struct error *err)
{
	const char *f = args_str(a, "format");
	bool json = args_bool(a, "json", false), quiet = args_bool(a, "quiet", false);

	if (f && json)
		return error_set(err, -EINVAL, "--format and --json contradict each other");
	if (quiet && (json || (f && !streq(f, "table"))))
		return error_set(err, -EINVAL, "--quiet goes with the table format only");
	if (f && !streq(f, "table") && !streq(f, "json"))
		return error_set(err, -EINVAL, "--format: `%s` is neither table nor json", f);
	*ret = quiet ? FORMAT_QUIET : json || (f && streq(f, "json")) ? FORMAT_JSON : FORMAT_TABLE;
	return 0;
}

static void show(const char *home, const char *name, enum format format, struct table *t)
{
	scoped_instance struct instance *inst = NULL;
	struct error err = { 0 };

	if (format == FORMAT_QUIET) {
		puts(name);
		return;
	}
	if (instance_inspect(home, name, &inst, &err) < 0) {
		log_debug("list: %s", err.msg); /* deleted while we looked */
		return;
	}
	for (size_t i = 0; i < inst->errors.len; i++)
		log_warn("instance `%s`: %s", name, inst->errors.items[i]);
	if (format == FORMAT_JSON)
		print_json(inst);
	else
		add_row(t, inst);
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

static int run(const struct args *a)
{
	scoped_strv struct strv all = { 0 }, names = { 0 };
	struct table t = { 0 };
	scoped_free char *home = NULL;
	struct error err = { 0 };
	enum format format;
	unsigned unmatched;
	const char *name;

	if (pick_format(a, &format, &err) < 0 || layout_lima_home(&home, &err) < 0 ||
	    instance_list(home, &all, &err) < 0)
		return verb_fail(&err);
	if (!all.len && !a->positional.len) {
		log_warn("no instance yet; limactl start creates the first one");
		return 0;
	}
	unmatched = choose(a, &all, &names);
	strv_add_all(&t.cells, "NAME", "STATUS", "SSH", "VMTYPE", "ARCH", "CPUS", "MEMORY", "DISK", "DIR",
		     NULL);
	strv_foreach(name, &names)
		show(home, name, format, &t);
	if (format == FORMAT_TABLE && names.len)
		print_table(&t);
	strv_done(&t.cells);
	if (unmatched) {
		log_write(LOG_FATAL, "unmatched instances");
		return 1;
	}
	return 0;
}

const struct verb verb_list = {
	.name = "list",
	.aliases = "ls",
	.group = VERB_BASIC,
	.usage = "[INSTANCE…]",
	.summary = "show instances",
	.text = "Without names all are shown. The data goes to stdout, what is wrong with an instance to\n"
		"stderr.",
	.examples = "  limactl list\n  limactl list -q\n  limactl list --json web | jq .status",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run,
};
