/* problem.h - what is wrong with a configuration, told all at once
 *
 * Every stage of config_load() reports here and goes on, so that one run shows
 * all there is to repair. A line reads "web.yaml:14:5: portForwards[0].guestPort:
 * 70000 is not a port (1–65535)"; the position is where the thing named begins:
 * the key in a map, the item in a list. Values that nobody wrote (builtin
 * defaults) have no position.
 */
#pragma once

#include "lib/config/config.h"
#include "lib/config/node.h"

enum { PROBLEMS_MAX = 100 };	/* of each sort; the rest are only counted */

struct problem_sink {
	struct config_problems *list;	/* never NULL */
	const char *main_file;		/* named when a node has no position */
	size_t n_errors;		/* also those beyond PROBLEMS_MAX */
};

/* The value as a message shows it: text in quotes, cut to a readable length.
 * Lives as long as @pool. */
const char *problem_value(struct node_pool *pool, const struct node *n);

/* About node @n itself. */
void problem_error(struct problem_sink *s, const struct node *n, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void problem_warn(struct problem_sink *s, const struct node *n, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* About child @key of @map, which may be missing: the line then shows where
 * @map is and the path the child would have. */
void problem_error_in(struct problem_sink *s, const struct node *map, const char *key,
		      const char *fmt, ...) __attribute__((format(printf, 4, 5)));
