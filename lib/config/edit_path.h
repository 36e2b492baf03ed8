/* edit_path.h - ".a.b[0].\"odd key\"", and the nodes along it */
#pragma once

#include <stddef.h>

#include "lib/base/error.h"
#include "lib/config/node.h"

enum { EDIT_PATH_MAX = 32 };

struct edit_path {
	struct edit_step {
		const char *key;	/* NULL: index */
		size_t index;
	} steps[EDIT_PATH_MAX];
	size_t len;
};

/* Keys live in @pool. @ret_end, may be NULL: where reading stopped; without it
 * anything behind the path is an error. */
int edit_path_parse(struct node_pool *pool, const char *s, struct edit_path *ret,
		    const char **ret_end, struct error *err);

struct edit_path edit_path_key(struct edit_path p, const char *key);	/* p.key */
struct edit_path edit_path_index(struct edit_path p, size_t index);	/* p[index] */

/* Follows the path from @root as far as nodes exist; returns the last one and
 * how many steps led to it. */
struct node *edit_path_walk(struct node *root, const struct edit_path *p, size_t *ret_steps);
/* The node, NULL when there is none. */
struct node *edit_path_find(struct node *root, const struct edit_path *p);
