#include "lib/config/embed.h"

#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/edit_text.h"
#include "lib/config/emit.h"
#include "lib/config/locator.h"
#include "lib/config/version.h"

enum { EMBED_MAX_DEPTH = 32, EMBED_MAX_BASES = 256 };

struct embedder {
	const struct config_embed_options *opt;
	struct strv seen;	/* locators of the bases so far: each may come once */
	unsigned depth;
	struct error *err;
};

/* A text to merge from. */
struct source {
	struct buf text;
	struct node_pool *pool;
	struct node *root;
};

static void source_done(struct source *s)
{
	if (s->pool)
		node_pool_free(s->pool);
	buf_done(&s->text);
}

static struct edit_path path_of(const char *key)
{
	return edit_path_key((struct edit_path){ 0 }, key);
}

static int read_locator(struct embedder *em, const char *locator, struct buf *ret)
{
	int rc;

	if (streq(locator, "-"))
		return error_set(em->err, -EINVAL, "`-`: a base or file cannot be standard input");
	rc = locator_read(locator, em->opt->template_dirs, ret, NULL, NULL, em->err);
	if (rc == -EPROTONOSUPPORT && em->opt->fetch)
		rc = em->opt->fetch(em->opt->arg, locator, ret, em->err);
	return rc;
}

/* X or {url: X, digest: …} of `base` and `file`. */
static int locator_text(struct embedder *em, const struct node *n, const char **ret)
{
	const struct node *url = n->kind == NODE_MAP ? node_get(n, "url") : n;
	const struct node *digest = node_get(n, "digest");

	if (!url || url->kind != NODE_STRING || !url->text_len)
		return error_set(em->err, -EINVAL, "%s:%u:%u: a base or file must be text",
				 n->file->name, n->line, n->col);
	if (digest && digest->text_len)
		return error_set(em->err, -EINVAL, "%s:%u:%u: the digest of a base or file is not "
				 "checked, by Lima neither; remove it", n->file->name, n->line, n->col);
	*ret = url->text;
	return 0;
}

/* --- files -------------------------------------------------------------------------- */

/* The key that takes the place of `file`. */
static const char *file_target(const struct node *entry)
{
	const char *mode = node_get_text(entry, "mode");

	if (mode && streq(mode, "data"))
		return "content";
	return mode && streq(mode, "yq") ? "expression" : "script";
}

static int embed_file(struct embedder *em, struct editor *e, const char *from,
		      const struct edit_path *entry_path, const struct node *entry)
{
	const struct edit_path target = edit_path_key(*entry_path, file_target(entry));
	const struct edit_path file = edit_path_key(*entry_path, "file");
	const char *named = NULL, *script = node_get_text(entry, file_target(entry));
	scoped_buf struct buf text = { 0 };
	scoped_free char *locator = NULL;
	struct node *value;

	if (locator_text(em, node_get(entry, "file"), &named) < 0)
		return em->err->code;
	if (script && *script)
		return error_set(em->err, -EINVAL, "%s:%u:%u: has file and %s; give only one",
				 entry->file->name, entry->line, entry->col, file_target(entry));
	if (locator_join(from, named, &locator, em->err) < 0 ||
	    read_locator(em, locator, &text) < 0)
		return em->err->code;
	if (memchr(text.data, 0, text.len))
		return error_set(em->err, -EINVAL, "%s: has NUL bytes, so it is no script", locator);
	value = node_new_text(e->pool, NODE_STRING, buf_str(&text));
	if (editor_set(e, &target, value, NULL, em->err) < 0)
		return em->err->code;
	return editor_delete(e, &file, em->err);
}

static int embed_files(struct embedder *em, struct editor *e, const char *from)
{
	static const char *const lists[] = { "provision", "probes" };

	for (size_t l = 0; l < ARRAY_SIZE(lists); l++) {
		const struct edit_path path = path_of(lists[l]);

		for (size_t i = 0;; i++) {	/* each change makes a new tree */
			const struct node *list = edit_path_find(e->root, &path);
			const struct edit_path item = edit_path_index(path, i);

			if (!list || list->kind != NODE_LIST || i >= list->n_items)
				break;
			if (!node_get(list->items[i], "file"))
				continue;
			if (embed_file(em, e, from, &item, list->items[i]) < 0)
				return error_wrap(em->err, "%s[%zu].file", lists[l], i);
		}
	}
	return 0;
}

/* --- merging a base below the template --------------------------------------------------- */

static int merge_map(struct embedder *em, struct editor *e, const struct edit_path *path,
		     const struct node *base);

static int merge_list(struct embedder *em, struct editor *e, const struct edit_path *path,
		      const struct node *base)
{
	const char *key = path->steps[path->len - 1].key;
	bool first = path->len == 1 && (streq(key, "provision") || streq(key, "probes"));
	bool unique = path->len == 1 && streq(key, "mountTypesUnsupported");
	const struct node *own = edit_path_find(e->root, path);

	if (path->len == 1 && streq(key, "dns") && own->n_items)
		return 0;
	for (size_t i = 0; i < base->n_items; i++) {
		const struct node *item = base->items[first ? base->n_items - 1 - i : i];
		scoped_free char *source = editor_source(item);
		enum edit_place place = first ? EDIT_FIRST : unique ? EDIT_UNIQUE : EDIT_LAST;

		if (editor_add(e, path, place, item, source, em->err) < 0)
			return em->err->code;
	}
	return 0;
}

static bool is_version_key(const struct edit_path *p)
{
	return (p->len == 1 && streq(p->steps[0].key, "minimumLimaVersion")) ||
	       (p->len == 3 && streq(p->steps[0].key, "vmOpts") &&
		streq(p->steps[1].key, "qemu") && streq(p->steps[2].key, "minimumVersion"));
}

static int merge_node(struct embedder *em, struct editor *e, const struct edit_path *path,
		      const struct node *base)
{
	const struct node *own = edit_path_find(e->root, path);

	if (base->kind == NODE_NULL)
		return 0;
	if (!own || own->kind == NODE_NULL) {
		scoped_free char *source = editor_source(base);

		return editor_set(e, path, base, source, em->err);
	}
	if (own->kind == NODE_MAP && base->kind == NODE_MAP)
		return merge_map(em, e, path, base);
	if (own->kind == NODE_LIST && base->kind == NODE_LIST)
		return merge_list(em, e, path, base);
	if (is_version_key(path) && version_compare(base->text, own->text) > 0)
		return editor_set(e, path, base, NULL, em->err);
	return 0;
}

static int merge_map(struct embedder *em, struct editor *e, const struct edit_path *path,
		     const struct node *base)
{
	for (size_t i = 0; i < base->n_items; i++) {
		const struct edit_path sub = edit_path_key(*path, base->items[i]->key);

		if (sub.len == path->len)
			return error_set(em->err, -EINVAL, "nested too deep");
		if (merge_node(em, e, &sub, base->items[i]) < 0)
			return em->err->code;
	}
	return 0;
}

/* --- bases --------------------------------------------------------------------------- */

static int embed_text(struct embedder *em, struct buf *text, const char *locator,
		      const char *extra_base);

static int load_base(struct embedder *em, const char *locator, struct source *ret)
{
	if (strv_contains(&em->seen, locator))
		return error_set(em->err, -ELOOP, "base %s: comes twice, or contains itself", locator);
	if (em->depth >= EMBED_MAX_DEPTH || em->seen.len >= EMBED_MAX_BASES)
		return error_set(em->err, -ELOOP, "base %s: too many bases", locator);
	strv_add(&em->seen, locator);
	if (read_locator(em, locator, &ret->text) < 0)
		return error_wrap(em->err, "base");
	em->depth++;
	if (embed_text(em, &ret->text, locator, NULL) < 0)
		return em->err->code;
	em->depth--;
	ret->pool = node_pool_new();
	if (node_parse(ret->pool, locator, buf_str(&ret->text), ret->text.len, &ret->root,
		       em->err) < 0)
		return em->err->code;
	if (ret->root->kind != NODE_MAP && ret->root->kind != NODE_NULL)
		return error_set(em->err, -EINVAL, "base %s: is not a map of keys and values",
				 locator);
	return 0;
}

/* Nothing but `base:` in the text, not even a comment: the base itself is what is
 * meant, to the last byte. */
static bool is_only_base(const struct editor *e)
{
	const struct node *base = node_get(e->root, "base");

	return e->root->kind == NODE_MAP && e->root->n_items == 1 && base &&
	       !strchr(buf_str(&e->text), '#');
}

static int merge_bases(struct embedder *em, struct editor *e, const struct strv *locators,
		       bool only_base)
{
	static const struct edit_path top = { 0 };
	const char *locator;

	strv_foreach(locator, locators) {
		__attribute__((cleanup(source_done))) struct source s = { 0 };

		if (load_base(em, locator, &s) < 0)
			return em->err->code;
		if (only_base && locator_i == 0) {
			editor_close(e);
			if (editor_open(e, locator, &s.text, em->err) < 0)
				return em->err->code;
			continue;
		}
		if (s.root->kind == NODE_MAP && merge_map(em, e, &top, s.root) < 0)
			return error_wrap(em->err, "base %s", locator);
	}
	return 0;
}

static int list_bases(struct embedder *em, const struct editor *e, const char *from,
		      struct strv *ret)
{
	const struct node *base = node_get(e->root, "base");
	struct node *one[] = { (struct node *)base };
	bool many = base && base->kind == NODE_LIST;
	size_t n = !base || base->kind == NODE_NULL ? 0 : many ? base->n_items : 1;

	for (size_t i = 0; i < n; i++) {
		const char *named = NULL;
		char *locator = NULL;

		if (locator_text(em, many ? base->items[i] : one[0], &named) < 0 ||
		    locator_join(from, named, &locator, em->err) < 0)
			return em->err->code;
		strv_take(ret, locator);
	}
	return 0;
}

static int embed_text(struct embedder *em, struct buf *text, const char *locator,
		      const char *extra_base)
{
	const struct edit_path base_path = path_of("base");
	scoped_editor struct editor e = { 0 };
	scoped_strv struct strv bases = { 0 };
	bool only_base;

	if (editor_open(&e, locator, text, em->err) < 0)
		return em->err->code;
	if (e.root->kind != NODE_MAP && e.root->kind != NODE_NULL)
		return error_set(em->err, -EINVAL, "%s: is not a map of keys and values", locator);
	if (extra_base)
		strv_add(&bases, extra_base);
	if (list_bases(em, &e, locator, &bases) < 0 || embed_files(em, &e, locator) < 0)
		return error_wrap(em->err, "%s", locator);
	only_base = is_only_base(&e) && !extra_base;
	if (editor_delete(&e, &base_path, em->err) < 0 ||
	    merge_bases(em, &e, &bases, only_base) < 0)
		return em->err->code;
	buf_done(text);
	*text = e.text;
	e.text = (struct buf){ 0 };
	return 0;
}

/* --- entries of one identity become one --------------------------------------------------- */

struct keyed_list {
	const char *list, *id, *id_else;	/* id_else: when there is no id */
};

static const char *identity(const struct keyed_list *k, const struct node *item)
{
	const char *id = item->kind == NODE_STRING ? item->text : node_get_text(item, k->id);

	return id || !k->id_else ? id : node_get_text(item, k->id_else);
}

/* A network's way out is one of two keys: the later one counts only if neither
 * is given. */
static bool is_taken(const struct node *early, const char *key)
{
	if (streq(key, "lima") || streq(key, "socket"))
		return node_get(early, "lima") || node_get(early, "socket");
	return node_get(early, key);
}

static int fill_item(struct embedder *em, struct editor *e, const struct edit_path *path,
		     const struct node *early, const struct node *later, const char *id_key)
{
	/* the tree changes under us: what is needed of it first */
	scoped_strv struct strv keys = { 0 };
	const char *key;

	for (size_t i = 0; later->kind == NODE_MAP && i < later->n_items; i++) {
		const struct node *n = later->items[i], *own = node_get(early, n->key);

		if (streq(n->key, id_key) || (is_taken(early, n->key) &&
					      !(own && own->kind == NODE_MAP && n->kind == NODE_MAP)))
			continue;
		strv_add(&keys, n->key);
	}
	strv_foreach(key, &keys) {
		const struct edit_path sub = edit_path_key(*path, key);
		const struct node *n = node_get(later, key);

		if (merge_node(em, e, &sub, n) < 0)
			return em->err->code;
	}
	return 0;
}

/* A copy of an item that outlives changes of the text. */
static int copy_item(struct embedder *em, const struct node *item, struct source *ret)
{
	ret->pool = node_pool_new();
	emit_flow(item, &ret->text);
	return node_parse(ret->pool, "item", buf_str(&ret->text), ret->text.len, &ret->root, em->err);
}

/* Item @j goes into the items before it that it names, then away. 1: it did. */
static int fold_item(struct embedder *em, struct editor *e, const struct keyed_list *k, size_t j)
{
	const struct edit_path path = path_of(k->list), last = edit_path_index(path, j);
	__attribute__((cleanup(source_done))) struct source later = { 0 };
	const char *id;
	bool hit = false;

	if (copy_item(em, edit_path_find(e->root, &last), &later) < 0)
		return em->err->code;
	id = identity(k, later.root);
	for (size_t i = 0; id && i < j; i++) {
		const struct edit_path at = edit_path_index(path, i);
		const struct node *early = edit_path_find(e->root, &at);
		const char *other = identity(k, early);

		if (!streq(id, "*") && !(other && streq(id, other)))
			continue;
		hit = true;
		if (early->kind != NODE_MAP && later.root->kind == NODE_MAP) {	/* "data" */
			struct node *map = node_new(e->pool, NODE_MAP);

			node_add(e->pool, map, k->id, node_new_text(e->pool, NODE_STRING, other));
			if (editor_set(e, &at, map, NULL, em->err) < 0)
				return em->err->code;
			early = edit_path_find(e->root, &at);
		}
		if (fill_item(em, e, &at, early, later.root, k->id) < 0)
			return em->err->code;
	}
	if (!hit && !(id && streq(id, "*")))
		return 0;
	return editor_delete(e, &last, em->err) < 0 ? em->err->code : 1;
}

static int collapse(struct embedder *em, struct editor *e)
{
	static const struct keyed_list lists[] = {
		{ "additionalDisks", "name", NULL },
		{ "mounts", "mountPoint", "location" },
		{ "networks", "interface", NULL },
	};

	for (size_t l = 0; l < ARRAY_SIZE(lists); l++) {
		const struct edit_path path = path_of(lists[l].list);

		for (size_t j = 0;; j++) {
			const struct node *list = edit_path_find(e->root, &path);
			int rc;

			if (!list || list->kind != NODE_LIST || j >= list->n_items)
				break;
			rc = fold_item(em, e, &lists[l], j);
			if (rc < 0)
				return error_wrap(em->err, "%s[%zu]", lists[l].list, j);
			j -= rc == 1;
		}
	}
	return 0;
}

int config_embed(struct buf *text, const char *locator, const struct config_embed_options *opt,
		 struct error *err)
{
	struct embedder em = { .opt = opt, .err = err };
	scoped_editor struct editor e = { 0 };
	scoped_buf struct buf copy = { 0 };
	int rc;

	buf_add(&copy, text->data, text->len);
	rc = embed_text(&em, &copy, locator, opt->base_yaml);
	strv_done(&em.seen);
	if (rc < 0 || editor_open(&e, locator, &copy, err) < 0 || collapse(&em, &e) < 0)
		return err->code;
	buf_done(text);
	*text = e.text;
	e.text = (struct buf){ 0 };
	return 0;
}
