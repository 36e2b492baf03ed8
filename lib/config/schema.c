#include "lib/config/schema.h"

#include <assert.h>

#include "lib/base/mem.h"

/* A row names only what differs from zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

/* Facts: reference/lima-yaml.md §5 (fields, defaults) and port-forwarding.md §1. */

#define FIELD(type_, member) .field = offsetof(type_, member) + 1
#define ITEMS(type_, member, n_member) \
	.field = offsetof(type_, member) + 1, .count = offsetof(type_, n_member) + 1
#define OBJECT(name, ...) \
	static const struct schema_object name = { \
		.keys = name##_keys, .n_keys = ARRAY_SIZE(name##_keys), __VA_ARGS__ \
	}

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static const char *const arch_words[] = {	/* order of enum arch */
	"x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x", NULL,
};
static_assert(ARRAY_SIZE(arch_words) == ARCH_COUNT + 1, "one word for each arch");

static const char *const mount_types[] = { "reverse-sshfs", "9p", "virtiofs", "wsl2", NULL };

/* --- images ------------------------------------------------------------------ */

static const struct schema_key kernel_keys[] = {
	{ "location", TYPE_STRING, KEY_REQUIRED, .check = check_location,
	  FIELD(struct config_image, kernel.location) },
	{ "arch", TYPE_ENUM, KEY_EMPTY_UNSET, .words = arch_words,
	  FIELD(struct config_image, kernel.arch) },
	{ "digest", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_digest,
	  FIELD(struct config_image, kernel.digest) },
	{ "cmdline", TYPE_STRING, .check = check_one_line,
	  FIELD(struct config_image, kernel_cmdline) },
};
OBJECT(kernel);

static const struct schema_key initrd_keys[] = {
	{ "location", TYPE_STRING, KEY_REQUIRED, .check = check_location,
	  FIELD(struct config_image, initrd.location) },
	{ "arch", TYPE_ENUM, KEY_EMPTY_UNSET, .words = arch_words,
	  FIELD(struct config_image, initrd.arch) },
	{ "digest", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_digest,
	  FIELD(struct config_image, initrd.digest) },
};
OBJECT(initrd);

static const struct schema_key image_keys[] = {
	{ "location", TYPE_STRING, KEY_REQUIRED, .check = check_location,
	  FIELD(struct config_image, file.location) },
	{ "arch", TYPE_ENUM, KEY_EMPTY_UNSET, .words = arch_words,
	  FIELD(struct config_image, file.arch) },
	{ "digest", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_digest,
	  FIELD(struct config_image, file.digest) },
	{ "variant", TYPE_STRING, KEY_EMPTY_UNSET, FIELD(struct config_image, variant) },
	{ "archVariant", TYPE_STRING, KEY_EMPTY_UNSET, FIELD(struct config_image, arch_variant) },
	{ "kernel", TYPE_OBJECT, .object = &kernel },
	{ "initrd", TYPE_OBJECT, .object = &initrd },
};
OBJECT(image, .size = sizeof(struct config_image), .fill = fill_image, .check = check_image);

/* A file that this version never fetches: archives, firmware images. */
static const struct schema_key file_keys[] = {
	{ "location", TYPE_STRING, KEY_REQUIRED },
	{ "arch", TYPE_ENUM, KEY_EMPTY_UNSET, .words = arch_words },
	{ "digest", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_digest },
	{ "vmType", TYPE_STRING },
};
OBJECT(file);

/* What `base` and `file` name; gone once embed.c has run. */
static const struct schema_key locator_keys[] = {
	{ "url", TYPE_STRING, KEY_REQUIRED },
	{ "digest", TYPE_STRING },
};
OBJECT(locator);

/* --- user, ssh, guest software ------------------------------------------------- */

static const struct schema_key user_keys[] = {
	{ "name", TYPE_STRING, KEY_EMPTY_UNSET, FIELD(struct config, user.name) },
	{ "comment", TYPE_STRING, FIELD(struct config, user.comment) },
	{ "home", TYPE_STRING, KEY_EMPTY_UNSET | KEY_GUEST_EXPR, .def = "/home/{{.User}}.guest",
	  .check = check_guest_path, FIELD(struct config, user.home) },
	{ "shell", TYPE_STRING, KEY_EMPTY_UNSET, .def = "/bin/bash", .check = check_guest_path,
	  FIELD(struct config, user.shell) },
	/* 2^32-1 and 2^16-1 mean "no user" to chown(2) and friends */
	{ "uid", TYPE_INT, .min = 1, .max = 4294967294, FIELD(struct config, user.uid) },
	{ "passwordlessSudo", TYPE_BOOL, .def = "true",
	  FIELD(struct config, user.passwordless_sudo) },
};
OBJECT(user, .fill = fill_user, .check = check_user);

static const struct schema_key ssh_keys[] = {
	{ "localPort", TYPE_PORT, .def = "0", .check = check_ssh_port,
	  FIELD(struct config, ssh.local_port) },
	{ "loadDotSSHPubKeys", TYPE_BOOL, .def = "false",
	  FIELD(struct config, ssh.load_dot_ssh_pub_keys) },
	{ "forwardAgent", TYPE_BOOL, .def = "false", FIELD(struct config, ssh.forward_agent) },
	{ "forwardX11", TYPE_BOOL, .def = "false", FIELD(struct config, ssh.forward_x11) },
	{ "forwardX11Trusted", TYPE_BOOL, .def = "false",
	  FIELD(struct config, ssh.forward_x11_trusted) },
	{ "overVsock", TYPE_BOOL, .def = "false", FIELD(struct config, ssh.over_vsock) },
};
OBJECT(ssh);

static const struct schema_key containerd_keys[] = {
	{ "system", TYPE_BOOL, KEY_NO_EFFECT, .def = "false" },
	{ "user", TYPE_BOOL, KEY_NO_EFFECT, .def = "false" },
	{ "archives", TYPE_LIST, .object = &file },
};
OBJECT(containerd);

static const struct schema_key ca_certs_keys[] = {
	{ "removeDefaults", TYPE_BOOL, KEY_NO_EFFECT, .def = "false" },
	{ "files", TYPE_STRINGS, KEY_NO_EFFECT, MERGE_UNION },
	{ "certs", TYPE_STRINGS, KEY_NO_EFFECT, MERGE_UNION },
};
OBJECT(ca_certs);

static const struct schema_key provision_keys[] = {
	/* order of enum provision_mode; yq and ansible have no place in it */
	{ "mode", TYPE_ENUM, KEY_EMPTY_UNSET, .def = "system",
	  .words = WORDS("system", "user", "boot", "dependency", "data", "yq", "ansible"),
	  FIELD(struct config_provision, mode) },
	{ "script", TYPE_STRING, KEY_GUEST_EXPR, FIELD(struct config_provision, script) },
	{ "file", TYPE_OBJECT, .object = &locator, .short_key = "url" },
	{ "skipDefaultDependencyResolution", TYPE_BOOL,
	  FIELD(struct config_provision, skip_default_dependency_resolution) },
	{ "path", TYPE_STRING, KEY_GUEST_EXPR, .check = check_absolute,
	  FIELD(struct config_provision, path) },
	{ "content", TYPE_STRING, KEY_GUEST_EXPR, FIELD(struct config_provision, content) },
	{ "overwrite", TYPE_BOOL, FIELD(struct config_provision, overwrite) },
	{ "owner", TYPE_STRING, KEY_GUEST_EXPR, .check = check_one_line,
	  FIELD(struct config_provision, owner) },
	{ "permissions", TYPE_STRING, .check = check_octal,
	  FIELD(struct config_provision, permissions) },
	{ "expression", TYPE_STRING, KEY_GUEST_EXPR },
	{ "format", TYPE_WORD,
	  .words = WORDS("auto", "csv", "ini", "json", "props", "tsv", "toml", "xml", "yaml") },
	{ "playbook", TYPE_STRING },
};
OBJECT(provision, .size = sizeof(struct config_provision), .fill = fill_provision,
       .check = check_provision, .skip = skip_provision);

static const struct schema_key probe_keys[] = {
	{ "mode", TYPE_WORD, KEY_EMPTY_UNSET, .def = "readiness", .words = WORDS("readiness") },
	{ "description", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_one_line,
	  FIELD(struct config_probe, description) },
	{ "script", TYPE_STRING, KEY_GUEST_EXPR, FIELD(struct config_probe, script) },
	{ "file", TYPE_OBJECT, .object = &locator, .short_key = "url" },
	{ "hint", TYPE_STRING, .def = "", FIELD(struct config_probe, hint) },
};
OBJECT(probe, .size = sizeof(struct config_probe), .fill = fill_probe, .check = check_probe);

/* --- disks, mounts ------------------------------------------------------------- */

static const struct schema_key disk_keys[] = {
	{ "name", TYPE_STRING, KEY_REQUIRED },
	{ "format", TYPE_BOOL, .def = "true" },
	{ "fsType", TYPE_STRING },
	{ "fsArgs", TYPE_STRINGS, 0, MERGE_WHOLE },
};
OBJECT(disk, .check = check_disk);

static const struct schema_key sshfs_keys[] = {
	{ "cache", TYPE_BOOL, .def = "true" },
	{ "followSymlinks", TYPE_BOOL, .def = "false" },
	{ "sftpDriver", TYPE_WORD, KEY_EMPTY_UNSET,
	  .words = WORDS("builtin", "openssh-sftp-server") },
};
OBJECT(sshfs);

static const struct schema_key ninep_keys[] = {
	{ "securityModel", TYPE_WORD, KEY_EMPTY_UNSET, .def = "none",
	  .words = WORDS("none", "passthrough", "mapped-xattr", "mapped-file") },
	{ "protocolVersion", TYPE_WORD, KEY_EMPTY_UNSET, .def = "9p2000.L",
	  .words = WORDS("9p2000", "9p2000.u", "9p2000.L") },
	{ "msize", TYPE_SIZE, KEY_EMPTY_UNSET, .def = "128KiB" },
	{ "cache", TYPE_WORD, KEY_EMPTY_UNSET,
	  .words = WORDS("none", "loose", "fscache", "mmap") },
};
OBJECT(ninep);

static const struct schema_key virtiofs_keys[] = {
	{ "queueSize", TYPE_INT },
};
OBJECT(virtiofs);

static const struct schema_key mount_keys[] = {
	{ "location", TYPE_STRING, KEY_REQUIRED | KEY_HOST_EXPR,
	  FIELD(struct config_mount, location) },
	{ "mountPoint", TYPE_STRING, KEY_EMPTY_UNSET | KEY_GUEST_EXPR,
	  FIELD(struct config_mount, mount_point) },
	{ "writable", TYPE_BOOL, .def = "false", FIELD(struct config_mount, writable) },
	{ "sshfs", TYPE_OBJECT, .object = &sshfs },
	{ "9p", TYPE_OBJECT, .object = &ninep },
	{ "virtiofs", TYPE_OBJECT, .object = &virtiofs },
};
OBJECT(mount, .size = sizeof(struct config_mount), .fill = fill_mount, .check = check_mount,
       .identity = identity_mount);

/* --- virtual hardware ----------------------------------------------------------- */

static const struct schema_key vm_qemu_keys[] = {
	{ "minimumVersion", TYPE_STRING, KEY_EMPTY_UNSET, .check = check_semver,
	  FIELD(struct config, qemu_minimum_version) },
	{ "cpuType", TYPE_MAP },	/* by arch; fill_root picks ours */
};
OBJECT(vm_qemu);

static const struct schema_key vm_opts_keys[] = {
	{ "qemu", TYPE_OBJECT, .object = &vm_qemu },
	{ "vz", TYPE_ANY },
	{ "wsl2", TYPE_ANY },
	{ "krunkit", TYPE_ANY },
};
OBJECT(vm_opts);

static const struct schema_key os_opts_keys[] = {
	{ "Linux", TYPE_ANY }, { "Darwin", TYPE_ANY },
	{ "FreeBSD", TYPE_ANY }, { "Windows", TYPE_ANY },
};
OBJECT(os_opts);

static const struct schema_key firmware_keys[] = {
	{ "legacyBIOS", TYPE_BOOL, .def = "false", FIELD(struct config, firmware.legacy_bios) },
	{ "images", TYPE_LIST, KEY_NO_EFFECT, .object = &file },
};
OBJECT(firmware);

static const struct schema_key audio_keys[] = {
	{ "device", TYPE_STRING, KEY_NO_EFFECT, .def = "" },
	{ "interface", TYPE_WORD, KEY_EMPTY_UNSET, .words = WORDS("hda", "virtio") },
};
OBJECT(audio);

static const struct schema_key vnc_keys[] = {
	{ "display", TYPE_STRING, .def = "127.0.0.1:0,to=9" },
};
OBJECT(vnc);

static const struct schema_key video_keys[] = {
	{ "display", TYPE_STRING, KEY_NO_EFFECT | KEY_EMPTY_UNSET, .def = "none" },
	{ "vnc", TYPE_OBJECT, .object = &vnc },
};
OBJECT(video);

/* --- network ------------------------------------------------------------------- */

static const struct schema_key network_keys[] = {
	{ "lima", TYPE_STRING, KEY_EMPTY_UNSET },
	{ "socket", TYPE_STRING, KEY_EMPTY_UNSET },
	{ "vzNAT", TYPE_BOOL },
	{ "macAddress", TYPE_STRING, KEY_EMPTY_UNSET },
	{ "interface", TYPE_STRING, KEY_EMPTY_UNSET },
	{ "metric", TYPE_INT, .def = "100" },
};
OBJECT(network, .fill = fill_network, .check = check_network, .identity = identity_network);

static const struct schema_key host_resolver_keys[] = {
	{ "enabled", TYPE_BOOL, FIELD(struct config, host_resolver.enabled), .def = "true" },
	{ "ipv6", TYPE_BOOL, FIELD(struct config, host_resolver.ipv6), .def = "false" },
	{ "hosts", TYPE_MAP, FIELD(struct config, host_resolver.hosts) },
};
OBJECT(host_resolver);

/* Order of enum config_lane. */
static const char *const lane_words[] = { "auto", "vsock", "grpc", "ssh", "direct", NULL };

static const struct schema_key port_forwarding_keys[] = {
	{ "lane", TYPE_ENUM, KEY_EMPTY_UNSET, .def = "auto", .words = lane_words,
	  FIELD(struct config, port_forwarding.lane) },
	{ "conflict", TYPE_ENUM, KEY_EMPTY_UNSET, .def = "first",	/* order of enum config_conflict */
	  .words = WORDS("first", "remap", "loopback-per-instance"),
	  FIELD(struct config, port_forwarding.conflict) },
	{ "privilegedPorts", TYPE_BOOL, .def = "false",
	  FIELD(struct config, port_forwarding.privileged_ports) },
};
OBJECT(port_forwarding);

static const struct schema_key port_forward_keys[] = {
	{ "guestIPMustBeZero", TYPE_BOOL,
	  FIELD(struct config_port_forward, guest_ip_must_be_zero) },
	{ "guestIP", TYPE_IP, KEY_EMPTY_UNSET, FIELD(struct config_port_forward, guest_ip) },
	{ "guestPort", TYPE_PORT, .min = 1 },
	{ "guestPortRange", TYPE_PORT_RANGE, FIELD(struct config_port_forward, guest_port) },
	{ "guestSocket", TYPE_STRING, KEY_EMPTY_UNSET | KEY_GUEST_EXPR,
	  FIELD(struct config_port_forward, guest_socket) },
	{ "hostIP", TYPE_IP, KEY_EMPTY_UNSET, .def = "127.0.0.1",
	  FIELD(struct config_port_forward, host_ip) },
	{ "hostPort", TYPE_PORT_OR_AUTO, .min = 1,
	  FIELD(struct config_port_forward, host_port_auto) },
	{ "hostPortRange", TYPE_PORT_RANGE, FIELD(struct config_port_forward, host_port) },
	{ "hostSocket", TYPE_STRING, KEY_EMPTY_UNSET | KEY_HOST_EXPR,
	  FIELD(struct config_port_forward, host_socket) },
	{ "proto", TYPE_ENUM, KEY_EMPTY_UNSET, .def = "any",	/* order of enum l4_any */
	  .words = WORDS("any", "tcp", "udp"), FIELD(struct config_port_forward, proto) },
	{ "reverse", TYPE_BOOL, .def = "false", FIELD(struct config_port_forward, reverse) },
	{ "ignore", TYPE_BOOL, .def = "false", FIELD(struct config_port_forward, ignore) },
	{ "static", TYPE_BOOL, .def = "false", FIELD(struct config_port_forward, is_static) },
	{ "lane", TYPE_ENUM, KEY_EMPTY_UNSET, .words = lane_words,
	  FIELD(struct config_port_forward, lane) },
};
OBJECT(port_forward, .size = sizeof(struct config_port_forward), .fill = fill_port_forward,
       .check = check_port_forward);

static const struct schema_key copy_to_host_keys[] = {
	{ "guest", TYPE_STRING, KEY_REQUIRED | KEY_GUEST_EXPR, .check = check_absolute },
	{ "host", TYPE_STRING, KEY_REQUIRED | KEY_HOST_EXPR, .check = check_absolute },
	{ "skipIfMissing", TYPE_BOOL, .def = "false" },
	{ "deleteOnStop", TYPE_BOOL, .def = "false" },
};
OBJECT(copy_to_host);

/* --- the whole ------------------------------------------------------------------ */

static const struct schema_key root_keys[] = {
	{ "base", TYPE_LIST, 0, MERGE_WHOLE, .object = &locator, .short_key = "url" },
	{ "minimumLimaVersion", TYPE_STRING, KEY_EMPTY_UNSET, MERGE_NEWEST,
	  .check = check_semver, FIELD(struct config, minimum_lima_version) },
	{ "vmType", TYPE_STRING, KEY_EMPTY_UNSET | KEY_DEFAULT_UNSET, .def = "qemu",
	  FIELD(struct config, vm_type) },
	{ "vmOpts", TYPE_OBJECT, 0, MERGE_SHALLOW, .object = &vm_opts },
	{ "os", TYPE_WORD, KEY_EMPTY_UNSET | KEY_DEFAULT_UNSET, .def = "Linux",
	  FIELD(struct config, os),
	  .words = WORDS("Linux", "Darwin", "FreeBSD", "Windows") },
	{ "osOpts", TYPE_OBJECT, 0, MERGE_SHALLOW, .object = &os_opts },
	{ "arch", TYPE_ENUM, KEY_EMPTY_UNSET | KEY_DEFAULT_UNSET, .words = arch_words,
	  FIELD(struct config, arch) },
	{ "images", TYPE_LIST, .object = &image, ITEMS(struct config, images, n_images) },
	{ "cpuType", TYPE_MAP, KEY_OBSOLETE, .instead = "vmOpts.qemu.cpuType" },
	{ "cpus", TYPE_INT, KEY_EMPTY_UNSET, .min = 1, .max = 1024, FIELD(struct config, cpus) },
	{ "memory", TYPE_SIZE, KEY_EMPTY_UNSET, FIELD(struct config, memory_bytes) },
	{ "disk", TYPE_SIZE, KEY_EMPTY_UNSET, .def = "100GiB", FIELD(struct config, disk_bytes) },
	{ "additionalDisks", TYPE_LIST, KEY_NO_EFFECT, .object = &disk, .short_key = "name" },
	{ "mountTypesUnsupported", TYPE_STRINGS, 0, MERGE_UNION },
	{ "mountType", TYPE_WORD, KEY_EMPTY_UNSET | KEY_DEFAULT_UNSET, .words = mount_types },
	{ "mountInotify", TYPE_BOOL, KEY_NO_EFFECT, .def = "false" },
	{ "mounts", TYPE_LIST, 0, MERGE_KEYED, .object = &mount,
	  ITEMS(struct config, mounts, n_mounts) },
	{ "ssh", TYPE_OBJECT, .object = &ssh },
	{ "firmware", TYPE_OBJECT, .object = &firmware },
	{ "audio", TYPE_OBJECT, .object = &audio },
	{ "video", TYPE_OBJECT, .object = &video },
	{ "upgradePackages", TYPE_BOOL, .def = "false", FIELD(struct config, upgrade_packages) },
	{ "containerd", TYPE_OBJECT, .object = &containerd },
	{ "guestInstallPrefix", TYPE_STRING, KEY_EMPTY_UNSET, .def = "/usr/local",
	  .check = check_guest_path, FIELD(struct config, guest_install_prefix) },
	{ "provision", TYPE_LIST, .object = &provision,
	  ITEMS(struct config, provision, n_provision) },
	{ "probes", TYPE_LIST, .object = &probe, ITEMS(struct config, probes, n_probes) },
	{ "portForwarding", TYPE_OBJECT, .object = &port_forwarding },	/* before its rules */
	{ "portForwards", TYPE_LIST, .object = &port_forward,
	  ITEMS(struct config, port_forwards, n_port_forwards) },
	{ "copyToHost", TYPE_LIST, KEY_NO_EFFECT, .object = &copy_to_host },
	{ "message", TYPE_STRING, .def = "", FIELD(struct config, message) },
	{ "networks", TYPE_LIST, KEY_NO_EFFECT, MERGE_KEYED, .object = &network },
	{ "env", TYPE_MAP, .check = check_env, FIELD(struct config, env) },
	{ "param", TYPE_MAP, .check = check_param, FIELD(struct config, param) },
	{ "dns", TYPE_STRINGS, 0, MERGE_NONEMPTY, .check = check_ips, FIELD(struct config, dns) },
	{ "hostResolver", TYPE_OBJECT, .object = &host_resolver },
	{ "propagateProxyEnv", TYPE_BOOL, .def = "true",
	  FIELD(struct config, propagate_proxy_env) },
	{ "caCerts", TYPE_OBJECT, .object = &ca_certs },
	{ "rosetta", TYPE_ANY, KEY_OBSOLETE, .instead = "vmOpts.vz.rosetta (macOS hosts only)" },
	{ "plain", TYPE_BOOL, .def = "false", FIELD(struct config, plain) },
	{ "timezone", TYPE_STRING, .check = check_one_line, FIELD(struct config, timezone) },
	{ "nestedVirtualization", TYPE_BOOL, KEY_NO_EFFECT, .def = "false",
	  .instead = "QEMU passes it on by itself where the host has it" },
	{ "user", TYPE_OBJECT, .object = &user },
	{ "tpm", TYPE_BOOL, KEY_NO_EFFECT, .def = "false" },
};

const struct schema_object schema_root = {
	.keys = root_keys, .n_keys = ARRAY_SIZE(root_keys), .size = sizeof(struct config),
	.fill = fill_root, .check = check_root,
};

const struct schema_key *schema_find(const struct schema_object *obj, const char *name)
{
	for (size_t i = 0; i < obj->n_keys; i++)
		if (streq(obj->keys[i].name, name))
			return &obj->keys[i];
	return NULL;
}
