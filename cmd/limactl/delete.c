/* delete.c - remove instances and their disks */
#include <errno.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "cmd/limactl/ui.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "force", 'f', FLAG_BOOL, NULL, "also when it is running or broken: kill it first", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int check_deletable(const struct instance *inst, bool force, struct error *err)
{
	if (inst->is_protected)
		return error_set(err, -EPERM, "`%s` is protected; first: limactl unprotect %s", inst->name,
				 inst->name);
	if (force)
		return 0;
	if (inst->ha_pid || inst->driver_pid)
		return error_set(err, -EBUSY, "`%s` is running; stop it first, or: limactl delete -f %s",
				 inst->name, inst->name);
	return 0;
}

static int delete_name(const char *name, void *arg, struct error *err)
{
	bool force = *(bool *)arg;
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL, *dir = NULL, *protected = NULL;
	scoped_fd int lock = -1;

	if (layout_check_name(name, err) < 0 || layout_lima_home(&home, err) < 0)
		return err->code;
	dir = layout_instance_dir(home, name);
	if (!path_exists(dir)) {
		log_warn("instance `%s` does not exist, nothing to delete", name);
		return 0;
	}
	protected = layout_instance_file(dir, FILE_PROTECTED);
	if (instance_arg_lock(home, name, "delete", force && !path_exists(protected), &lock, err) < 0) {
		if (err->code != -ENOENT || path_exists(dir))
			return err->code;
		log_info("`%s` was deleted", name); /* its creation was undone */
		return 0;
	}
	if (instance_inspect(home, name, &inst, err) < 0)
		return err->code;
	if (check_deletable(inst, force, err) < 0 || (force && launch_kill(inst, err) < 0) ||
	    instance_remove(home, name, err) < 0)
		return err->code;
	log_info("`%s` was deleted", name);
	return 0;
}

static int run(const struct args *a)
{
	bool force = args_bool(a, "force", false);

	return verb_for_each(a, NULL, delete_name, &force);
}

const struct verb verb_delete = {
	.name = "delete",
	.aliases = "remove rm",
	.group = VERB_BASIC,
	.usage = "INSTANCE…",
	.summary = "delete instances with their disks",
	.text = "An instance must be stopped first unless --force is given. One whose lima.yaml is missing\n"
		"or broken can be deleted too.",
	.flags = (const struct flag *const[]){ flags, NULL },
	.min_args = 1,
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run,
};
