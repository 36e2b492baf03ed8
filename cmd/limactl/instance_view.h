/* instance_view.h - what programs see of an instance: JSON, YAML, {{template}}
 *
 * One JSON object with Lima's keys in Lima's order (reference/cli.md §3); YAML is
 * the same object written otherwise. Templates name the object's values as Go
 * does, {{.SSHLocalPort}}, and may use what values of lima.yaml may
 * (lib/config/expr.h): if, eq, and so on. What is a list or a map has no place in them.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

json_t *instance_view_json(const struct instance *inst);	/* the caller releases it */
/* One document, "---\n" first. */
int instance_view_yaml(const json_t *view, struct buf *ret, struct error *err);
/* @template expanded, with a line's end. An unknown field is an error that says
 * where they are listed. */
int instance_view_template(const json_t *view, const char *template, struct buf *ret,
			   struct error *err);
/* What a template may name, one a line. */
void instance_view_fields(FILE *out);
