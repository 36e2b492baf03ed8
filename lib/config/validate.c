/* Last stage before decoding: what must hold between values. */
#include "lib/config/schema.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "lib/base/mem.h"
#include "lib/config/version.h"

/* Of a map or list, each entry that fails the check when it stands alone. */
static void check_entries(struct resolve *r, const struct schema_key *k, const struct node *n)
{
	for (size_t i = 0; i < n->n_items; i++) {
		struct node *one[] = { n->items[i] };
		const struct node alone = { .kind = n->kind, .items = one, .n_items = 1 };
		const char *what = k->check(&alone);

		if (what)
			problem_error(&r->problems, n->items[i], "%s", what);
	}
}

static void check_value(struct resolve *r, const struct schema_key *k, const struct node *n)
{
	const char *what;

	if (!k->check || n->kind == NODE_BAD)
		return;
	if (k->type == TYPE_MAP || k->type == TYPE_STRINGS) {
		check_entries(r, k, n);
		return;
	}
	what = k->check(n);
	if (what)
		problem_error(&r->problems, n, "%s %s", problem_value(r->pool, n), what);
}

static void validate_object(struct resolve *r, const struct schema_object *obj,
			    const struct node *map)
{
	for (size_t i = 0; i < obj->n_keys; i++) {
		const struct schema_key *k = &obj->keys[i];
		const struct node *n = node_get(map, k->name);

		if ((k->flags & KEY_REQUIRED) &&
		    (!n || (n->kind == NODE_STRING && !n->text_len)))
			problem_error_in(&r->problems, map, k->name, "is missing");
		else if (n)
			check_value(r, k, n);
		if (n && k->type == TYPE_OBJECT && n->kind == NODE_MAP)
			validate_object(r, k->object, n);
		for (size_t j = 0; n && k->type == TYPE_LIST && j < n->n_items; j++)
			if (n->items[j]->kind == NODE_MAP)
				validate_object(r, k->object, n->items[j]);
	}
	if (obj->check)
		obj->check(r, map);
}

void schema_validate(struct resolve *r)
{
	validate_object(r, &schema_root, r->root);
}

static bool is_written(const struct node *n)
{
	return n && n->file;
}

/* --- the whole ------------------------------------------------------------------ */

static bool list_has(const struct node *list, const char *text)
{
	for (size_t i = 0; list && list->kind == NODE_LIST && i < list->n_items; i++)
		if (streq(list->items[i]->text, text))
			return true;
	return false;
}

static void check_images(struct resolve *r, const struct node *root)
{
	const struct node *images = node_get(root, "images");
	const char *arch = node_get_text(root, "arch");
	scoped_strv struct strv others = { 0 };

	if (!images || images->kind != NODE_LIST || !arch)
		return;
	if (!images->n_items) {
		problem_error_in(&r->problems, root, "images",
				 "none given; add at least one `- location: URL`");
		return;
	}
	for (size_t i = 0; i < images->n_items; i++) {
		const char *of = node_get_text(images->items[i], "arch");

		if (!of || streq(of, arch))
			return;
		if (!strv_contains(&others, of))
			strv_add(&others, of);
	}
	scoped_free char *list = strv_join(&others, ", ");
	problem_error_in(&r->problems, root, "images", "none is for arch %s, only for %s", arch,
			 list);
}

static void check_machine(struct resolve *r, const struct node *root)
{
	const char *vm = node_get_text(root, "vmType"), *os = node_get_text(root, "os");
	const char *least = node_get_text(root, "minimumLimaVersion");
	const struct node *memory = node_get(root, "memory"), *disk = node_get(root, "disk");

	if (vm && !streq(vm, "qemu"))
		problem_error_in(&r->problems, root, "vmType",
				 "\"%s\" is no machine this host can run; leave it out or use qemu",
				 vm);
	if (os && !streq(os, "Linux"))
		problem_error_in(&r->problems, root, "os", "%s guests cannot be run; only Linux",
				 os);
	if (memory && memory->kind == NODE_STRING && memory->num < 64 << 20)
		problem_error(&r->problems, memory, "%s is less than 64MiB, the least that a guest can do with",
			      problem_value(r->pool, memory));
	if (disk && disk->kind == NODE_STRING && disk->num < 1 << 20)
		problem_error(&r->problems, disk, "%s is less than 1MiB",
			      problem_value(r->pool, disk));
	if (least && version_valid(least) && version_compare(least, LIMA_COMPAT_VERSION) > 0)
		problem_error_in(&r->problems, root, "minimumLimaVersion",
				 "asks for Lima %s, this program matches %s; update it", least,
				 LIMA_COMPAT_VERSION);
}

static void check_dns(struct resolve *r, const struct node *root)
{
	const struct node *dns = node_get(root, "dns");

	if (dns && dns->kind == NODE_LIST && dns->n_items &&
	    node_get_true(node_get(root, "hostResolver"), "enabled"))
		problem_error(&r->problems, dns,
			      "has no use while hostResolver.enabled is true; set that to false");
}

void check_root(struct resolve *r, const struct node *root)
{
	const struct node *base = node_get(root, "base");
	const char *mount_type = node_get_text(root, "mountType");
	const char *arch = node_get_text(root, "arch");

	check_images(r, root);
	check_machine(r, root);
	check_dns(r, root);
	check_params_used(r, root);
	if (base && base->kind == NODE_LIST && base->n_items)
		problem_error(&r->problems, base,
			      "is resolved when an instance is created and cannot stay");
	if (mount_type && list_has(node_get(root, "mountTypesUnsupported"), mount_type))
		problem_error_in(&r->problems, root, "mountType",
				 "\"%s\" is in mountTypesUnsupported", mount_type);
	if (arch && !streq(arch, "x86_64") && !streq(arch, "aarch64"))
		problem_warn(&r->problems, node_get(root, "arch"), "%s: this version runs x86_64 and "
			     "aarch64 guests only", arch);
	if (!node_get_true(node_get(root, "user"), "passwordlessSudo") &&
	    !node_get_true(root, "plain"))
		problem_error_in(&r->problems, node_get(root, "user"), "passwordlessSudo",
				 "false needs `plain: true`: the guest agent works as root");
}

/* --- images ---------------------------------------------------------------------- */

void check_image(struct resolve *r, const struct node *image)
{
	static const char *const parts[] = { "kernel", "initrd" };
	const char *arch = node_get_text(image, "arch");

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		const struct node *part = node_get(image, parts[i]);
		const char *of = node_get_text(part, "arch");

		if (of && arch && !streq(of, arch))
			problem_error_in(&r->problems, part, "arch", "%s, but the image is for %s",
					 of, arch);
	}
	if (node_get(image, "initrd") && !node_get(image, "kernel"))
		problem_error_in(&r->problems, image, "initrd", "has no use without a kernel");
}

/* --- user ------------------------------------------------------------------------ */

void check_user(struct resolve *r, const struct node *user)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
	static const char more[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789.-";
	const struct node *name = node_get(user, "name"), *comment = node_get(user, "comment");

	if (name && name->kind == NODE_STRING) {
		if (streq(name->text, "root"))
			problem_error(&r->problems, name, "root cannot be the guest's user");
		else if (!strchr(letters, *name->text) ||
			 strspn(name->text, more) != name->text_len || name->text_len > 32)
			problem_error(&r->problems, name, "%s is not a user name",
				      problem_value(r->pool, name));
	}
	/* colon and line break would make another field or line in /etc/passwd */
	if (comment && comment->kind == NODE_STRING &&
	    (check_one_line(comment) || strchr(comment->text, ':')))
		problem_error(&r->problems, comment,
			      "has a colon, a line break or a control character");
}

/* --- mounts ---------------------------------------------------------------------- */

static void check_mount_on_host(struct resolve *r, const struct node *location)
{
	struct stat st;

	if (stat(location->text, &st) < 0)
		problem_warn(&r->problems, location, "%s: %s", problem_value(r->pool, location),
			     error_text(-errno));
	else if (!S_ISDIR(st.st_mode))
		problem_error(&r->problems, location, "%s is not a directory",
			      problem_value(r->pool, location));
}

void check_mount(struct resolve *r, const struct node *mount)
{
	static const char *const taken[] = { "/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin",
					     "/tmp", "/usr", "/var" };
	const struct node *location = node_get(mount, "location");
	const struct node *point = node_get(mount, "mountPoint");
	const char *home = node_get_text(node_get(r->root, "user"), "home");

	if (!location || location->kind != NODE_STRING || !location->text_len)
		return;
	if (*location->text != '/')
		problem_error(&r->problems, location, "%s is not an absolute path",
			      problem_value(r->pool, location));
	else if (r->ctx->check_host)
		check_mount_on_host(r, location);
	if (!point || point->kind != NODE_STRING)
		return;
	if (*point->text != '/' && is_written(point))
		problem_error(&r->problems, point, "%s is not an absolute path in the guest",
			      problem_value(r->pool, point));
	for (size_t i = 0; i < ARRAY_SIZE(taken); i++)
		if (streq(point->text, taken[i]))
			problem_error(&r->problems, point, "%s is the guest's own directory",
				      problem_value(r->pool, point));
	if (home && streq(point->text, home))
		problem_error(&r->problems, point, "%s is the guest user's home directory",
			      problem_value(r->pool, point));
}

void check_disk(struct resolve *r, const struct node *disk)
{
	static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	const struct node *name = node_get(disk, "name");

	if (name && name->kind == NODE_STRING && name->text_len &&
	    (strspn(name->text, ok) != name->text_len || strchr("._-", *name->text)))
		problem_error(&r->problems, name, "%s is not a disk name",
			      problem_value(r->pool, name));
}

/* --- network --------------------------------------------------------------------- */

static bool is_mac(const char *s)
{
	for (int i = 0; i < 6; i++, s += 3) {
		if (strspn(s, "0123456789abcdefABCDEF") != 2 || s[2] != (i < 5 ? ':' : 0))
			return false;
	}
	return true;
}

void check_network(struct resolve *r, const struct node *network)
{
	const struct node *mac = node_get(network, "macAddress");
	const struct node *dev = node_get(network, "interface");
	int ways = !!node_get(network, "lima") + !!node_get(network, "socket") +
		   node_get_true(network, "vzNAT");

	if (ways != 1)
		problem_error(&r->problems, network, "needs exactly one of lima, socket, vzNAT");
	if (mac && mac->kind == NODE_STRING && !is_mac(mac->text))
		problem_error(&r->problems, mac, "%s is not a MAC address",
			      problem_value(r->pool, mac));
	if (dev && dev->kind == NODE_STRING &&	/* IFNAMSIZ is 16 with the NUL */
	    (dev->text_len > 15 || strpbrk(dev->text, " \t\n/") || streq(dev->text, "eth0")))
		problem_error(&r->problems, dev, "%s cannot be the name of an extra interface",
			      problem_value(r->pool, dev));
}

static int64_t range_len(const struct node *range)
{
	return range && range->kind == NODE_LIST ?
		       range->items[1]->num - range->items[0]->num + 1 : 0;
}

static void check_ports_agree(struct resolve *r, const struct node *rule, const char *port_key,
			      const char *range_key)
{
	const struct node *port = node_get(rule, port_key), *range = node_get(rule, range_key);

	if (port && port->kind == NODE_INT && is_written(range) && range_len(range) &&
	    range->items[0]->num != port->num)
		problem_error(&r->problems, port, "%lld is not the first port of %s, %lld",
			      (long long)port->num, range_key, (long long)range->items[0]->num);
}

static void check_socket(struct resolve *r, const struct node *rule, const char *side)
{
	const char *key = node_pool_printf(r->pool, "%sSocket", side);
	const struct node *sock = node_get(rule, key);
	const char *proto = node_get_text(rule, "proto");
	const char *ports[] = { node_pool_printf(r->pool, "%sPort", side),
				node_pool_printf(r->pool, "%sPortRange", side) };

	if (!sock || sock->kind != NODE_STRING)
		return;
	if (*sock->text != '/')
		problem_error(&r->problems, sock, "%s is not an absolute path",
			      problem_value(r->pool, sock));
	for (size_t i = 0; i < ARRAY_SIZE(ports); i++)
		if (is_written(node_get(rule, ports[i])))
			problem_error(&r->problems, sock, "goes together with %s; give only one",
				      ports[i]);
	if (proto && streq(proto, "udp"))
		problem_error(&r->problems, sock, "a socket carries no udp");
	if (streq(side, "host") && sock->text_len >= sizeof(((struct sockaddr_un *)0)->sun_path))
		problem_error(&r->problems, sock, "path of %zu bytes; a socket's is below %zu",
			      sock->text_len, sizeof(((struct sockaddr_un *)0)->sun_path));
}

/* One end a socket, the other a port: exactly one port. */
static void check_socket_to_port(struct resolve *r, const struct node *rule)
{
	const struct node *guest = node_get(rule, "guestPortRange");
	const struct node *host = node_get(rule, "hostPortRange");
	bool guest_sock = node_get(rule, "guestSocket"), host_sock = node_get(rule, "hostSocket");

	if (node_get_true(rule, "ignore"))
		return;
	if (host_sock && !guest_sock && range_len(guest) > 1)
		problem_error_in(&r->problems, rule, "hostSocket",
				 "needs exactly one guestPort, or a guestSocket");
	else if (guest_sock && !host_sock && range_len(host) != 1 &&
		 !node_get_text(rule, "hostPort"))
		problem_error_in(&r->problems, rule, "guestSocket",
				 "needs exactly one hostPort, or a hostSocket");
	if (node_get_true(rule, "reverse") && (!guest_sock || !host_sock))
		problem_error_in(&r->problems, rule, "reverse",
				 "works with guestSocket and hostSocket only");
}

enum { STATIC_PORTS_MAX = 1024 };	/* each is a listener from the start */

static void check_static(struct resolve *r, const struct node *rule)
{
	int64_t n = range_len(node_get(rule, "guestPortRange"));
	const char *proto = node_get_text(rule, "proto");

	if (!node_get_true(rule, "static"))
		return;
	if (node_get_true(rule, "ignore"))
		problem_warn(&r->problems, rule, "static does nothing in a rule with ignore");
	else if (n > STATIC_PORTS_MAX)
		problem_error_in(&r->problems, rule, "static",
				 "%lld ports; each is a listener from the start, at most %d may be",
				 (long long)n, STATIC_PORTS_MAX);
	else if (node_get_true(r->root, "plain") && n > 10)
		problem_warn(&r->problems, rule, "%lld static ports: each is a listener for good",
			     (long long)n);
	if (node_get_true(r->root, "plain") && proto && streq(proto, "udp"))
		problem_warn(&r->problems, node_get(rule, "proto"),
			     "plain mode has ssh only, which carries no udp: this stays closed");
}

/* Only a lane that was asked for in this very rule can be wrong. */
static void check_lane(struct resolve *r, const struct node *rule)
{
	const struct node *lane = node_get(rule, "lane");
	const char *proto = node_get_text(rule, "proto");

	if (!is_written(lane) || lane->kind != NODE_STRING)
		return;
	if (streq(lane->text, "ssh") && proto && streq(proto, "udp"))
		problem_error(&r->problems, lane, "ssh carries no udp");
	if (node_get(rule, "guestSocket") && !streq(lane->text, "ssh") &&
	    !streq(lane->text, "auto"))
		problem_error(&r->problems, lane, "a guestSocket is always carried by ssh");
}

static void check_host_port_auto(struct resolve *r, const struct node *rule)
{
	const struct node *port = node_get(rule, "hostPort");

	if (!port || port->kind != NODE_STRING)
		return;
	if (is_written(node_get(rule, "hostPortRange")))
		problem_error(&r->problems, port, "goes together with hostPortRange; give only one");
	if (node_get(rule, "guestSocket"))
		problem_error(&r->problems, port, "a guestSocket has no number to begin with; "
			      "name a hostPort");
}

void check_port_forward(struct resolve *r, const struct node *rule)
{
	const struct node *guest = node_get(rule, "guestPortRange");
	const struct node *host = node_get(rule, "hostPortRange");
	const char *guest_ip = node_get_text(rule, "guestIP");

	check_ports_agree(r, rule, "guestPort", "guestPortRange");
	check_ports_agree(r, rule, "hostPort", "hostPortRange");
	check_socket(r, rule, "guest");
	check_socket(r, rule, "host");
	check_socket_to_port(r, rule);
	/* with one of the two lists only filled in, the other end says what is wrong */
	if (range_len(guest) && range_len(host) && range_len(guest) != range_len(host))
		problem_error_in(&r->problems, rule,
				 is_written(host) ? "hostPortRange" :
				 node_get(rule, "hostPort") ? "hostPort" : "guestPortRange",
				 "%lld host ports for %lld guest ports", (long long)range_len(host),
				 (long long)range_len(guest));
	if (node_get_true(rule, "guestIPMustBeZero") && guest_ip && !streq(guest_ip, "0.0.0.0"))
		problem_error_in(&r->problems, rule, "guestIPMustBeZero",
				 "true needs guestIP 0.0.0.0, not %s", guest_ip);
	check_static(r, rule);
	check_lane(r, rule);
	check_host_port_auto(r, rule);
}

/* --- provision, probes ------------------------------------------------------------ */

struct mode_rule {		/* which keys a mode needs and may have */
	const char *mode, *needs, *needs_too;
	const char *allowed;	/* ",a,b,": others of the special keys are errors */
};

static const struct mode_rule mode_rules[] = {
	{ "system", "script", NULL, "," },
	{ "user", "script", NULL, "," },
	{ "boot", "script", NULL, "," },
	{ "dependency", "script", NULL, ",skipDefaultDependencyResolution," },
	{ "data", "path", NULL, ",path,content,overwrite,owner,permissions," },
	{ "yq", "path", "expression", ",path,owner,permissions,expression,format," },
	{ "ansible", "playbook", NULL, ",playbook," },
};

static void check_mode_keys(struct resolve *r, const struct mode_rule *rule, const struct node *p)
{
	static const char *const special[] = { "skipDefaultDependencyResolution", "path", "content",
					       "overwrite", "owner", "permissions", "expression",
					       "format", "playbook" };
	const char *needs[] = { rule->needs, rule->needs_too };

	for (size_t i = 0; i < ARRAY_SIZE(special); i++) {
		scoped_free char *in_list = xasprintf(",%s,", special[i]);

		if (node_get(p, special[i]) && !strstr(rule->allowed, in_list))
			problem_error_in(&r->problems, p, special[i], "has no use in mode %s",
					 rule->mode);
	}
	for (size_t i = 0; i < ARRAY_SIZE(needs); i++) {
		const struct node *n = needs[i] ? node_get(p, needs[i]) : p;

		if (!n || (n->kind == NODE_STRING && !n->text_len))
			problem_error_in(&r->problems, p, needs[i], "is missing (mode %s)",
					 rule->mode);
	}
}

void check_provision(struct resolve *r, const struct node *p)
{
	const char *mode = node_get_text(p, "mode"), *script = node_get_text(p, "script");

	if (node_get(p, "file")) {
		problem_error_in(&r->problems, p, "file",
				 "is read when an instance is created and cannot stay");
		return;
	}
	for (size_t i = 0; mode && i < ARRAY_SIZE(mode_rules); i++)
		if (streq(mode, mode_rules[i].mode))
			check_mode_keys(r, &mode_rules[i], p);
	if (skip_provision(p))
		problem_warn(&r->problems, p, "mode %s has no effect yet: this entry is skipped",
			     mode);
	if (script && strstr(script, "LIMA_CIDATA"))
		problem_warn(&r->problems, node_get(p, "script"),
			     "mentions LIMA_CIDATA…, which may change between versions");
}

void check_probe(struct resolve *r, const struct node *probe)
{
	const struct node *script = node_get(probe, "script");

	if (node_get(probe, "file"))
		problem_error_in(&r->problems, probe, "file",
				 "is read when an instance is created and cannot stay");
	else if (!script)
		problem_error_in(&r->problems, probe, "script", "is missing");
	else if (script->kind == NODE_STRING && strncmp(script->text, "#!", 2) != 0)
		problem_error(&r->problems, script, "must start with #!");
}
