/* edit_text.h - where a node's lines begin and end, and changing them
 *
 * The middle layer between edit.h (paths and values as text) and the bytes:
 * one open editor holds a text and its tree; every change splices the text and
 * reads it again. embed.c uses it directly, with nodes and source lines of
 * another file.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/config/edit.h"
#include "lib/config/edit_path.h"
#include "lib/config/node.h"

struct editor {
	struct buf text;
	struct node_pool *pool;		/* of the tree; also for values to put in */
	struct node *root;
};

/* Copies @text. */
int editor_open(struct editor *e, const char *name, const struct buf *text, struct error *err);
void editor_close(struct editor *e);
#define scoped_editor __attribute__((cleanup(editor_close)))

/* @source: the entry's or item's lines as editor_source() gave them, used
 * instead of writing @value anew where the place allows; NULL: none. */
int editor_set(struct editor *e, const struct edit_path *p, const struct node *value,
	       const char *source, struct error *err);
int editor_add(struct editor *e, const struct edit_path *p, enum edit_place place,
	       const struct node *value, const char *source, struct error *err);
int editor_delete(struct editor *e, const struct edit_path *p, struct error *err);

/* The lines of a key or item with the comments right above it, moved to the
 * left margin; caller frees. NULL when it has no lines of its own (inside {} or
 * [], or with aliases). */
char *editor_source(const struct node *n);
