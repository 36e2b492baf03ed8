/* stop.c - stop instances */
#include "cmd/limactl/stop.h"

#include <errno.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

static const struct flag flags[] = {
	{ "force", 'f', FLAG_BOOL, NULL, "kill the machine at once; unsaved data in the guest is lost", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

int stop_instance(const struct instance *inst, bool force, struct ui *ui, struct error *err)
{
	uint64_t began = clock_mono_ms();

	if (force) {
		if (launch_kill(inst, err) < 0)
			return error_wrap(err, "stop %s", inst->name);
		ui_note(ui, "`%s` was killed", inst->name);
		return 0;
	}
	if (!inst->ha_pid && !inst->driver_pid)
		return error_set(err, -ESRCH, "`%s` is not running (%s)%s%s", inst->name,
				 instance_status_name(inst->status), inst->errors.len ? ": " : "",
				 inst->errors.len ? inst->errors.items[0] : "");
	if (launch_stop(inst, ui, err) < 0)
		return error_wrap(err, "stop %s", inst->name);
	ui_note(ui, "`%s` stopped in %.1f s", inst->name, (double)(clock_mono_ms() - began) / 1000);
	return 0;
}

struct stop {
	bool force;
	struct ui *ui;
};

static int stop_name(const char *name, void *arg, struct error *err)
{
	const struct stop *s = arg;
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(name, "stop", s->force, &home, &lock, &inst, err) < 0)
		return err->code;
	return stop_instance(inst, s->force, s->ui, err);
}

static int run(const struct args *a)
{
	struct stop s = {
		.force = args_bool(a, "force", false), .ui = ui_new(args_wants_tty(a)),
	};
	int code = verb_for_each(a, "default", stop_name, &s);

	ui_free(s.ui);
	return code;
}

const struct verb verb_stop = {
	.name = "stop",
	.group = VERB_BASIC,
	.usage = "[INSTANCE…]",
	.summary = "stop instances (`default` without a name)",
	.text = "Asks the guest to power off and waits for it. When it does not answer, QEMU is told to\n"
		"quit, then ended. With --force it is killed at once, together with its host agent.",
	.examples = "  limactl stop\n  limactl stop -f web db",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = -1,
	.arg = ARG_INSTANCE,
	.run = run,
};
