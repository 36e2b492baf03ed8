/* Fourth stage: what nobody gave. Rows first, then what depends on other keys. */
#include "lib/config/schema.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/config/host.h"
#include "lib/config/size.h"

/* Kind of the node that holds a default of the type. */
static struct node *make_default(struct resolve *r, const struct schema_key *k)
{
	struct node *n;

	switch (k->type) {
	case TYPE_BOOL: return node_new_text(r->pool, NODE_BOOL, k->def);
	case TYPE_INT:
	case TYPE_PORT: return node_new_int(r->pool, atoll(k->def));
	default: break;
	}
	n = node_new_text(r->pool, NODE_STRING, k->def);
	if (k->type == TYPE_SIZE) {
		uint64_t bytes = 0;
		bool ok = size_parse(k->def, &bytes);

		assert(ok);
		n->num = (int64_t)bytes;
	}
	return n;
}

static void set_text(struct resolve *r, struct node *map, const char *key, const char *text)
{
	if (!node_get(map, key))
		node_add(r->pool, map, key, node_new_text(r->pool, NODE_STRING, text));
}

static void set_bool(struct resolve *r, struct node *map, const char *key, bool v)
{
	if (!node_get(map, key))
		node_add(r->pool, map, key, node_new_text(r->pool, NODE_BOOL, v ? "true" : "false"));
}

static void set_int(struct resolve *r, struct node *map, const char *key, int64_t num)
{
	if (!node_get(map, key))
		node_add(r->pool, map, key, node_new_int(r->pool, num));
}

static void set_size(struct resolve *r, struct node *map, const char *key, uint64_t bytes)
{
	char text[SIZE_TEXT_SIZE];

	if (node_get(map, key))
		return;
	set_text(r, map, key, size_format(bytes, text));
	size_parse(text, &bytes);	/* what the text says is what counts, as in Lima */
	node_get(map, key)->num = (int64_t)bytes;
}

static void set_range(struct resolve *r, struct node *map, const char *key, int64_t first,
		      int64_t last)
{
	struct node *list = node_new(r->pool, NODE_LIST);

	node_add(r->pool, list, NULL, node_new_int(r->pool, first));
	node_add(r->pool, list, NULL, node_new_int(r->pool, last));
	node_add(r->pool, map, key, list);
}

/* An object that must name something (kernel, file) does not come by itself. */
static bool is_optional(const struct schema_object *obj)
{
	for (size_t i = 0; i < obj->n_keys; i++)
		if (obj->keys[i].flags & KEY_REQUIRED)
			return true;
	return false;
}

static void fill_object(struct resolve *r, const struct schema_object *obj, struct node *map);

static void fill_children(struct resolve *r, const struct schema_key *k, struct node *n)
{
	if (k->type == TYPE_OBJECT && n->kind == NODE_MAP)
		fill_object(r, k->object, n);
	for (size_t i = 0; k->type == TYPE_LIST && i < n->n_items; i++)
		if (n->items[i]->kind == NODE_MAP)
			fill_object(r, k->object, n->items[i]);
}

static void fill_object(struct resolve *r, const struct schema_object *obj, struct node *map)
{
	for (size_t i = 0; i < obj->n_keys; i++) {
		const struct schema_key *k = &obj->keys[i];

		if (node_get(map, k->name))
			continue;
		if (k->def)
			node_add(r->pool, map, k->name, make_default(r, k));
		else if (k->type == TYPE_OBJECT && !is_optional(k->object))
			node_add(r->pool, map, k->name, node_new(r->pool, NODE_MAP));
	}
	if (obj->fill)
		obj->fill(r, map);
	for (size_t i = 0; i < obj->n_keys; i++) {
		struct node *n = node_get(map, obj->keys[i].name);

		if (n)
			fill_children(r, &obj->keys[i], n);
	}
}

void schema_fill(struct resolve *r)
{
	fill_object(r, &schema_root, r->root);
}

void schema_fill_user(struct resolve *r)
{
	const struct schema_key *k = schema_find(&schema_root, "user");
	struct node *user = node_get(r->root, "user");

	if (!user) {
		user = node_new(r->pool, NODE_MAP);
		node_add(r->pool, r->root, "user", user);
	}
	if (user->kind == NODE_MAP)
		fill_object(r, k->object, user);
}

/* --- objects ----------------------------------------------------------------- */

enum { DEFAULT_CPUS = 4 };
static const uint64_t default_memory = 4ULL << 30;

/* `cpuType` of old templates is vmOpts.qemu.cpuType of today. */
static void fold_cpu_type(struct resolve *r, struct node *root)
{
	struct node *old = node_get(root, "cpuType"), *opts = node_get(root, "vmOpts");
	struct node *qemu = node_get(opts, "qemu");

	if (!old || old->kind != NODE_MAP || !opts || opts->kind != NODE_MAP)
		return;
	if (!qemu) {
		qemu = node_new(r->pool, NODE_MAP);
		node_add(r->pool, opts, "qemu", qemu);
	}
	if (qemu->kind == NODE_MAP && !node_get(qemu, "cpuType"))
		node_add(r->pool, qemu, "cpuType", node_shallow_copy(r->pool, old));
}

void fill_root(struct resolve *r, struct node *root)
{
	const struct host_facts *f = host_facts();
	static const char *const lists[] = { "images", "mounts", "provision", "probes",
					     "portForwards" };

	set_text(r, root, "arch", arch_name(arch_host()));
	set_int(r, root, "cpus", MIN((unsigned)DEFAULT_CPUS, f->cpus));
	set_size(r, root, "memory", MIN(default_memory, f->memory_bytes / 2));
	set_text(r, root, "timezone", f->timezone);
	for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
		if (!node_get(root, lists[i]))
			node_add(r->pool, root, lists[i], node_new(r->pool, NODE_LIST));
	fold_cpu_type(r, root);
}

void fill_image(struct resolve *r, struct node *image)
{
	static const char *const parts[] = { "kernel", "initrd" };
	const char *arch = node_get_text(r->root, "arch");

	set_text(r, image, "arch", arch ? arch : arch_name(arch_host()));
	arch = node_get_text(image, "arch");
	for (size_t i = 0; arch && i < ARRAY_SIZE(parts); i++) {
		struct node *part = node_get(image, parts[i]);

		if (part && part->kind == NODE_MAP)
			set_text(r, part, "arch", arch);
	}
}

/* Names that useradd(8) takes everywhere, and none that a distribution uses. */
static bool usable_as_guest_user(const char *s)
{
	if (!((*s >= 'a' && *s <= 'z') || *s == '_'))
		return false;
	return strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == strlen(s) &&
	       !streq(s, "admin") && !streq(s, "root");
}

void fill_user(struct resolve *r, struct node *user)
{
	const struct host_facts *f = host_facts();
	scoped_free char *comment = xstrdup(f->comment);

	for (char *p = comment; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	set_text(r, user, "name", usable_as_guest_user(f->user) ? f->user : "lima");
	set_text(r, user, "comment", comment);
	/* root on the host is an ordinary user in the guest: 0 is never right there */
	set_int(r, user, "uid", f->uid ? f->uid : 1000);
}

/* Without //, /./, /../ and a slash at the end. */
static char *clean_path(struct resolve *r, const char *path)
{
	scoped_strv struct strv in = { 0 }, out = { 0 };
	scoped_free char *joined = NULL;
	const char *part;

	if (*path != '/')
		return node_pool_strn(r->pool, path, strlen(path));
	strv_split(&in, path, "/");
	strv_foreach(part, &in) {
		if (streq(part, "."))
			continue;
		if (!streq(part, ".."))
			strv_add(&out, part);
		else if (out.len)
			free(steal_ptr(&out.items[--out.len]));
	}
	joined = strv_join(&out, "/");
	return node_pool_printf(r->pool, "/%s", joined ? joined : "");
}

static void set_cleaned(struct resolve *r, struct node *n, const char *path)
{
	n->text = clean_path(r, path);
	n->text_len = strlen(n->text);
}

/* "~" is the home of whoever runs limactl. */
static const char *expand_home(struct resolve *r, const char *path)
{
	if (path[0] == '~' && (path[1] == 0 || path[1] == '/'))
		return node_pool_printf(r->pool, "%s%s", host_facts()->home, path + 1);
	return path;
}

const char *identity_mount(struct resolve *r, const struct node *mount)
{
	const char *at = node_get_text(mount, "mountPoint");
	const char *from = node_get_text(mount, "location");

	if (at)
		return clean_path(r, at);
	return from ? clean_path(r, expand_home(r, from)) : NULL;
}

void fill_mount(struct resolve *r, struct node *mount)
{
	struct node *location = node_get(mount, "location"), *point, *ninep;
	const char *type = node_get_text(r->root, "mountType");

	if (!location || location->kind != NODE_STRING)
		return;
	set_cleaned(r, location, expand_home(r, location->text));
	set_text(r, mount, "mountPoint", location->text);
	point = node_get(mount, "mountPoint");
	if (point->kind == NODE_STRING)
		set_cleaned(r, point, point->text);
	ninep = node_get(mount, "9p");
	if (ninep && ninep->kind == NODE_MAP)
		set_text(r, ninep, "cache", node_get_true(mount, "writable") ? "mmap" : "fscache");
	if (type && streq(type, "virtiofs") && node_get(mount, "virtiofs")->kind == NODE_MAP)
		set_int(r, node_get(mount, "virtiofs"), "queueSize", 1024);
}

static bool is_ipv4_any(const char *ip)
{
	struct in_addr a;

	return ip && inet_pton(AF_INET, ip, &a) == 1 && a.s_addr == INADDR_ANY;
}

/* reference/port-forwarding.md §1. A socket stands in for the ports of its side. */
void fill_port_forward(struct resolve *r, struct node *rule)
{
	struct node *guest = node_get(rule, "guestPort"), *host = node_get(rule, "hostPort");
	struct node *range = node_get(rule, "guestPortRange");
	struct node *socket = node_get(rule, "hostSocket");
	const struct node *lane = node_at(r->root, "portForwarding", "lane", NULL);

	if (lane && lane->kind == NODE_STRING)
		set_text(r, rule, "lane", lane->text);
	set_text(r, rule, "guestIP",
		 node_get_true(rule, "guestIPMustBeZero") ? "0.0.0.0" : "127.0.0.1");
	set_bool(r, rule, "guestIPMustBeZero", is_ipv4_any(node_get_text(rule, "guestIP")));
	if (!range && !node_get(rule, "guestSocket")) {
		if (guest && guest->kind == NODE_INT)
			set_range(r, rule, "guestPortRange", guest->num, guest->num);
		else if (!guest)
			set_range(r, rule, "guestPortRange", 1, 65535);
	}
	range = node_get(rule, "guestPortRange");
	if (!node_get(rule, "hostPortRange") && !socket) {
		if (host && host->kind == NODE_INT)
			set_range(r, rule, "hostPortRange", host->num, host->num);
		else if ((!host || host->kind == NODE_STRING) && range && range->kind == NODE_LIST)
			set_range(r, rule, "hostPortRange", range->items[0]->num,
				  range->items[1]->num);
	}
	if (socket && socket->kind == NODE_STRING && *socket->text != '/') {
		socket->text = node_pool_printf(r->pool, "%s/sock/%s", r->ctx->instance_dir,
						socket->text);
		socket->text_len = strlen(socket->text);
	}
}

void fill_provision(struct resolve *r, struct node *p)
{
	const char *mode = node_get_text(p, "mode");

	if (!mode)
		return;
	if (streq(mode, "data")) {
		set_text(r, p, "content", "");
		set_bool(r, p, "overwrite", true);
	}
	if (streq(mode, "data") || streq(mode, "yq")) {
		set_text(r, p, "owner", "root:root");
		set_text(r, p, "permissions", "644");
	}
	if (streq(mode, "yq"))
		set_text(r, p, "format", "auto");
	if (streq(mode, "dependency"))
		set_bool(r, p, "skipDefaultDependencyResolution", false);
}

bool skip_provision(const struct node *p)
{
	const char *mode = node_get_text(p, "mode");

	return mode && (streq(mode, "yq") || streq(mode, "ansible"));
}

void fill_probe(struct resolve *r, struct node *probe)
{
	const struct node *all = node_get(r->root, "probes");
	size_t i = 0;

	while (i < all->n_items && all->items[i] != probe)
		i++;
	if (!node_get(probe, "description"))
		set_text(r, probe, "description",
			 node_pool_printf(r->pool, "user probe %zu/%zu", i + 1, all->n_items));
}

const char *identity_network(struct resolve *r, const struct node *network)
{
	return node_get_text(network, "interface");
}

void fill_network(struct resolve *r, struct node *network)
{
	const struct node *all = node_get(r->root, "networks");
	size_t i = 0;

	while (i < all->n_items && all->items[i] != network)
		i++;
	set_text(r, network, "interface", node_pool_printf(r->pool, "lima%zu", i));
}
