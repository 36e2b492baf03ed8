/* The tree, checked and filled, into struct config; and back to nothing. */
#include "lib/config/schema.h"

#include <arpa/inet.h>
#include <assert.h>
#include <string.h>

#include "lib/base/mem.h"

static void decode_object(const struct schema_object *obj, const struct node *map, char *base);

static void decode_map(const struct node *n, struct config_map *m)
{
	m->items = n->n_items ? xcalloc(n->n_items, sizeof(*m->items)) : NULL;
	for (size_t i = 0; i < n->n_items; i++)
		m->items[m->len++] = (struct config_kv){ xstrdup(n->items[i]->key),
							 xstrdup(n->items[i]->text) };
}

static void decode_ip(const struct node *n, struct in6_addr *ret)
{
	struct in_addr v4;

	if (inet_pton(AF_INET, n->text, &v4) == 1) {
		*ret = (struct in6_addr){ .s6_addr = { [10] = 0xff, [11] = 0xff } };
		memcpy(&ret->s6_addr[12], &v4, sizeof(v4));
	} else {
		inet_pton(AF_INET6, n->text, ret);
	}
}

static int decode_enum(const struct schema_key *k, const struct node *n)
{
	for (int i = 0; k->words[i]; i++)
		if (streq(k->words[i], n->text))
			return i;
	assert(!"typecheck let an unknown word pass");
	return 0;
}

static void decode_list(const struct schema_key *k, const struct node *list, char *base)
{
	const struct schema_object *obj = k->object;
	char **items = (char **)(base + k->field - 1);
	size_t *count = (size_t *)(base + k->count - 1);

	*items = list->n_items ? xcalloc(list->n_items, obj->size) : NULL;
	for (size_t i = 0; i < list->n_items; i++)
		if (!obj->skip || !obj->skip(list->items[i]))
			decode_object(obj, list->items[i], *items + obj->size * (*count)++);
}

static void decode_value(const struct schema_key *k, const struct node *n, char *base)
{
	void *at = base + k->field - 1;

	switch (k->type) {
	case TYPE_BOOL: *(bool *)at = n->num; break;
	case TYPE_INT: *(unsigned *)at = (unsigned)n->num; break;
	case TYPE_PORT: *(uint16_t *)at = (uint16_t)n->num; break;
	case TYPE_PORT_OR_AUTO: *(bool *)at = n->kind == NODE_STRING; break;
	case TYPE_PORT_RANGE:
		((uint16_t *)at)[0] = (uint16_t)n->items[0]->num;
		((uint16_t *)at)[1] = (uint16_t)n->items[1]->num;
		break;
	case TYPE_SIZE: *(uint64_t *)at = (uint64_t)n->num; break;
	case TYPE_STRING:
	case TYPE_WORD: *(char **)at = xstrdup(n->text); break;
	case TYPE_ENUM: *(int *)at = decode_enum(k, n); break;
	case TYPE_IP: decode_ip(n, at); break;
	case TYPE_MAP: decode_map(n, at); break;
	case TYPE_STRINGS:
		for (size_t i = 0; i < n->n_items; i++)
			strv_add(at, n->items[i]->text);
		break;
	case TYPE_LIST: decode_list(k, n, base); break;
	case TYPE_OBJECT:
	case TYPE_ANY:
	case TYPE_COUNT: break;
	}
}

static void decode_object(const struct schema_object *obj, const struct node *map, char *base)
{
	for (size_t i = 0; i < obj->n_keys; i++) {
		const struct schema_key *k = &obj->keys[i];
		const struct node *n = node_get(map, k->name);

		if (n && k->type == TYPE_OBJECT)
			decode_object(k->object, n, base);
		else if (n && k->field)
			decode_value(k, n, base);
	}
}

void schema_decode(const struct node *root, struct config *c)
{
	const struct node *cpu;

	static_assert(sizeof(enum arch) == sizeof(int), "decode_value writes enums as int");
	decode_object(&schema_root, root, (char *)c);
	cpu = node_at(root, "vmOpts", "qemu", "cpuType", arch_name(c->arch), NULL);
	if (cpu && cpu->text_len)
		c->qemu_cpu_type = xstrdup(cpu->text);
}

static void release_object(const struct schema_object *obj, char *base);

static void release_value(const struct schema_key *k, char *base)
{
	void *at = base + k->field - 1;

	if (k->type == TYPE_STRING || k->type == TYPE_WORD)
		free(*(char **)at);
	if (k->type == TYPE_STRINGS)
		strv_done(at);
	if (k->type == TYPE_MAP) {
		struct config_map *m = at;

		for (size_t i = 0; i < m->len; i++) {
			free(m->items[i].key);
			free(m->items[i].value);
		}
		free(m->items);
	}
	if (k->type == TYPE_LIST) {
		size_t n = *(size_t *)(base + k->count - 1);

		for (size_t i = 0; i < n; i++)
			release_object(k->object, *(char **)at + k->object->size * i);
		free(*(char **)at);
	}
}

static void release_object(const struct schema_object *obj, char *base)
{
	for (size_t i = 0; i < obj->n_keys; i++) {
		if (obj->keys[i].type == TYPE_OBJECT)
			release_object(obj->keys[i].object, base);
		else if (obj->keys[i].field)
			release_value(&obj->keys[i], base);
	}
}

void schema_decode_one(const struct schema_object *obj, const struct node *map, void *ret)
{
	decode_object(obj, map, ret);
}

void schema_release_one(const struct schema_object *obj, void *item)
{
	release_object(obj, item);
}

void schema_release(struct config *c)
{
	release_object(&schema_root, (char *)c);
	free(c->qemu_cpu_type);
}
