#include "lib/config/edit_path.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

static bool is_key_char(char c)
{
	return isalnum((unsigned char)c) || (c && strchr("_-", c));
}

static int read_index(const char **s, struct edit_step *step)
{
	char *end;

	if (!isdigit((unsigned char)(*s)[1]))
		return -EINVAL;
	step->index = strtoul(*s + 1, &end, 10);
	if (*end != ']')
		return -EINVAL;
	*s = end + 1;
	return 0;
}

static int read_key(struct node_pool *pool, const char **s, struct edit_step *step)
{
	const char *p = *s;
	size_t len = 0;

	if (*p == '"') {
		len = strcspn(p + 1, "\"");
		if (p[1 + len] != '"' || !len)
			return -EINVAL;
		step->key = node_pool_strn(pool, p + 1, len);
		*s = p + len + 2;
		return 0;
	}
	while (is_key_char(p[len]))
		len++;
	if (!len)
		return -EINVAL;
	step->key = node_pool_strn(pool, p, len);
	*s = p + len;
	return 0;
}

int edit_path_parse(struct node_pool *pool, const char *s, struct edit_path *ret,
		    const char **ret_end, struct error *err)
{
	const char *p = s + (*s == '.' && s[1] != '[');
	struct edit_path path = { 0 };
	int rc = 0;

	p += *p == '.';
	while (rc == 0) {
		struct edit_step *step = &path.steps[path.len];

		if (path.len == EDIT_PATH_MAX)
			return error_set(err, -EINVAL, "path `%.100s`: too long", s);
		rc = *p == '[' ? read_index(&p, step) : read_key(pool, &p, step);
		path.len++;
		if (*p == '.')
			p++;
		else if (*p != '[')
			break;
	}
	if (rc < 0 || (!ret_end && *p))
		return error_set(err, -EINVAL, "`%.100s` is not a path such as .ssh.localPort", s);
	if (ret_end)
		*ret_end = p;
	*ret = path;
	return 0;
}

struct edit_path edit_path_key(struct edit_path p, const char *key)
{
	if (p.len < EDIT_PATH_MAX)
		p.steps[p.len++] = (struct edit_step){ .key = key };
	return p;
}

struct edit_path edit_path_index(struct edit_path p, size_t index)
{
	if (p.len < EDIT_PATH_MAX)
		p.steps[p.len++] = (struct edit_step){ .index = index };
	return p;
}

struct node *edit_path_walk(struct node *root, const struct edit_path *p, size_t *ret_steps)
{
	struct node *n = root;
	size_t i;

	for (i = 0; i < p->len; i++) {
		struct node *next = NULL;

		if (p->steps[i].key)
			next = node_get(n, p->steps[i].key);
		else if (n->kind == NODE_LIST && p->steps[i].index < n->n_items)
			next = n->items[p->steps[i].index];
		if (!next)
			break;
		n = next;
	}
	*ret_steps = i;
	return n;
}

struct node *edit_path_find(struct node *root, const struct edit_path *p)
{
	size_t steps;
	struct node *n = edit_path_walk(root, p, &steps);

	return steps == p->len ? n : NULL;
}
