/* restart.c - stop, then start */
#include <errno.h>

#include "cmd/limactl/edit_flags.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "cmd/limactl/stop.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

static const struct flag flags[] = {
	{ "force", 'f', FLAG_BOOL, NULL, "kill the machine instead of stopping it", false },
	{ "progress", 0, FLAG_BOOL, NULL, "taken for Lima's sake: progress is always shown", false },
	{ "timeout", 0, FLAG_DURATION, "DURATION", "how long to wait for READY (default 10m)", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int stop_first(const struct instance *inst, bool force, struct ui *ui, struct error *err)
{
	int rc = stop_instance(inst, force, ui, err);

	if (rc == -ESRCH) {
		log_warn("%s", err->msg);
		*err = ERROR_NONE;
		return 0;
	}
	return rc;
}

static int restart(const struct args *a, struct ui *ui, struct error *err)
{
	struct launch_options opts = {
		.timeout_ms = args_duration_ms(a, "timeout", LAUNCH_TIMEOUT_MS),
	};
	scoped_instance struct instance *before = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(instance_arg_name(a), "restart", false, &home, &lock, &before,
				     err) < 0 ||
	    edit_flags_apply_to_instance(a, before, err) < 0 ||
	    stop_first(before, args_bool(a, "force", false), ui, err) < 0)
		return err->code;
	if (launch_again(before, &opts, ui, err) < 0)
		return error_wrap(err, "restart %s", before->name);
	return 0;
}

static int run(const struct args *a)
{
	return verb_with_ui(a, restart);
}

const struct verb verb_restart = {
	.name = "restart",
	.group = VERB_ADVANCED,
	.usage = "[INSTANCE]",
	.summary = "stop an instance and start it again",
	.text = "Changes given by flags are written to its lima.yaml first.",
	.flags = (const struct flag *const[]){ flags, edit_flags, NULL },
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run,
};
