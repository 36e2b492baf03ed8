/* create.h - a new instance out of a template; what `create` and `start` share */
#pragma once

#include "cmd/limactl/args.h"
#include "cmd/limactl/ui.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

extern const struct flag create_flags[];	/* --name and the like */

/* Makes the instance that @a describes (its template argument, --name, edit
 * flags), with image and disk in place. When anything fails, or is interrupted,
 * nothing is left. On success the caller owns the inspected instance and its
 * lock, and the home. */
int create_instance(const struct args *a, const char *verb, struct ui *ui, char **ret_home,
		    int *ret_lock, struct instance **ret, struct error *err);

/* --list-templates, --list-drivers: prints, and true; the exit code in *ret_code. */
bool create_list(const struct args *a, int *ret_code);

/* What is new to somebody who runs this as root, or with mounts. */
void create_warn(const struct config *config);
