#include "cmd/limactl/edit_flags.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/limactl/lima_yaml.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/edit.h"

const struct flag edit_flags[] = {
	{ "cpus", 0, FLAG_INT, "N", "number of CPUs", false },
	{ "memory", 0, FLAG_FLOAT, "GIB", "memory in GiB", false },
	{ "disk", 0, FLAG_FLOAT, "GIB", "disk size in GiB; it can grow, not shrink", false },
	{ "dns", 0, FLAG_LIST, "IP,…", "name servers for the guest; turns the host resolver off", false },
	{ "mount", 0, FLAG_LIST, "DIR[:w],…", "mount DIR in the guest, writable with :w", false },
	{ "mount-only", 0, FLAG_LIST, "DIR[:w],…", "the same, in place of the mounts that are there", false },
	{ "mount-none", 0, FLAG_BOOL, NULL, "mount nothing", false },
	{ "mount-type", 0, FLAG_STRING, "TYPE", "reverse-sshfs, 9p or virtiofs", false },
	{ "mount-writable", 0, FLAG_BOOL, NULL, "make all mounts writable", false },
	{ "mount-inotify", 0, FLAG_BOOL, NULL, "tell the guest what changes in mounted directories", false },
	{ "network", 0, FLAG_LIST, "lima:NAME,…", "one more network interface, in network NAME", false },
	{ "ssh-port", 0, FLAG_INT, "PORT", "host port for ssh (0: a free one)", false },
	{ "shell", 0, FLAG_STRING, "PATH", "the guest user's shell", false },
	{ "vm-type", 0, FLAG_STRING, "TYPE", "qemu", false },
	{ "video", 0, FLAG_BOOL, NULL, "give the machine a display", false },
	{ "nested-virt", 0, FLAG_BOOL, NULL, "let the guest run virtual machines of its own", false },
	{ "rosetta", 0, FLAG_BOOL, NULL, "Rosetta for x86_64 programs; macOS hosts only", false },
	{ "param", 0, FLAG_STRINGS, "NAME=VALUE", "set a parameter of the template (repeatable)", false },
	{ "set", 0, FLAG_STRINGS, "EXPR", "set any key: '.user.shell = \"/bin/zsh\"' (repeatable)", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

const struct flag edit_new_flags[] = {
	{ "arch", 0, FLAG_STRING, "ARCH", "x86_64, aarch64, …", false },
	{ "image-variant", 0, FLAG_STRING, "NAME", "only images of this variant", false },
	{ "arch-variant", 0, FLAG_STRING, "NAME", "only images of this variant of the architecture", false },
	{ "containerd", 0, FLAG_STRING, "MODE", "user, system, user+system or none", false },
	{ "audio-device", 0, FLAG_STRING, "NAME", "give the machine a sound device", false },
	{ "audio-interface", 0, FLAG_STRING, "TYPE", "hda or virtio", false },
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

static int clear_list(struct buf *y, const char *path, const char *value, struct error *err)
{
	return edit_set(y, path, "[]", err);
}

static int set_display(struct buf *y, const char *path, const char *value, struct error *err)
{
	return edit_set(y, path, streq(value, "true") ? "default" : "none", err);
}

static int set_rosetta(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_free char *both = xasprintf("{enabled: %s, binfmt: %s}", value, value);

	log_warn("--rosetta: kept in lima.yaml, without effect on a Linux host");
	return edit_set(y, path, both, err);
}

static int set_containerd(struct buf *y, const char *path, const char *value, struct error *err)
{
	static const struct {
		const char *mode, *user, *system;
	} modes[] = {
		{ "user", "true", "false" }, { "system", "false", "true" },
		{ "user+system", "true", "true" }, { "none", "false", "false" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!streq(value, modes[i].mode))
			continue;
		if (edit_set(y, "containerd.user", modes[i].user, err) < 0)
			return err->code;
		return edit_set(y, "containerd.system", modes[i].system, err);
	}
	return error_set(err, -EINVAL, "write user, system, user+system or none");
}

/* The text of PATH[INDEX].KEY; @key NULL: of the item itself. */
static int get_of_item(const struct buf *y, const char *path, size_t index, const char *key, char **ret,
		       struct error *err)
{
	scoped_free char *full =
		xasprintf("%s[%zu]%s%s", path, index, key ? "." : "", key ? key : "");

	return edit_get(y, full, ret, err);
}

static int count_items(const struct buf *y, const char *path, size_t *ret, struct error *err)
{
	for (size_t n = 0;; n++) {
		scoped_free char *item = NULL;

		if (get_of_item(y, path, n, NULL, &item, err) < 0)
			return err->code;
		if (!item) {
			*ret = n;
			return 0;
		}
	}
}

static int set_mounts_writable(struct buf *y, const char *path, const char *value, struct error *err)
{
	size_t n = 0;

	if (count_items(y, path, &n, err) < 0)
		return err->code;
	for (size_t i = 0; i < n; i++) {
		scoped_free char *key = xasprintf("%s[%zu].writable", path, i);

		if (edit_set(y, key, value, err) < 0)
			return err->code;
	}
	return 0;
}

/* Images whose @key is not @value go; that of the first one left decides (reference/lima-yaml.md §5). */
static int keep_images(struct buf *y, const char *key, const char *value, struct error *err)
{
	size_t n = 0, left;

	if (count_items(y, "images", &n, err) < 0)
		return err->code;
	left = n;
	for (size_t i = n; i-- > 0;) {
		scoped_free char *have = NULL, *item = xasprintf("images[%zu]", i);

		if (get_of_item(y, "images", i, key, &have, err) < 0)
			return err->code;
		if (have && streq(have, value))
			continue;
		if (edit_delete(y, item, err) < 0)
			return err->code;
		left--;
	}
	return left ? 0 : error_set(err, -EINVAL, "no image of this template is of that variant");
}

/* An interface in this network is there already, whatever else is said about it. */
static int has_network(const struct buf *y, const char *path, const char *name, bool *ret,
		       struct error *err)
{
	size_t n = 0;

	if (count_items(y, path, &n, err) < 0)
		return err->code;
	for (size_t i = 0; i < n && !*ret; i++) {
		scoped_free char *have = NULL;

		if (get_of_item(y, path, i, "lima", &have, err) < 0)
			return err->code;
		*ret = have && streq(have, name);
	}
	return 0;
}

static int add_network(struct buf *y, const char *path, const char *value, struct error *err)
{
	const char *name = strncmp(value, "lima:", 5) == 0 ? value + 5 : "";
	scoped_free char *quoted = edit_quote(name), *item = xasprintf("{lima: %s}", quoted);
	bool have = false;

	if (streq(value, "vzNAT"))
		return edit_add(y, path, EDIT_UNIQUE, "{vzNAT: true}", err);
	if (!*name)
		return error_set(err, -EINVAL, "write lima:NAME");
	if (has_network(y, path, name, &have, err) < 0)
		return err->code;
	return have ? 0 : edit_add(y, path, EDIT_LAST, item, err);
}

static int add_dns(struct buf *y, const char *path, const char *value, struct error *err)
{
	scoped_free char *v = edit_quote(value);

	if (edit_add(y, path, EDIT_UNIQUE, v, err) < 0)
		return err->code;
	return edit_set(y, "hostResolver.enabled", "false", err);
}

static int add_mount(struct buf *y, const char *path, const char *value, struct error *err)
{
	size_t len = strlen(value);
	bool writable = len > 2 && streq(value + len - 2, ":w");
	scoped_free char *given = xstrndup(value, writable ? len - 2 : len);
	scoped_free char *expanded = path_expand_home(given);
	scoped_free char *absolute = realpath(expanded, NULL);

	if (!absolute)
		return error_set(err, -errno, "%s", error_text(-errno));
	scoped_free char *q = edit_quote(absolute);
	scoped_free char *item = xasprintf("{location: %s, writable: %s}", q, writable ? "true" : "false");
	return edit_add(y, path, EDIT_FIRST, item, err);
}

static int set_param(struct buf *y, const char *path, const char *value, struct error *err)
{
	const char *eq = strchr(value, '=');
	scoped_free char *key = eq ? xasprintf(".param.%.*s", (int)(eq - value), value) : NULL;
	scoped_free char *v = eq ? edit_quote(eq + 1) : NULL, *before = NULL;

	if (!eq)
		return error_set(err, -EINVAL, "write NAME=VALUE");
	if (edit_get(y, key, &before, err) < 0)
		return err->code;
	if (!before)
		return error_set(err, -EINVAL, "this template has no such parameter");
	return edit_set(y, key, v, err);
}

static int set_expression(struct buf *y, const char *path, const char *value, struct error *err)
{
	return edit_expression(y, value, err);
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
		return error_set(err, -EINVAL, "write HOST:GUEST or HOST:GUEST,static=true");
	scoped_free char *item = xasprintf("{guestPort: %u, hostPort: %u, static: %s}", guest, host, flag);
	return edit_add(y, path, EDIT_LAST, item, err);
}

/* In the order in which they take effect (reference/cli.md §2). */
static const struct {
	const char *flag, *path;
	int (*apply)(struct buf *y, const char *path, const char *value, struct error *err);
} edits[] = {
	{ "cpus", "cpus", set_number },
	{ "dns", "dns", add_dns },
	{ "memory", "memory", set_gib },
	{ "mount", "mounts", add_mount },
	{ "mount-only", "mounts", clear_list },
	{ "mount-only", "mounts", add_mount },
	{ "mount-none", "mounts", set_none },
	{ "mount-type", "mountType", set_text },
	{ "vm-type", "vmType", set_text },
	{ "mount-inotify", "mountInotify", set_bool },
	{ "mount-writable", "mounts", set_mounts_writable },
	{ "network", "networks", add_network },
	{ "nested-virt", "nestedVirtualization", set_bool },
	{ "rosetta", "vmOpts.vz.rosetta", set_rosetta },
	{ "set", "", set_expression },
	{ "param", "param", set_param },
	{ "video", "video.display", set_display },
	{ "audio-device", "audio.device", set_text },
	{ "audio-interface", "audio.interface", set_text },
	{ "ssh-port", "ssh.localPort", set_number },
	{ "image-variant", "variant", keep_images },
	{ "arch-variant", "archVariant", keep_images },
	{ "arch", "arch", set_text },
	{ "containerd", "containerd", set_containerd },
	{ "disk", "disk", set_gib },
	{ "plain", "plain", set_bool },
	{ "port-forward", "portForwards", add_forward },
	{ "shell", "user.shell", set_text },
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

/* Row @e of the table with one flag as given; of a list each value by itself. */
static int apply_value(size_t e, const struct flag *flag, const char *given, struct buf *yaml,
		       struct error *err)
{
	scoped_strv struct strv values = { 0 };
	const char *value;

	if (flag->type == FLAG_LIST)
		strv_split(&values, given, ",");
	else
		strv_add(&values, given);
	strv_foreach(value, &values)
		if (edits[e].apply(yaml, edits[e].path, value, err) < 0)
			return error_wrap(err, "--%s %s", flag->name, value);
	return 0;
}

/* Two flags that each say what all the mounts are. */
static int check_conflicts(const struct args *a, struct error *err)
{
	static const struct {
		const char *one, *other;
	} pairs[] = {
		{ "mount", "mount-only" }, { "mount", "mount-none" }, { "mount-only", "mount-none" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++)
		if (args_has(a, pairs[i].one) && args_has(a, pairs[i].other))
			return error_set(err, -EINVAL, "--%s and --%s contradict each other", pairs[i].one,
					 pairs[i].other);
	return 0;
}

/* @skip: flags to leave out, with a warning. Sets *ret_changed when one applied. */
static int apply(const struct args *a, const struct flag *skip, struct buf *yaml, bool *ret_changed,
		 struct error *err)
{
	if (check_conflicts(a, err) < 0)
		return err->code;
	for (size_t e = 0; e < ARRAY_SIZE(edits); e++) {
		for (size_t i = 0; i < a->n_given; i++) {
			if (!streq(a->given[i].flag->name, edits[e].flag))
				continue;
			if (skip && in_table(skip, edits[e].flag)) {
				log_warn("--%s is for new instances only, ignoring", edits[e].flag);
				continue;
			}
			if (apply_value(e, a->given[i].flag, a->given[i].value, yaml, err) < 0)
				return err->code;
			*ret_changed = true;
		}
	}
	return 0;
}

int edit_flags_apply(const struct args *a, struct buf *yaml, struct error *err)
{
	scoped_buf struct buf copy = { 0 };
	bool changed = false;

	buf_add(&copy, yaml->data, yaml->len);
	if (apply(a, NULL, &copy, &changed, err) < 0)
		return err->code;
	buf_done(yaml);
	*yaml = copy;
	copy = (struct buf){ 0 };
	return 0;
}

int edit_flags_apply_to_instance(const struct args *a, const struct instance *inst, struct error *err)
{
	scoped_buf struct buf yaml = { 0 };
	bool changed = false;

	if (lima_yaml_read(inst, &yaml, err) < 0 || apply(a, edit_new_flags, &yaml, &changed, err) < 0)
		return err->code;
	if (changed && lima_yaml_replace(inst, &yaml, err) < 0)
		return error_wrap(err, "these flags would break it, nothing was changed");
	return 0;
}
