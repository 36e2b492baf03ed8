/* validate.h - can this machine's QEMU run that configuration
 *
 * Blocking, for limactl before a host agent exists. Each failure is one line
 * with its remedy, so that nobody has to read QEMU's log to learn that a
 * package is missing.
 */
#pragma once

#include "drivers/driver.h"

int qemu_validate(const struct driver_spec *spec, struct strv *warnings, struct error *err);
