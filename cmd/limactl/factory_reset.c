/* factory_reset.c - an instance as it was before its first start */
#include <errno.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static int check_resettable(const struct instance *inst, struct error *err)
{
	scoped_free char *yaml = layout_instance_file(inst->dir, FILE_LIMA_YAML);

	if (inst->is_protected)
		return error_set(err, -EPERM, "`%s` is protected; first: limactl unprotect %s", inst->name,
				 inst->name);
	if (!path_exists(yaml))
		return error_set(err, -ENOENT, "%s", inst->errors.len ? inst->errors.items[0]
								      : "it has no lima.yaml");
	return 0;
}

static int reset(const char *home, const char *name, struct error *err)
{
	scoped_instance struct instance *first = NULL, *inst = NULL;
	scoped_fd int lock = -1;
	int rc = instance_inspect(home, name, &first, err);

	if (rc == -ENOENT) {
		log_info("instance `%s` does not exist, nothing to reset", name);
		return 0;
	}
	/* checked before anybody is told to give it up, and again when nobody can change it */
	if (rc < 0 || check_resettable(first, err) < 0 ||
	    instance_arg_lock(home, name, "factory-reset", true, &lock, err) < 0 ||
	    instance_inspect(home, name, &inst, err) < 0 || check_resettable(inst, err) < 0 ||
	    launch_kill(inst, err) < 0 || instance_reset(inst, err) < 0)
		return err->code;
	log_info("`%s` is as new: limactl start %s makes its disk again", name, name);
	return 0;
}

static int run(const struct args *a)
{
	const char *name = instance_arg_name(a);
	scoped_free char *home = NULL;
	struct error err = { 0 };

	interrupt_install();
	if (layout_check_name(name, &err) < 0 || layout_lima_home(&home, &err) < 0 ||
	    reset(home, name, &err) < 0)
		return verb_fail(&err);
	return 0;
}

const struct verb verb_factory_reset = {
	.name = "factory-reset",
	.group = VERB_ADVANCED,
	.usage = "[INSTANCE]",
	.summary = "throw an instance's disk away and keep its lima.yaml",
	.text = "A running machine is killed. What the guest has on its disk is lost; the next start makes a\n"
		"new one from the image. A protected instance is refused.",
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run,
};
