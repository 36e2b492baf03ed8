#include "cmd/limactl/instance_arg.h"

#include <errno.h>
#include <signal.h>

#include "cmd/limactl/launch.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"

enum { TAKE_OVER_MS = 30 * 1000 };	/* a killed machine leaves the holder little to undo */

const char *instance_arg_name(const struct args *a)
{
	return a->positional.len ? a->positional.items[0] : "default";
}

int verb_fail(const struct error *err)
{
	log_write(LOG_FATAL, "%s", err->msg);
	return interrupt_signal() ? 128 + interrupt_signal() : 1;
}

int verb_with_ui(const struct args *a,
		 int (*work)(const struct args *a, struct ui *ui, struct error *err))
{
	struct ui *ui = ui_new(args_wants_tty(a));
	struct error err = { 0 };
	int rc;

	interrupt_install();
	rc = work(a, ui, &err);
	ui_free(ui);
	return rc < 0 ? verb_fail(&err) : 0;
}

int verb_for_each(const struct args *a, const char *fallback,
		  int (*each)(const char *word, void *arg, struct error *err), void *arg)
{
	size_t i, n = a->positional.len ? a->positional.len : fallback ? 1 : 0;
	struct error err = { 0 };
	int code = 0;

	interrupt_install();
	for (i = 0; i < n && !interrupt_pending(); i++)
		if (each(a->positional.len ? a->positional.items[i] : fallback, arg, &err) < 0)
			code = verb_fail(&err);
	return i < n && interrupt_signal() ? 128 + interrupt_signal() : code;
}

static int inspect(const char *home, const char *name, struct instance **ret, struct error *err)
{
	int rc = instance_inspect(home, name, ret, err);

	if (rc == -ENOENT)
		return error_set(err, rc, "instance `%s` does not exist; create it with: limactl start %s",
				 name, name);
	return rc;
}

int instance_arg_open(const char *name, char **ret_home, struct instance **ret, struct error *err)
{
	scoped_free char *home = NULL;

	if (layout_check_name(name, err) < 0 || layout_lima_home(&home, err) < 0 ||
	    inspect(home, name, ret, err) < 0)
		return err->code;
	*ret_home = steal_ptr(&home);
	return 0;
}

int instance_arg_check_running(const struct instance *inst, struct error *err)
{
	if (inst->status == STATUS_RUNNING && inst->config && inst->ssh_local_port)
		return 0;
	if (inst->status == STATUS_BROKEN)
		return error_set(err, -EIO, "instance `%s` is broken: %s", inst->name,
				 inst->errors.len ? inst->errors.items[0] : "no reason known");
	return error_set(err, -ESRCH, "instance `%s` is not running; start it with: limactl start %s",
			 inst->name, inst->name);
}

/* Ends what the holder waits for, and the holder: it undoes what it began. */
static int take_over(const char *home, const char *name, const char *dir, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	struct lock_holder holder;

	if (lock_instance_holder(dir, &holder) && holder.pid > 0 && kill(holder.pid, SIGTERM) == 0)
		log_info("`limactl %s` (pid %d) is told to give up `%s`", holder.verb, (int)holder.pid,
			 name);
	if (inspect(home, name, &inst, err) < 0)
		return err->code;
	return launch_kill(inst, err);
}

int instance_arg_lock(const char *home, const char *name, const char *verb, bool force, int *ret_lock,
		      struct error *err)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	int rc = lock_instance(dir, verb, ret_lock, err);

	if (rc != -EBUSY)
		return rc;
	if (!force) {
		scoped_free char *hint = xasprintf("; wait for it, or end it: limactl stop -f %s", name);
		return error_append(err, hint);
	}
	if (take_over(home, name, dir, err) < 0)
		return err->code;
	return lock_instance_wait(dir, verb, TAKE_OVER_MS, ret_lock, err);
}

int instance_arg_open_locked(const char *name, const char *verb, bool force, char **ret_home,
			     int *ret_lock, struct instance **ret, struct error *err)
{
	scoped_instance struct instance *first = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open(name, &home, &first, err) < 0 ||
	    instance_arg_lock(home, name, verb, force, &lock, err) < 0)
		return err->code;
	/* it may have changed before the lock was ours */
	if (inspect(home, name, ret, err) < 0)
		return err->code;
	*ret_home = steal_ptr(&home);
	*ret_lock = steal_fd(&lock);
	return 0;
}
