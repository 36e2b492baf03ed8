#include "cmd/limactl/edit_flags.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/edit.h"
#include "lib/store/layout.h"

const struct flag edit_flags[] = {
	{ "cpus", 0, FLAG_INT, "N", "number of CPUs", false },
	{ "memory", 0, FLAG_FLOAT, "GIB", "memory in GiB", false },
	{ "disk", 0, FLAG_FLOAT, "GIB", "disk size in GiB; it can grow, not shrink", false },
	{ "dns", 0, FLAG_LIST, "IP,…", "name servers for the guest; turns the host resolver off", false },
	{ "ssh-port", 0, FLAG_INT, "PORT", "host port for ssh (0: a free one)", false },
	{ "shell", 0, FLAG_STRING, "PATH", "the guest user's shell", false },
	{ "vm-type", 0, FLAG_STRING, "TYPE", "qemu", false },
	{ "mount", 0, FLAG_LIST, "DIR[:w],…", "mount DIR in the guest, writable with :w", false },
	{ "mount-none", 0, FLAG_BOOL, NULL, "mount nothing", false },
	{ "param", 0, FLAG_STRINGS, "NAME=VALUE", "set a parameter of the template (repeatable)", false },
	{ "set", 0, FLAG_STRINGS, "EXPR", "set any key: '.user.shell = \"/bin/zsh\"' (repeatable)", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

const struct flag edit_new_flags[] = {
	{ "arch", 0, FLAG_STRING, "ARCH", "x86_64, aarch64, …", false },
	{ "plain", 0, FLAG_BOOL, NULL, "no guest agent, no mounts, no dynamic forwards", false },
	{ "port-forward", 0, FLAG_STRINGS, "HOST:GUEST[,static=true]", "forward a port (repeatable)", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int set_number(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_free char *v = xasprintf("%llu", strtoull(value, NULL, 10)); /* 08 is none in YAML */

	return edit_set(y, path, v, err);
}

static int set_bool(struct buf *y, const char *path, const char *value, struct error *err)
{
	return edit_set(y, path, value, err);
}

static int set_gib(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_free char *v = xasprintf("%.10gGiB", strtod(value, NULL)); /* 0x10, 1e1 */

	return edit_set(y, path, v, err);
}

static int set_text(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_free char *v = edit_quote(value);

	return edit_set(y, path, v, err);
}

static int set_none(struct buf *y, const char *path, const char *value, struct error *err)
{
	return streq(value, "true") ? edit_set(y, path, "[]", err) : 0;
}

static int add_dns(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_strv struct strv servers = { 0 };
	const char *ip;

	strv_split(&servers, value, ",");
	strv_foreach(ip, &servers) {
		scoped_free char *v = edit_quote(ip);

		if (edit_add(y, path, EDIT_UNIQUE, v, err) < 0)
			return err->code;
	}
	return edit_set(y, "hostResolver.enabled", "false", err);
}

static int add_one_mount(struct buf *y, const char *path, const char *value, struct error *err)
{
	size_t len = strlen(value);
	bool writable = len > 2 && streq(value + len - 2, ":w");
	scoped_free char *given = xstrndup(value, writable ? len - 2 : len);
	scoped_free char *expanded = path_expand_home(given);
	scoped_free char *absolute = realpath(expanded, NULL);

	if (!absolute)
		return error_sys(err, -errno, "--mount %s", value);
	scoped_free char *q = edit_quote(absolute);
	scoped_free char *item = xasprintf("{location: %s, writable: %s}", q, writable ? "true" : "false");
	return edit_add(y, path, EDIT_FIRST, item, err);
}

static int add_mounts(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_strv struct strv mounts = { 0 };
	const char *one;

	strv_split(&mounts, value, ",");
	strv_foreach(one, &mounts)
		if (add_one_mount(y, path, one, err) < 0)
			return err->code;
	return 0;
}

static int set_param(struct buf *y, const char *path, const char *value, struct error *err)
{
	const char *eq = strchr(value, '=');
	scoped_free char *key = eq ? xasprintf(".param.%.*s", (int)(eq - value), value) : NULL;
	scoped_free char *v = eq ? edit_quote(eq + 1) : NULL, *before = NULL;

	if (!eq)
		return error_set(err, -EINVAL, "--param %s: write NAME=VALUE", value);
	if (edit_get(y, key, &before, err) < 0)
		return err->code;
	if (!before)
		return error_set(err, -EINVAL, "--param %s: this template has no such parameter", value);
	return edit_set(y, key, v, err);
}

static int set_expression(struct buf *y, const char *path, const char *value, struct error *err)
{
	return edit_expression(y, value, err) < 0 ? error_wrap(err, "--set '%s'", value) : 0;
}

/* HOST:GUEST[,static=BOOL] */
static int add_forward(struct buf *y, const char *path, const char *value, struct error *err)
{
	unsigned host, guest;
	char flag[8] = "false";
	int used = 0;

	if ((sscanf(value, "%5u:%5u%n", &host, &guest, &used) != 2 || value[used]) &&
	    (sscanf(value, "%5u:%5u,static=%5[a-z]%n", &host, &guest, flag, &used) != 3 || value[used] ||
	     (!streq(flag, "true") && !streq(flag, "false"))))
		return error_set(err, -EINVAL, "--port-forward %s: write HOST:GUEST or HOST:GUEST,static=true",
				 value);
	scoped_free char *item = xasprintf("{guestPort: %u, hostPort: %u, static: %s}", guest, host, flag);
	return edit_add(y, path, EDIT_LAST, item, err);
}

/* In the order in which they take effect. */
static const struct {
	const char *flag, *path;
	int (*apply)(struct buf *y, const char *path, const char *value, struct error *err);
} edits[] = {
	{ "cpus", "cpus", set_number },
	{ "dns", "dns", add_dns },
	{ "memory", "memory", set_gib },
	{ "mount-none", "mounts", set_none },
	{ "mount", "mounts", add_mounts },
	{ "vm-type", "vmType", set_text },
	{ "ssh-port", "ssh.localPort", set_number },
	{ "arch", "arch", set_text },
	{ "disk", "disk", set_gib },
	{ "plain", "plain", set_bool },
	{ "port-forward", "portForwards", add_forward },
	{ "shell", "user.shell", set_text },
	{ "param", "param", set_param },
	{ "set", "", set_expression },
};

static bool in_table(const struct flag *table, const char *name)
{
	for (; table->name; table++)
		if (streq(table->name, name))
			return true;
	return false;
}

bool edit_flags_given(const struct args *a)
{
	for (size_t i = 0; i < a->n_given; i++)
		if (in_table(edit_flags, a->given[i].flag->name))
			return true;
	return false;
}

/* @skip: flags to leave out, with a warning. Sets *ret_changed when one applied. */
static int apply(const struct args *a, const struct flag *skip, struct buf *yaml, bool *ret_changed,
		 struct error *err)
{
	for (size_t e = 0; e < ARRAY_SIZE(edits); e++) {
		for (size_t i = 0; i < a->n_given; i++) {
			if (!streq(a->given[i].flag->name, edits[e].flag))
				continue;
			if (skip && in_table(skip, edits[e].flag)) {
				log_warn("--%s is for new instances only, ignoring", edits[e].flag);
				continue;
			}
			if (edits[e].apply(yaml, edits[e].path, a->given[i].value, err) < 0)
				return err->code;
			*ret_changed = true;
		}
	}
	return 0;
}

int edit_flags_apply(const struct args *a, struct buf *yaml, struct error *err)
{
	bool changed = false;

	return apply(a, NULL, yaml, &changed, err);
}

static int check(const struct instance *inst, const struct buf *yaml, struct error *err)
{
	struct config_context ctx = {
		.instance = inst->name, .instance_dir = inst->dir, .lima_home = inst->lima_home,
	};
	scoped_config struct config *config = NULL;

	if (config_load(&ctx, "lima.yaml", (const char *)yaml->data, yaml->len, NULL, &config, err) < 0)
		return error_wrap(err, "these flags would break it, nothing was changed");
	if (inst->config && config->disk_bytes < inst->config->disk_bytes)
		return error_set(err, -EINVAL, "--disk: a disk cannot shrink, nothing was changed");
	return 0;
}

int edit_flags_apply_to_instance(const struct args *a, const struct instance *inst, struct error *err)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_LIMA_YAML);
	scoped_buf struct buf yaml = { 0 };
	bool changed = false;

	if (path_read_file(path, 4 << 20, &yaml, err) < 0 ||
	    apply(a, edit_new_flags, &yaml, &changed, err) < 0)
		return err->code;
	if (!changed)
		return 0;
	if (check(inst, &yaml, err) < 0)
		return err->code;
	return path_write_file(path, yaml.data, yaml.len, 0644, err);
}
