/* Second stage: one tree out of default.yaml, lima.yaml and override.yaml. */
#include "lib/config/schema.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/version.h"

/* The same key in the three files; any may be NULL. */
struct three {
	const struct node *dflt, *own, *over;
};

typedef struct node *(*merge_fn)(struct resolve *r, const struct schema_key *k,
				 const struct three *t);

static struct node *first_of(const struct three *t)
{
	return (struct node *)(t->over ? t->over : t->own ? t->own : t->dflt);
}

static struct node *merge_whole(struct resolve *r, const struct schema_key *k,
				const struct three *t)
{
	return first_of(t);
}

/* An empty list that is written down does not hide a fuller one. */
static struct node *merge_nonempty(struct resolve *r, const struct schema_key *k,
				   const struct three *t)
{
	const struct node *order[] = { t->over, t->own, t->dflt };

	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		if (order[i] && (order[i]->kind != NODE_LIST || order[i]->n_items))
			return (struct node *)order[i];
	return first_of(t);
}

static struct node *container_like(struct resolve *r, const struct three *t, enum node_kind kind)
{
	const struct node *like = t->own ? t->own : t->over ? t->over : t->dflt;
	struct node *n = node_pool_alloc(r->pool, sizeof(*n));

	*n = *like;
	n->kind = kind;
	n->items = NULL;
	n->n_items = n->cap = 0;
	return n;
}

static struct node *concat(struct resolve *r, const struct three *t,
			   const struct node *const order[3])
{
	struct node *list = container_like(r, t, NODE_LIST);

	for (size_t f = 0; f < 3; f++) {
		if (order[f] && order[f]->kind == NODE_BAD)
			return (struct node *)order[f];
		for (size_t i = 0; order[f] && i < order[f]->n_items; i++)
			node_add(r->pool, list, NULL, order[f]->items[i]);
	}
	return list;
}

static struct node *merge_list(struct resolve *r, const struct schema_key *k,
			       const struct three *t)
{
	return concat(r, t, (const struct node *const[]){ t->over, t->own, t->dflt });
}

/* Order d, y, o; schema_collapse() joins equal ones once their names are known. */
static struct node *merge_keyed(struct resolve *r, const struct schema_key *k,
				const struct three *t)
{
	return concat(r, t, (const struct node *const[]){ t->dflt, t->own, t->over });
}

static struct node *merge_union(struct resolve *r, const struct schema_key *k,
				const struct three *t)
{
	struct node *list = merge_keyed(r, k, t);

	for (size_t i = 0; list->kind == NODE_LIST && i < list->n_items; i++) {
		for (size_t j = 0; j < i; j++) {
			if (streq(list->items[i]->text, list->items[j]->text)) {
				node_remove(list, i--);
				break;
			}
		}
	}
	return list;
}

static struct node *merge_newest(struct resolve *r, const struct schema_key *k,
				 const struct three *t)
{
	const struct node *order[] = { t->own, t->over, t->dflt }, *best = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		if (order[i] && (!best || version_compare(order[i]->text, best->text) > 0))
			best = order[i];
	return (struct node *)best;
}

/* Keys of d, then y, then o; the last to give a value wins. */
static struct node *merge_map(struct resolve *r, const struct schema_key *k,
			      const struct three *t)
{
	const struct node *order[] = { t->dflt, t->own, t->over };
	struct node *map = container_like(r, t, NODE_MAP);

	for (size_t f = 0; f < ARRAY_SIZE(order); f++) {
		if (order[f] && order[f]->kind == NODE_BAD)
			return (struct node *)order[f];
		for (size_t i = 0; order[f] && i < order[f]->n_items; i++)
			node_add(r->pool, map, order[f]->items[i]->key, order[f]->items[i]);
	}
	return map;
}

static struct node *merge_key(struct resolve *r, const struct schema_key *k,
			      const struct three *t);

static struct node *merge_object(struct resolve *r, const struct schema_object *obj,
				 const struct three *t)
{
	struct node *map = container_like(r, t, NODE_MAP);

	for (size_t i = 0; i < obj->n_keys; i++) {
		const char *name = obj->keys[i].name;
		const struct three sub = { node_get(t->dflt, name), node_get(t->own, name),
					   node_get(t->over, name) };

		if (first_of(&sub))
			node_add(r->pool, map, name, merge_key(r, &obj->keys[i], &sub));
	}
	return map;
}

static struct node *merge_object_key(struct resolve *r, const struct schema_key *k,
				     const struct three *t)
{
	const struct node *const all[] = { t->dflt, t->own, t->over };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (all[i] && all[i]->kind == NODE_BAD)
			return (struct node *)all[i];
	return merge_object(r, k->object, t);
}

static struct node *merge_by_type(struct resolve *r, const struct schema_key *k,
				  const struct three *t)
{
	switch (k->type) {
	case TYPE_LIST:
	case TYPE_STRINGS: return merge_list(r, k, t);
	case TYPE_MAP: return merge_map(r, k, t);
	case TYPE_OBJECT: return merge_object_key(r, k, t);
	default: return first_of(t);
	}
}

static const merge_fn rules[] = {
	[MERGE_BY_TYPE] = merge_by_type,
	[MERGE_WHOLE] = merge_whole,
	[MERGE_NONEMPTY] = merge_nonempty,
	[MERGE_SHALLOW] = merge_map,	/* a map's rule: each key's value as a whole */
	[MERGE_KEYED] = merge_keyed,
	[MERGE_UNION] = merge_union,
	[MERGE_NEWEST] = merge_newest,
};

static struct node *merge_key(struct resolve *r, const struct schema_key *k,
			      const struct three *t)
{
	return rules[k->merge](r, k, t);
}

struct node *schema_merge(struct resolve *r, const struct node *dflt, const struct node *own,
			  const struct node *over)
{
	struct node *root = merge_object(r, &schema_root, &(struct three){ dflt, own, over });

	root->parent = NULL;
	root->key = NULL;
	return root;
}

/* What @later sets wins over @early, key by key. */
static void lay_over(struct resolve *r, const struct schema_object *obj, struct node *early,
		     const struct node *later)
{
	for (size_t i = 0; i < later->n_items; i++) {
		struct node *n = later->items[i], *old = node_get(early, n->key);
		const struct schema_key *k = schema_find(obj, n->key);

		if (old && k && k->type == TYPE_OBJECT && old->kind == NODE_MAP &&
		    n->kind == NODE_MAP)
			lay_over(r, k->object, old, n);
		else
			node_add(r->pool, early, n->key, n);
	}
}

static void collapse_list(struct resolve *r, const struct schema_object *obj, struct node *list)
{
	for (size_t i = 1; i < list->n_items; i++) {
		const char *id = obj->identity(r, list->items[i]);

		for (size_t j = 0; id && j < i; j++) {
			const char *other = obj->identity(r, list->items[j]);

			if (other && streq(id, other)) {
				lay_over(r, obj, list->items[j], list->items[i]);
				node_remove(list, i--);
				break;
			}
		}
	}
}

void schema_collapse(struct resolve *r)
{
	for (size_t i = 0; i < schema_root.n_keys; i++) {
		const struct schema_key *k = &schema_root.keys[i];
		struct node *list = node_get(r->root, k->name);

		if (k->merge == MERGE_KEYED && list && list->kind == NODE_LIST)
			collapse_list(r, k->object, list);
	}
}
