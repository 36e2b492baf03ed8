/* expr.h - {{…}} inside values
 *
 * The part of Go's text/template that lima.yaml values use: {{.Name}},
 * {{.Param.x}}, {{"text"}}, {{- trimming -}}, comments, if / else if /
 * else / end, and the functions eq, ne, not, and, or. Everything is text; ""
 * and false are false. A value that cannot be expanded is an error here; the
 * caller warns and keeps it as it was, because scripts contain {{ for other
 * programs too (reference/lima-yaml.md §6).
 */
#pragma once

#include <stddef.h>

#include "lib/base/error.h"

enum { EXPR_MAX_BYTES = 8 << 20, EXPR_MAX_DEPTH = 32 };

struct expr_var {
	const char *name;	/* "Name", "Param.x", "Instance.Dir"; borrowed */
	const char *value;
};

struct expr_vars {
	struct expr_var *items;
	size_t len, cap;
};
void expr_vars_add(struct expr_vars *v, const char *name, const char *value);
void expr_vars_done(struct expr_vars *v);

/* @ret: caller frees; NULL when @text has no {{ at all. @ret_missing, may be
 * NULL: a .Param that does not exist and counted as "" ("Param.x"), caller
 * frees; NULL when none. */
int expr_expand(const char *text, const struct expr_vars *vars, char **ret, char **ret_missing,
		struct error *err);
