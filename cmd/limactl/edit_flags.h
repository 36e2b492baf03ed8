/* edit_flags.h - flags that change lima.yaml: --cpus 4, --set '.user.shell = "/bin/zsh"'
 *
 * A table from flag to key. They are applied to the text, so that comments in it
 * survive, in the order of the table (reference/cli.md §2).
 */
#pragma once

#include "cmd/limactl/args.h"
#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

extern const struct flag edit_flags[];		/* create, start, restart */
extern const struct flag edit_new_flags[];	/* create and start of a new instance only */

/* Changes the YAML text in @yaml as the flags in @a say: all of them, or nothing. */
int edit_flags_apply(const struct args *a, struct buf *yaml, struct error *err);
/* Is there a flag that would change an existing instance? */
bool edit_flags_given(const struct args *a);
/* Changes an existing instance's lima.yaml, checked first; no flag, no write.
 * Flags for new instances only are warned about and ignored. */
int edit_flags_apply_to_instance(const struct args *a, const struct instance *inst,
				 struct error *err);
