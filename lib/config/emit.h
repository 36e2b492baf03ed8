/* emit.h - a node as YAML text
 *
 * Two styles: on one line (flow), for values inside [..] and {..}; and in lines
 * (block) with lists not indented below their key, as Lima writes them.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/config/node.h"

/* On one line. */
void emit_flow(const struct node *n, struct buf *out);

/* "key: value\n", or the key and the lines of its value; each line starts with
 * @indent spaces. */
void emit_entry(const char *key, const struct node *value, unsigned indent, struct buf *out);

/* "- item\n", or the item's lines. */
void emit_item(const struct node *item, unsigned indent, struct buf *out);

/* A JSON object, which is YAML, written as people write YAML, "---\n" first. */
int emit_json(const char *json, size_t len, struct buf *out, struct error *err);

/* A text as a scalar on one line, quoted if it must be. */
void emit_text(const char *s, struct buf *out);
