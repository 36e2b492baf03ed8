/* clone.c - `clone` and `rename`: a stopped instance twice, or under another name */
#include <errno.h>
#include <unistd.h>

#include "cmd/limactl/edit_flags.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "cmd/limactl/lima_yaml.h"
#include "hostagent/ssh.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "start", 0, FLAG_BOOL, NULL, "start it then", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int open_stopped(const struct args *a, const char *verb, char **ret_home, int *ret_lock,
			struct instance **ret, struct error *err)
{
	const char *from = a->positional.items[0], *to = a->positional.items[1];

	if (layout_check_name(to, err) < 0 ||
	    instance_arg_open_locked(from, verb, false, ret_home, ret_lock, ret, err) < 0)
		return err->code;
	if ((*ret)->ha_pid || (*ret)->driver_pid)
		return error_set(err, -EBUSY, "`%s` is running; stop it first: limactl stop %s", from, from);
	if (!(*ret)->config)
		return error_set(err, -EINVAL, "%s", (*ret)->errors.len ? (*ret)->errors.items[0] : "broken");
	return instance_check_new(*ret_home, to, err);
}

/* What --start is about, under its own lock. */
static int start_it(const char *name, struct ui *ui, struct error *err)
{
	struct launch_options opts = { .timeout_ms = LAUNCH_TIMEOUT_MS };
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(name, "start", false, &home, &lock, &inst, err) < 0)
		return err->code;
	return launch_again(inst, &opts, ui, err);
}

/* Its lima.yaml as the flags change it: asked for before anything is copied, so that a
 * clone that they would break is never there. */
static int clone_yaml(const struct args *a, const struct instance *from, const char *name,
		      struct buf *ret, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(from->lima_home, name);
	struct instance to = *from;	/* borrowed, but for who it is */
	scoped_free char *own_name = xstrdup(name);

	to.name = own_name;
	to.dir = dir;
	if (lima_yaml_read(from, ret, err) < 0 || edit_flags_apply(a, ret, err) < 0)
		return err->code;
	if (lima_yaml_check(&to, ret, err) < 0)
		return error_wrap(err, "these flags would break it, nothing was made");
	return 0;
}

static int make_clone(const struct args *a, const struct instance *from, const char *name,
		      struct ui *ui, struct error *err)
{
	scoped_buf struct buf yaml = { 0 };
	bool changed = edit_flags_given(a);

	if (changed && clone_yaml(a, from, name, &yaml, err) < 0)
		return err->code;
	return instance_clone(from, name, changed ? &yaml : NULL, ui_progress(ui), err);
}

static int clone(const struct args *a, struct ui *ui, struct error *err)
{
	const char *name = a->positional.items[1];
	scoped_instance struct instance *from = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (open_stopped(a, "clone", &home, &lock, &from, err) < 0)
		return err->code;
	if (make_clone(a, from, name, ui, err) < 0)
		return error_wrap(err, "clone %s", from->name);
	log_info("`%s` is a clone of `%s`", name, from->name);
	return args_bool(a, "start", false) ? start_it(name, ui, err) : 0;
}

/* It has the name and the directory in it, and others may include it: an instance that
 * takes the old name would be looked for at this one's port. The port stays. */
static void rewrite_ssh_config(const char *home, const char *name)
{
	scoped_instance struct instance *inst = NULL;
	struct error err = { 0 };
	struct ssh_target t;

	if (instance_inspect(home, name, &inst, &err) < 0 || !inst->config || !inst->ssh_local_port)
		return;
	ssh_target_init(&t, home, name, inst->dir, inst->config, inst->ssh_local_port);
	if (ssh_config_write(&t, &err) < 0)
		log_warn("%s, ignoring", err.msg);
	ssh_target_done(&t);
}

static int rename_instance(const struct args *a, struct ui *ui, struct error *err)
{
	const char *name = a->positional.items[1];
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (open_stopped(a, "rename", &home, &lock, &inst, err) < 0)
		return err->code;
	if (edit_flags_apply_to_instance(a, inst, err) < 0 || instance_rename(inst, name, err) < 0)
		return error_wrap(err, "rename %s", inst->name);
	rewrite_ssh_config(home, name);
	log_info("`%s` is called `%s` now", inst->name, name);
	if (!args_bool(a, "start", false))
		return 0;
	close(steal_fd(&lock));
	return start_it(name, ui, err);
}

static int run_clone(const struct args *a)
{
	return verb_with_ui(a, clone);
}

static int run_rename(const struct args *a)
{
	return verb_with_ui(a, rename_instance);
}

const struct verb verb_clone = {
	.name = "clone",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE NEW-NAME",
	.summary = "make a second instance of a stopped one",
	.text = "With a copy of its disk, shared where the file system can. Flags change the clone's lima.yaml.\n"
		"Both can run at once, unless ssh.localPort names a port.\n"
		"The guest gets a machine id of its own if limactl boots its kernel, as for images built here. A\n"
		"disk that boots by itself keeps its /etc/machine-id: empty that in the clone and restart it.",
	.examples = "  limactl clone web web-test\n  limactl clone web big --cpus 8 --memory 16 --start",
	.flags = (const struct flag *const[]){ flags, edit_flags, NULL },
	.min_args = 2,
	.max_args = 2,
	.arg = ARG_INSTANCE_FIRST,
	.run = run_clone,
};

const struct verb verb_rename = {
	.name = "rename",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE NEW-NAME",
	.summary = "give a stopped instance another name",
	.text = "The guest's own host name and network follow with the next start; for cloud-init it is a first one.",
	.flags = (const struct flag *const[]){ flags, edit_flags, NULL },
	.min_args = 2,
	.max_args = 2,
	.arg = ARG_INSTANCE_FIRST,
	.run = run_rename,
};
