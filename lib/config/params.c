/* Every param of lima.yaml must be used somewhere: a typo in a name is an error,
 * not a script that runs with an empty value (reference/lima-yaml.md §6). */
#include "lib/config/schema.h"

#include <ctype.h>
#include <string.h>

#include "lib/base/mem.h"

static bool is_name_char(char c)
{
	return isalnum((unsigned char)c) || c == '_';
}

/* @prefix directly followed by @name as a whole word. */
static bool mentions(const char *text, const char *prefix, const char *name)
{
	size_t plen = strlen(prefix), nlen = strlen(name);

	for (const char *p = text; (p = strstr(p, prefix)); p += plen) {
		bool starts = *prefix == '.' || p == text || !is_name_char(p[-1]);

		if (starts && strncmp(p + plen, name, nlen) == 0 && !is_name_char(p[plen + nlen]))
			return true;
	}
	return false;
}

static bool used_in(const struct node *n, const char *name)
{
	if (n->kind == NODE_STRING)
		return mentions(n->text, "PARAM_", name) ||
		       (strstr(n->text, "{{") && mentions(n->text, ".Param.", name));
	for (size_t i = 0; i < n->n_items; i++)
		if (used_in(n->items[i], name))
			return true;
	return false;
}

void check_params_used(struct resolve *r, const struct node *root)
{
	const struct node *param = node_get(r->own, "param");

	for (size_t i = 0; param && param->kind == NODE_MAP && i < param->n_items; i++) {
		const struct node *p = param->items[i];

		if (!streq(p->key, "internal_netplanOptional") && !strv_contains(&r->used_params, p->key))
			problem_error(&r->problems, p, "is used nowhere; write {{.Param.%s}} or "
				      "$PARAM_%s in a script, or remove it", p->key, p->key);
	}
}

void schema_note_used_params(struct resolve *r)
{
	static const char *const users[] = { "provision", "probes", "copyToHost", "portForwards",
					     "mounts", "message", "user" };
	const struct node *param = node_get(r->own, "param");

	for (size_t i = 0; param && param->kind == NODE_MAP && i < param->n_items; i++) {
		for (size_t j = 0; j < ARRAY_SIZE(users); j++) {
			const struct node *n = node_get(r->root, users[j]);

			if (n && used_in(n, param->items[i]->key)) {
				strv_add(&r->used_params, param->items[i]->key);
				break;
			}
		}
	}
}
