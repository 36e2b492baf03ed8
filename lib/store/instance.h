/* instance.h - an instance directory as the commands see it
 *
 * Inspecting never fails because of what is inside: a directory without a
 * lima.yaml, or with a broken one, is an instance with status Broken and
 * errors, and never hurts its neighbours.
 *
 * Status comes from the two pid files (reference/hostagent.md §8), or, for a QEMU
 * whose file was lost, from who listens on its control socket: both processes alive is Running, none is Stopped, one is Broken with a text that
 * tells the way out. While somebody holds the instance's lock, one alone is no
 * accident but Starting or Stopping.
 *
 * What is half made or half removed carries a name of layout's ".tmp-PID-",
 * which is never listed; the next creation sweeps those of dead processes.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/base/error.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"

enum instance_status {
	STATUS_UNKNOWN,		/* "" */
	STATUS_UNINITIALIZED, STATUS_INSTALLING, STATUS_BROKEN, STATUS_STOPPED, STATUS_RUNNING,
	STATUS_STARTING, STATUS_STOPPING,	/* ours; Lima says Broken */
	STATUS_COUNT
};
const char *instance_status_name(enum instance_status s);	/* "Running" … */

struct instance {
	char *name, *dir, *hostname, *lima_home;
	enum instance_status status;
	struct strv errors;		/* why Broken, one line each */
	struct config *config;		/* NULL when lima.yaml is missing or broken */
	struct config_problems problems;
	pid_t ha_pid, driver_pid;	/* 0: not running (checked: boot id, start time) */
	uint16_t ssh_local_port;	/* 0: never started */
	char *lima_version;		/* creating version, "" unknown */
	bool is_protected;
};

/* -ENOENT when there is no such directory; anything else inside it is told by
 * status and errors. */
int instance_inspect(const char *lima_home, const char *name, struct instance **ret,
		     struct error *err);
void instance_free(struct instance *inst);
SCOPED_DEFINE(instance, struct instance, instance_free)
#define scoped_instance SCOPED(instance)

/* Names of all instance directories, sorted; no LIMA_HOME yet is an empty list. */
int instance_list(const char *lima_home, struct strv *ret, struct error *err);

/* Makes the directory (0700) with lima.yaml (0644), lima-version (0444); built
 * under a temporary name and renamed, so an interrupted create leaves nothing.
 * Takes the creation lock (unless this process holds it). -EEXIST when the name
 * is taken. */
int instance_create(const char *lima_home, const char *name, const char *yaml, size_t yaml_len,
		    struct error *err);

/* Can there be one more of this name? -EINVAL, -ENAMETOOLONG; -EEXIST when it is taken. */
int instance_check_new(const char *lima_home, const char *name, struct error *err);

/* A second one of it: configuration, disk and what it boots with. Its keys, ports and
 * addresses it makes itself, so both can run at once; if we boot its kernel, systemd
 * in the guest gets another machine id. The caller holds @from's
 * lock and has stopped it. Appears whole or not at all; interruptible. -EEXIST
 * when the name is taken. @yaml: its lima.yaml, checked; NULL: as @from's. */
struct buf;
struct progress;
int instance_clone(const struct instance *from, const char *name, const struct buf *yaml,
		   const struct progress *progress, struct error *err);
/* The same one under another name, all its files with it but the instance-id: the guest
 * has another network card then, and sets itself up for it. */
int instance_rename(const struct instance *inst, const char *name, struct error *err);

/* Removes what the first start makes, above all the disk; what the user chose stays:
 * *.yaml, protected, lima-version, addresses and ports on the host. The caller
 * holds its lock and has stopped it. Interrupted, it can be done again. */
int instance_reset(const struct instance *inst, struct error *err);

/* Removes the directory; the caller holds its lock and has stopped it. It
 * disappears from the list at once, even when removing is interrupted. */
int instance_remove(const char *lima_home, const char *name, struct error *err);
