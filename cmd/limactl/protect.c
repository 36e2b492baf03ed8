/* protect.c - `protect` and `unprotect`: may an instance be deleted or reset */
#include <errno.h>
#include <unistd.h>

#include "cmd/limactl/instance_arg.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static int set_protected(const struct instance *inst, bool protect, struct error *err)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_PROTECTED);

	if (protect)
		return path_write_file(path, "", 0, 0400, err);
	return unlink(path) < 0 ? error_sys(err, -errno, "remove %s", path) : 0;
}

static int change(const char *name, bool protect, struct error *err)
{
	const char *verb = protect ? "protect" : "unprotect";
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(name, verb, false, &home, &lock, &inst, err) < 0)
		return err->code;
	if (inst->is_protected == protect) {
		log_warn("`%s` is %s already", name, protect ? "protected" : "unprotected");
		return 0;
	}
	if (set_protected(inst, protect, err) < 0)
		return error_wrap(err, "%s %s", verb, name);
	if (protect)
		log_info("`%s` is protected: it cannot be deleted or reset until: limactl unprotect %s",
			 name, name);
	else
		log_info("`%s` is not protected any more", name);
	return 0;
}

static int protect_name(const char *name, void *arg, struct error *err)
{
	return change(name, true, err);
}

static int unprotect_name(const char *name, void *arg, struct error *err)
{
	return change(name, false, err);
}

static int run_protect(const struct args *a)
{
	return verb_for_each(a, NULL, protect_name, NULL);
}

static int run_unprotect(const struct args *a)
{
	return verb_for_each(a, NULL, unprotect_name, NULL);
}

const struct verb verb_protect = {
	.name = "protect",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE…",
	.summary = "keep instances from being deleted",
	.text = "delete and factory-reset refuse a protected instance, with --force too. It can be started,\n"
		"stopped and changed as before.",
	.min_args = 1,
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run_protect,
};

const struct verb verb_unprotect = {
	.name = "unprotect",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE…",
	.summary = "let protected instances be deleted again",
	.min_args = 1,
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run_unprotect,
};
