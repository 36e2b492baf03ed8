#include <jansson.h>
#include <string.h>

#include "hostagent/cidata_impl.h"
#include "lib/base/mem.h"

/* All three files are YAML to cloud-init. They are written in its JSON subset
 * (YAML 1.2, 1.3 "Relation to JSON"): a JSON writer quotes every text there is,
 * so no name, key or script of a template can become syntax. */

static void dump(json_t *root, struct buf *b)
{
	char *text = json_dumps(root, JSON_INDENT(2) | JSON_ENSURE_ASCII);

	buf_add_str(b, text);
	buf_add_str(b, "\n");
	free(text);
	json_decref(root);
}

static json_t *string(const char *s)
{
	return json_stringn_nocheck(s, strlen(s));	/* validated as UTF-8 when it was read */
}

static json_t *strings(const struct strv *v)
{
	json_t *list = json_array();
	const char *s;

	strv_foreach(s, v)
		json_array_append_new(list, string(s));
	return list;
}

static json_t *user(const struct cidata_spec *s)
{
	const struct config *c = s->config;
	scoped_free char *uid = xasprintf("%u", c->user.uid);
	json_t *u = json_object();

	json_object_set_new(u, "name", string(c->user.name));
	json_object_set_new(u, "uid", string(uid));	/* cloud-init wants a string */
	json_object_set_new(u, "gecos", string(c->user.comment));
	json_object_set_new(u, "homedir", string(c->user.home));
	json_object_set_new(u, "shell", string(c->user.shell));
	json_object_set_new(u, "lock_passwd", json_true());
	json_object_set_new(u, "sudo", string(c->user.passwordless_sudo ?
					      "ALL=(ALL:ALL) NOPASSWD:ALL" : "ALL=(ALL:ALL) ALL"));
	json_object_set_new(u, "ssh_authorized_keys", strings(s->ssh_public_keys));
	return u;
}

/* cloud-init runs what lies in scripts/per-boot at each boot; users' own sort after it. */
static json_t *per_boot(const char *mount)
{
	scoped_free char *script = xasprintf("#!/bin/sh\n(\n%s) && exec sh /mnt/lima-cidata/boot.sh\n",
					     mount);

	return json_pack("[{s:s, s:s, s:s, s:o}]", "path",
			 "/var/lib/cloud/scripts/per-boot/00-lima.boot.sh", "owner", "root:root",
			 "permissions", "0755", "content", string(script));
}

static json_t *boot_command(const char *mount)
{
	scoped_free char *script = xasprintf("(\n%s) && . /mnt/lima-cidata/lib.sh && "
					     "load $seed/lima.env && load $seed/param.env && "
					     ". $seed/provision-boot.sh", mount);

	return json_pack("[[s, s, o]]", "sh", "-c", string(script));
}

static bool has_boot_provision(const struct config *c)
{
	for (size_t i = 0; i < c->n_provision; i++)
		if (c->provision[i].mode == PROVISION_BOOT)
			return true;
	return false;
}

void cidata_cloud_user_data(const struct cidata_facts *f, const char *mount, bool with_keys,
			    struct buf *b)
{
	const struct config *c = f->spec->config;
	json_t *root = json_object();

	json_object_set_new(root, "growpart", json_pack("{s:s, s:[s]}", "mode", "auto",
							"devices", "/"));
	if (c->upgrade_packages) {
		json_object_set_new(root, "package_update", json_true());
		json_object_set_new(root, "package_upgrade", json_true());
		json_object_set_new(root, "package_reboot_if_required", json_true());
	}
	if (*c->timezone)
		json_object_set_new(root, "timezone", string(c->timezone));
	json_object_set_new(root, "users", json_pack("[o]", user(f->spec)));
	if (with_keys)
		json_object_set_new(root, "ssh_keys",
				    json_pack("{s:o, s:o}", "ed25519_private",
					      string(buf_str(&f->host_key)), "ed25519_public",
					      string(buf_str(&f->host_key_pub))));
	json_object_set_new(root, "no_ssh_fingerprints", json_true());
	json_object_set_new(root, "ssh", json_pack("{s:b}", "emit_keys_to_console", 0));
	if (c->dns.len) {
		json_object_set_new(root, "manage_resolv_conf", json_true());
		json_object_set_new(root, "resolv_conf",
				    json_pack("{s:o}", "nameservers", strings(&c->dns)));
	}
	if (has_boot_provision(c))
		json_object_set_new(root, "bootcmd", boot_command(mount));
	json_object_set_new(root, "write_files", per_boot(mount));
	buf_add_str(b, "#cloud-config\n");
	dump(root, b);
}

void cidata_cloud_meta_data(const struct cidata_facts *f, struct buf *b)
{
	dump(json_pack("{s:s, s:s}", "instance-id", f->instance_id, "local-hostname",
		       f->spec->hostname), b);
}

/* netplan's version 2. By MAC address, since names depend on the guest's kernel;
 * metric as reference/network-dns-mounts.md §1. */
void cidata_cloud_network(const struct cidata_facts *f, struct buf *b)
{
	scoped_strv struct strv servers = { 0 };

	cidata_name_servers(f, &servers);
	dump(json_pack("{s:i, s:{s:{s:{s:s}, s:b, s:s, s:{s:i}, s:s, s:{s:o}}}}",
		       "version", 2, "ethernets", "eth0", "match", "macaddress", f->spec->mac,
		       "dhcp4", 1, "set-name", "eth0", "dhcp4-overrides", "route-metric", 200,
		       "dhcp-identifier", "mac", "nameservers", "addresses", strings(&servers)), b);
}
