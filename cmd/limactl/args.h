/* args.h - a command line, taken apart by the verb's flag tables
 *
 * The rules are Lima's (reference/cli.md §1): --f v, --f=v, -abc, -fv, `--`;
 * flags may follow positionals unless the verb stops at the first; a bool is
 * set to false only by --f=false. Values are checked here, so a verb never sees
 * a malformed number; a bool's is "true" or "false", however it was spelt.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cmd/limactl/verb.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"

struct args {
	const struct verb *verb;
	struct strv positional;
	struct {
		const struct flag *flag;
		char *value;
	} *given;		/* in the order of the command line */
	size_t n_given;
};

/* @argv: what follows the verb. */
int args_parse(const struct verb *verb, int argc, char **argv, struct args *ret,
	       struct error *err);
void args_done(struct args *a);
#define scoped_args __attribute__((cleanup(args_done)))

/* Was it given at all? Names are of the verb's tables or the global one;
 * anything else is our bug. */
bool args_has(const struct args *a, const char *name);
bool args_bool(const struct args *a, const char *name, bool fallback);
/* False by --tty=false or --yes: plain lines even on a terminal. */
bool args_wants_tty(const struct args *a);
const char *args_str(const struct args *a, const char *name); /* last one; NULL */
double args_float(const struct args *a, const char *name);
uint64_t args_int(const struct args *a, const char *name);
/* Milliseconds; @fallback_ms when not given. */
uint64_t args_duration_ms(const struct args *a, const char *name, uint64_t fallback_ms);
/* All values, lists split at commas, appended to @ret. */
void args_list(const struct args *a, const char *name, struct strv *ret);

/* "10m", "1h30m", "1.5s", "500ms" in milliseconds; false when it is none. */
bool args_parse_duration(const char *s, uint64_t *ret_ms);
