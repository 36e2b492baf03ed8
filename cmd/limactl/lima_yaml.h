/* lima_yaml.h - the lima.yaml of an instance, read and replaced
 *
 * As text, so that comments survive. Who replaces it holds the instance's lock.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

int lima_yaml_read(const struct instance *inst, struct buf *ret, struct error *err);
/* Could @inst, which need not be there yet, have this text? Errors as below. */
int lima_yaml_check(const struct instance *inst, const struct buf *yaml, struct error *err);
/* Warnings are logged, and errors when there are several. A text that is no
 * configuration, or wants a smaller disk, is refused and changes nothing. */
int lima_yaml_replace(const struct instance *inst, const struct buf *yaml, struct error *err);
