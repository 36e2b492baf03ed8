#include "cmd/limactl/instance_arg.h"

#include <errno.h>

#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"

const char *instance_arg_name(const struct args *a)
{
	return a->positional.len ? a->positional.items[0] : "default";
}

int verb_fail(const struct error *err)
{
	log_write(LOG_FATAL, "%s", err->msg);
	return interrupt_signal() ? 128 + interrupt_signal() : 1;
}

int verb_code(int code, size_t done, size_t n)
{
	return done < n && interrupt_signal() ? 128 + interrupt_signal() : code;
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

int instance_arg_open_locked(const char *name, const char *verb, char **ret_home, int *ret_lock,
			     struct instance **ret, struct error *err)
{
	scoped_instance struct instance *first = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (instance_arg_open(name, &home, &first, err) < 0 ||
	    lock_instance(first->dir, verb, &lock, err) < 0)
		return err->code;
	/* it may have changed before the lock was ours */
	if (inspect(home, name, ret, err) < 0)
		return err->code;
	*ret_home = steal_ptr(&home);
	*ret_lock = steal_fd(&lock);
	return 0;
}
