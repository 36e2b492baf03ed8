/* near.h - "did you mean …?" */
#pragma once

#include <stddef.h>

/* Remembers the nearest of the names offered to it. */
struct near {
	const char *wanted;
	const char *best;	/* NULL: nothing was close enough */
	unsigned distance;
};
void near_offer(struct near *n, const char *name);	/* borrowed as long as n->best is used */
