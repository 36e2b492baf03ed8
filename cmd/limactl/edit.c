/* edit.c - change the lima.yaml of an instance, or any other */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/limactl/edit_flags.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "cmd/limactl/lima_yaml.h"
#include "cmd/limactl/text_editor.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "start", 0, FLAG_BOOL, NULL, "start the instance then", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

enum { MAX_BYTES = 4 << 20 };

static const char rejected[] = "lima.REJECTED.yaml";

/* Files that have a say beside lima.yaml, as comments. */
static void add_shared(struct buf *header, const char *home, const char *name)
{
	scoped_free char *path = xasprintf("%s/_config/%s", home, name);
	scoped_buf struct buf b = { 0 };
	struct error none = { 0 };

	if (path_read_file(path, MAX_BYTES, &b, &none) < 0)
		return;
	buf_addf(header, "#\n# %s:\n", path);
	for (const char *line = buf_str(&b); *line;) {
		size_t len = strcspn(line, "\n");

		buf_addf(header, "#   %.*s\n", (int)len, line);
		line += len + (line[len] == '\n');
	}
}

/* By flags, or else in the editor. */
static int change_text(const struct args *a, const char *what, struct buf *yaml, struct error *err)
{
	scoped_buf struct buf header = { 0 };
	scoped_free char *home = NULL;

	if (edit_flags_given(a))
		return edit_flags_apply(a, yaml, err);
	if (!args_wants_tty(a) || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
		return error_set(err, -EINVAL, "no terminal for an editor; change single keys with flags: "
				 "limactl edit %s --set '.cpus = 2'", what);
	if (layout_lima_home(&home, err) < 0)
		return err->code;
	buf_addf(&header, "# %s\n# Nothing is changed when you leave nothing, or leave it as it is.\n", what);
	add_shared(&header, home, "default.yaml");
	add_shared(&header, home, "override.yaml");
	return text_editor_run(buf_str(&header), yaml, err);
}

static bool is_same(const struct buf *a, const struct buf *b)
{
	return a->len == b->len && (!a->len || memcmp(a->data, b->data, a->len) == 0);
}

/* What was typed must not be lost. */
static int keep_rejected(const struct args *a, const struct buf *yaml, struct error *err)
{
	struct error why = { 0 };

	if (edit_flags_given(a))
		return error_append(err, "; nothing was changed");
	if (path_write_file(rejected, yaml->data, yaml->len, 0600, &why) < 0)
		log_warn("%s", why.msg);
	else
		log_info("what you wrote is in ./%s", rejected);
	return error_append(err, "; nothing was changed");
}

static int check_stopped(const struct instance *inst, struct error *err)
{
	if (!inst->ha_pid && !inst->driver_pid)
		return 0;
	return error_set(err, -EBUSY, "`%s` is running; stop it first, or change it with the flags of: "
			 "limactl restart %s", inst->name, inst->name);
}

static int edit_instance(const struct args *a, const char *name, struct ui *ui, struct error *err)
{
	struct launch_options opts = { .timeout_ms = LAUNCH_TIMEOUT_MS };
	scoped_instance struct instance *inst = NULL;
	scoped_buf struct buf before = { 0 }, after = { 0 };
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(name, "edit", false, &home, &lock, &inst, err) < 0 ||
	    check_stopped(inst, err) < 0 || lima_yaml_read(inst, &before, err) < 0)
		return err->code;
	buf_add(&after, before.data, before.len);
	if (change_text(a, name, &after, err) < 0)
		return err->code;
	if (is_same(&before, &after))
		log_info("`%s`: nothing was changed", name);
	else if (lima_yaml_replace(inst, &after, err) < 0)
		return keep_rejected(a, &after, err);
	else
		log_info("`%s` was changed", name);
	return args_bool(a, "start", false) ? launch_again(inst, &opts, ui, err) : 0;
}

/* It stays where it is, behind symbolic links, too, and nobody else's to read. */
static int replace_file(const char *path, const struct buf *yaml, struct error *err)
{
	scoped_free char *real = realpath(path, NULL);
	struct stat st;

	if (!real || stat(real, &st) < 0)
		return error_sys(err, -errno, "open %s", path);
	return path_write_file(real, yaml->data, yaml->len, st.st_mode & 0777, err);
}

/* Any other file: it need not be whole, a base is none by itself. */
static int edit_file(const struct args *a, const char *path, struct error *err)
{
	scoped_buf struct buf before = { 0 }, after = { 0 };

	if (args_bool(a, "start", false))
		return error_set(err, -EINVAL, "--start goes with an instance, not with a file");
	if (path_read_file(path, MAX_BYTES, &before, err) < 0)
		return err->code;
	buf_add(&after, before.data, before.len);
	if (change_text(a, path, &after, err) < 0)
		return err->code;
	if (is_same(&before, &after)) {
		log_info("`%s`: nothing was changed", path);
		return 0;
	}
	return replace_file(path, &after, err);
}

static int edit(const struct args *a, struct ui *ui, struct error *err)
{
	const char *arg = instance_arg_name(a);
	struct error ignored = { 0 };

	if (layout_check_name(arg, &ignored) == 0)
		return edit_instance(a, arg, ui, err);
	return edit_file(a, arg, err);
}

static int run(const struct args *a)
{
	return verb_with_ui(a, edit);
}

const struct verb verb_edit = {
	.name = "edit",
	.group = VERB_BASIC,
	.usage = "[INSTANCE|FILE]",
	.summary = "change the lima.yaml of a stopped instance",
	.text = "By flags, or without one in $VISUAL or $EDITOR. What is no valid configuration is refused and\n"
		"kept as ./lima.REJECTED.yaml. A FILE (a name with a slash or .yaml) is changed in place.",
	.examples = "  limactl edit web\n"
		    "  limactl edit web --cpus 4 --start\n"
		    "  limactl edit ./web.yaml --set '.env.EDITOR = \"vim\"'",
	.flags = (const struct flag *const[]){ flags, edit_flags, NULL },
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run,
};
