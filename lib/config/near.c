#include "lib/config/near.h"

#include <ctype.h>
#include <string.h>

#include "lib/base/mem.h"

enum { MAX_LEN = 48 };

/* Edits (insert, drop, change, swap of neighbours) from a to b; case is free. */
static unsigned distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	unsigned rows[3][MAX_LEN + 1], *prev2 = rows[0], *prev = rows[1], *cur = rows[2];

	for (size_t j = 0; j <= lb; j++)
		prev[j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned *spare = prev2;
		int ca = tolower((unsigned char)a[i - 1]);

		cur[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			int cb = tolower((unsigned char)b[j - 1]);
			unsigned d = MIN(prev[j], cur[j - 1]) + 1;

			d = MIN(d, prev[j - 1] + (ca != cb));
			if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
			    cb == tolower((unsigned char)a[i - 2]))
				d = MIN(d, prev2[j - 2] + 1);
			cur[j] = d;
		}
		prev2 = prev;
		prev = cur;
		cur = spare;
	}
	return prev[lb];
}

void near_offer(struct near *n, const char *name)
{
	size_t len = strlen(n->wanted);
	unsigned d;

	if (len > MAX_LEN || strlen(name) > MAX_LEN)
		return;
	d = distance(n->wanted, name);
	if (d > (len < 4 ? 1u : len < 8 ? 2u : 3u) || d >= len)
		return;
	if (!n->best || d < n->distance) {
		n->best = name;
		n->distance = d;
	}
}
