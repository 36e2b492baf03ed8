/* view_filter.h - which instances `list --filter` shows
 *
 *	.status == "Running" and .config.cpus >= 2
 *	.name == "web*" or (.param.role == "db" and .protected)
 *
 * What of yq's select() asks about one instance: paths into its JSON object (.a.b,
 * .a[0], .["a b"]), text, numbers, true, false, null; == and != (text with * and ? for
 * anything, as yq has it), < <= > >=, and, or, parentheses. `and` beside `or` needs
 * parentheses: yq gives neither the preference, most languages do. Anything else of
 * yq is refused, as by --set. What is not there is null: equal to nothing else,
 * neither less nor more, and as good as false.
 *
 * Pure, and evaluated while it is read; both sides always, so what is wrong with an
 * expression is told whatever the instance is like.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "lib/base/error.h"

/* @view: of instance_view_json(). -EINVAL: @text is no such expression, or compares what
 * cannot be compared; says where. */
int view_filter(const char *text, const json_t *view, bool *ret, struct error *err);
