/* template_arg.h - what the argument of create, start and validate names
 *
 * A path, `template:NAME`, an http(s) URL, `-` for stdin; none, or a bare word,
 * is the template `default` (reference/lima-yaml.md §2).
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/progress.h"
#include "lib/config/config.h"
#include "lib/config/locator.h"

struct template_arg {
	char *shown;	/* for messages: as given */
	char *name;	/* instance name that follows from it; NULL: none (stdin) */
	struct buf yaml;	/* bases embedded */
};
void template_arg_done(struct template_arg *t);

/* @arg NULL: `template:default`. */
int template_arg_read(const char *arg, const char *lima_home, const struct progress *progress,
		      struct template_arg *ret, struct error *err);

/* All templates that `template:NAME` finds, sorted; free with locator_list_free(). */
int template_arg_list(const char *lima_home, struct locator_template **ret, size_t *ret_n,
		      struct error *err);

/* Loads the text as the instance @name would. Warnings and all errors are
 * logged, one a line; the error then says how many there were. */
int template_arg_check(const struct template_arg *t, const char *lima_home, const char *name,
		       struct config **ret, struct error *err);
