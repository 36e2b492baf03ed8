/* start.c - start an instance, creating it first if need be */
#include <errno.h>

#include "cmd/limactl/create.h"
#include "cmd/limactl/edit_flags.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "timeout", 0, FLAG_DURATION, "DURATION", "how long to wait for READY (default 10m)", false },
	{ "progress", 0, FLAG_BOOL, NULL, "taken for Lima's sake: progress is always shown", false },
	{ "foreground", 0, FLAG_BOOL, NULL, "run the host agent here instead of in the background", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* The name of an existing instance that the arguments mean; NULL: create one. */
static char *existing(const struct args *a)
{
	const char *arg = a->positional.len ? a->positional.items[0] : args_str(a, "name");
	const char *name = arg ? arg : "default";
	scoped_free char *home = NULL, *dir = NULL;
	struct error ignored = { 0 };

	if (a->positional.len && args_has(a, "name"))
		return NULL; /* a template, and a name for what comes of it */
	if (layout_check_name(name, &ignored) < 0 || layout_lima_home(&home, &ignored) < 0)
		return NULL;
	dir = layout_instance_dir(home, name);
	return path_exists(dir) ? xstrdup(name) : NULL;
}

static int check_startable(const struct instance *inst, struct error *err)
{
	if (inst->config)
		return 0;
	return error_set(err, -EINVAL, "%s", inst->errors.len ? inst->errors.items[0]
							      : "its lima.yaml cannot be read");
}

static int open_existing(const struct args *a, const char *name, struct ui *ui, char **ret_home,
			 int *ret_lock, struct instance **ret, struct error *err)
{
	scoped_instance struct instance *before = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open_locked(name, "start", false, &home, &lock, &before, err) < 0 ||
	    check_startable(before, err) < 0)
		return err->code;
	if (before->status != STATUS_RUNNING &&
	    (edit_flags_apply_to_instance(a, before, err) < 0 ||
	     instance_inspect(home, name, ret, err) < 0 || check_startable(*ret, err) < 0))
		return err->code;
	if (before->status == STATUS_RUNNING && edit_flags_given(a))
		log_warn("`%s` is running, the flags that change it are ignored; use: limactl restart",
			 name);
	if (!*ret)
		*ret = steal_ptr(&before);
	if ((*ret)->status != STATUS_RUNNING) {
		create_warn((*ret)->config);
		/* a machine that runs without its host agent is adopted as it is */
		if (!(*ret)->driver_pid && launch_prepare(*ret, ui, err) < 0)
			return err->code;
	}
	*ret_home = steal_ptr(&home);
	*ret_lock = steal_fd(&lock);
	return 0;
}

static int start(const struct args *a, struct ui *ui, struct error *err)
{
	struct launch_options opts = {
		.timeout_ms = args_duration_ms(a, "timeout", LAUNCH_TIMEOUT_MS),
		.foreground = args_bool(a, "foreground", false),
	};
	scoped_instance struct instance *inst = NULL;
	scoped_free char *name = existing(a), *home = NULL;
	scoped_fd int lock = -1;
	int rc;

	if (name)
		rc = open_existing(a, name, ui, &home, &lock, &inst, err);
	else
		rc = create_instance(a, "start", ui, &home, &lock, &inst, err);
	if (rc < 0)
		return name ? error_wrap(err, "start %s", name) : rc;
	if (inst->status == STATUS_RUNNING) {
		log_info("`%s` is running already; open a shell with: limactl shell %s", inst->name,
			 inst->name);
		return 0;
	}
	if (launch_start(inst, &opts, ui, err) < 0)
		return error_wrap(err, "start %s", inst->name);
	return 0;
}

static int run(const struct args *a)
{
	int code;

	return create_list(a, &code) ? code : verb_with_ui(a, start);
}

const struct verb verb_start = {
	.name = "start",
	.group = VERB_BASIC,
	.usage = "[INSTANCE|TEMPLATE]",
	.summary = "start an instance; without a name `default`, created if need be",
	.text = "With the name of an existing instance, starts it; flags change its lima.yaml first. Otherwise\n"
		"creates one from TEMPLATE (a file, template:NAME, an http(s) URL, - for stdin) and starts it.\n"
		"\n"
		"READY means: ssh answers, provisioning is done, and every port that listens in the guest\n"
		"is forwarded. Ctrl-C takes back what was begun.",
	.examples = "  limactl start\n"
		    "  limactl start template:debian-13 --name web --cpus 2 --memory 2\n"
		    "  limactl start ./web.yaml",
	.flags = (const struct flag *const[]){ flags, create_flags, edit_flags, edit_new_flags, NULL },
	.max_args = 1,
	.arg = ARG_INSTANCE_OR_TEMPLATE,
	.run = run,
};
