/* table.h - a growing hash table of structs that carry their own link
 *
 * It holds no keys and owns nothing: the user hashes, walks the items of one
 * hash and compares. A zeroed table is an empty one. Bounds are the user's.
 *
 *	for (l = table_first(&t, hash); l; l = table_next(l)) {
 *		struct flow *f = container_of(l, struct flow, link);
 *		…
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct table_link {
	struct table_link *next;
	uint32_t hash;
};

struct table {
	struct table_link **buckets;
	size_t n_buckets; /* 0 or a power of two */
	size_t len;
};

/* Loop thread. Spreads well for short keys; differs from process to process, since a
 * guest chooses keys and could pile them up in one bucket.
 * Chains: table_hash(b, n, table_hash(a, m, 0)). */
uint32_t table_hash(const void *key, size_t len, uint32_t seed);

void table_add(struct table *t, struct table_link *link, uint32_t hash);
void table_remove(struct table *t, struct table_link *link); /* must be in it */
struct table_link *table_first(const struct table *t, uint32_t hash);
struct table_link *table_next(const struct table_link *link); /* next with the same hash */
void table_done(struct table *t); /* frees the buckets; the items are the owner's */
