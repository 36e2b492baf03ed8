/* node.h - YAML as a tree that remembers where everything was written
 *
 * node_parse() turns libyaml's events into nodes. A node knows its file, line
 * and column (for messages), its byte range (for edit.c, which changes a text
 * and keeps its comments) and its parent, so that a message can name it:
 * `portForwards[0].guestPort`. Merging builds new maps and lists out of nodes
 * of several files; a node keeps the parent it was written under, so its name
 * stays the one the user knows.
 *
 * A child of a map carries its key. Keys are unique. Nodes and their texts live
 * in a pool and are freed with it, never one by one.
 *
 * What a text may cost is bounded: NODE_MAX_* below. Aliases are copied where
 * they stand and count, so ten lines of nested aliases cannot ask for
 * gigabytes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/scoped.h"

enum {
	NODE_MAX_TEXT = 4 << 20,	/* bytes of a file; Lima's bound too */
	NODE_MAX_DEPTH = 64,
	NODE_MAX_KEYS = 10000,		/* of one map; each is compared with all others */
	NODE_MAX_COUNT = 200000,	/* nodes of one text, copies of aliases included */
	NODE_MAX_COPIED = 16 << 20,	/* bytes of text copied by aliases */
};

enum node_kind {
	NODE_NULL, NODE_BOOL, NODE_INT, NODE_FLOAT, NODE_STRING, NODE_LIST, NODE_MAP,
	NODE_BAD,	/* was refused; stays in place so that nothing complains twice */
};

struct node_file {		/* one parsed text */
	const char *name;	/* as shown in messages */
	const char *text;	/* borrowed; valid as long as the caller keeps it */
	size_t len;
};

struct node {
	enum node_kind kind;
	bool flow;			/* list, map: written [..] or {..} */
	bool block_scalar;		/* string: written | or > */
	bool alias;			/* written *name; what is inside is written elsewhere */
	bool copied;			/* inside an alias, or came by `<<`: not at its own place */
	bool quoted;			/* string: written in quotes */
	const struct node_file *file;	/* NULL: made by us, not written anywhere */
	unsigned line, col;		/* 1-based, of the value; 0 when made by us */
	size_t start, end;		/* [start, end) of the value in file->text, in characters as
					 * libyaml counts; node_byte() turns them into bytes */

	const char *key;		/* NULL unless child of a map */
	unsigned key_line, key_col;
	size_t key_start;
	unsigned index;			/* place in the list it was written in */
	const struct node *parent;	/* where it was written */

	const char *text;		/* scalar as written (unquoted, unescaped); never NULL */
	size_t text_len;
	int64_t num;			/* INT; SIZE after the schema's check; BOOL 0 or 1 */

	struct node **items;		/* list, map */
	size_t n_items, cap;
};

struct node_pool;
struct node_pool *node_pool_new(void);
void node_pool_free(struct node_pool *pool);
SCOPED_DEFINE(node_pool, struct node_pool, node_pool_free)
#define scoped_node_pool SCOPED(node_pool)

void *node_pool_alloc(struct node_pool *pool, size_t size);	/* zeroed */
char *node_pool_strn(struct node_pool *pool, const char *s, size_t len);
char *node_pool_printf(struct node_pool *pool, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* @text must outlive the pool. An empty text, or one of comments only, is a
 * NODE_NULL. @err: "file:line:col: what". */
int node_parse(struct node_pool *pool, const char *file, const char *text, size_t len,
	       struct node **ret, struct error *err);

/* Child of a map by key, NULL when there is none (or @map is not a map). */
struct node *node_get(const struct node *map, const char *key);
/* As node_get along keys, end with NULL. */
struct node *node_at(const struct node *map, ...) __attribute__((sentinel));
/* The text of a string child; NULL when there is none or it is none. */
const char *node_get_text(const struct node *map, const char *key);
bool node_get_true(const struct node *map, const char *key);

struct node *node_new(struct node_pool *pool, enum node_kind kind);
struct node *node_new_text(struct node_pool *pool, enum node_kind kind, const char *text);
struct node *node_new_int(struct node_pool *pool, int64_t num);
/* Appends; @key NULL in a list. An orphan gets @parent as its parent; a node
 * that has one keeps it. Replaces a child of the same key. */
void node_add(struct node_pool *pool, struct node *parent, const char *key, struct node *child);
void node_remove(struct node *parent, size_t i);
/* A copy of the node alone, with its own list of the same children. */
struct node *node_shallow_copy(struct node_pool *pool, const struct node *n);

/* What a plain scalar means by YAML 1.2's core schema; @ret_num is set for INT
 * and BOOL. */
enum node_kind node_plain_kind(const char *s, int64_t *ret_num);

/* Byte offset of a character offset (start, end, key_start). Walks the text. */
size_t node_byte(const struct node_file *file, size_t at_char);

/* "portForwards[0].guestPort"; "" for the root. Adds to @out. */
void node_path(const struct node *n, struct buf *out);

const char *node_kind_name(enum node_kind kind);	/* "a list" */
