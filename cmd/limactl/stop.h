/* stop.h - stopping, for the verbs that begin with it (restart, delete -f) */
#pragma once

#include <stdbool.h>

#include "cmd/limactl/ui.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

/* The caller holds the lock. Not running is -ESRCH unless @force. */
int stop_instance(const struct instance *inst, bool force, struct ui *ui, struct error *err);
