/* The filled tree as JSON, with Lima's key names in the order of the rows. */
#include "lib/config/schema.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "lib/base/mem.h"
#include "lib/base/utf8.h"

static json_t *text_json(const struct node *n)
{
	json_t *j = json_stringn(n->text, n->text_len);

	if (!j) {	/* a !!binary that is not UTF-8 */
		scoped_free char *clean = utf8_clean(n->text);

		j = json_string(clean);
	}
	return j;
}

static json_t *any_json(const struct node *n)
{
	json_t *j;

	switch (n->kind) {
	case NODE_BOOL: return json_boolean(n->num);
	case NODE_INT: return json_integer(n->num);
	case NODE_FLOAT:
		j = json_real(strtod(n->text, NULL));
		return j ? j : text_json(n);	/* not finite: JSON has no such number */
	case NODE_STRING: return text_json(n);
	case NODE_LIST:
		j = json_array();
		for (size_t i = 0; i < n->n_items; i++)
			json_array_append_new(j, any_json(n->items[i]));
		return j;
	case NODE_MAP:
		j = json_object();
		for (size_t i = 0; i < n->n_items; i++)
			json_object_set_new_nocheck(j, n->items[i]->key, any_json(n->items[i]));
		return j;
	default: return json_null();
	}
}

static json_t *object_json(const struct schema_object *obj, const struct node *map)
{
	json_t *j = json_object();

	for (size_t i = 0; i < obj->n_keys; i++) {
		const struct schema_key *k = &obj->keys[i];
		const struct node *n = node_get(map, k->name);
		json_t *v = NULL;

		if (!n)
			continue;
		if (k->type == TYPE_OBJECT) {
			v = object_json(k->object, n);
			if (!json_object_size(v)) {
				json_decref(v);
				continue;
			}
		} else if (k->type == TYPE_LIST) {
			v = json_array();
			for (size_t m = 0; m < n->n_items; m++)
				json_array_append_new(v, object_json(k->object, n->items[m]));
		} else {
			v = any_json(n);
		}
		json_object_set_new_nocheck(j, k->name, v);
	}
	return j;
}

static int add_piece(const char *data, size_t len, void *arg)
{
	buf_add(arg, data, len);
	return 0;
}

void schema_json(const struct node *root, struct buf *ret)
{
	json_t *j = object_json(&schema_root, root);

	json_dump_callback(j, add_piece, ret, JSON_COMPACT);
	json_decref(j);
}
