#include "hostagent/forward/table.h"

#include <assert.h>
#include <stdbool.h>
#include <sys/random.h>

#include "lib/base/mem.h"

enum { TABLE_FIRST_SIZE = 16 };

/* Chosen once: what is in a table was placed by it. */
static uint32_t secret(void)
{
	static uint32_t key;
	static bool chosen;

	if (!chosen && getrandom(&key, sizeof(key), 0) != sizeof(key))
		key = (uint32_t)(uintptr_t)&key;	/* no such system call: at least ASLR's */
	chosen = true;
	return key;
}

uint32_t table_hash(const void *key, size_t len, uint32_t seed)
{
	const uint8_t *p = key;
	uint32_t h = seed ^ 2166136261u ^ secret(); /* FNV-1a, then murmur3's finish */

	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 16777619u;
	h ^= h >> 16;
	h *= 0x85ebca6bu;
	h ^= h >> 13;
	h *= 0xc2b2ae35u;
	return h ^ h >> 16;
}

static struct table_link **bucket(const struct table *t, uint32_t hash)
{
	return &t->buckets[hash & (t->n_buckets - 1)];
}

static void grow(struct table *t)
{
	struct table old = *t;

	t->n_buckets = old.n_buckets ? old.n_buckets * 2 : TABLE_FIRST_SIZE;
	t->buckets = xcalloc(t->n_buckets, sizeof(*t->buckets));
	for (size_t i = 0; i < old.n_buckets; i++) {
		struct table_link *l = old.buckets[i];

		while (l) {
			struct table_link *next = l->next;
			struct table_link **b = bucket(t, l->hash);

			l->next = *b;
			*b = l;
			l = next;
		}
	}
	free(old.buckets);
}

void table_add(struct table *t, struct table_link *link, uint32_t hash)
{
	if (t->len >= t->n_buckets)
		grow(t);
	struct table_link **b = bucket(t, hash);

	link->hash = hash;
	link->next = *b;
	*b = link;
	t->len++;
}

void table_remove(struct table *t, struct table_link *link)
{
	struct table_link **p = bucket(t, link->hash);

	while (*p != link) {
		assert(*p);
		p = &(*p)->next;
	}
	*p = link->next;
	link->next = NULL;
	t->len--;
}

static struct table_link *same_hash(struct table_link *l, uint32_t hash)
{
	while (l && l->hash != hash)
		l = l->next;
	return l;
}

struct table_link *table_first(const struct table *t, uint32_t hash)
{
	return t->n_buckets ? same_hash(*bucket(t, hash), hash) : NULL;
}

struct table_link *table_next(const struct table_link *link)
{
	return same_hash(link->next, link->hash);
}

void table_done(struct table *t)
{
	free(t->buckets);
	*t = (struct table){ 0 };
}
