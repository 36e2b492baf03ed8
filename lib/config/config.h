/* config.h - lima.yaml, resolved
 *
 * What the rest of the program sees of a lima.yaml: one struct, every default
 * filled in, every value checked. It is produced by config_load() out of up to
 * three texts (`_config/default.yaml`, the instance's own, `_config/override.yaml`)
 * and the builtin defaults, merged key by key as reference/lima-yaml.md §4 says.
 * schema.c holds the one table that drives decoding, merge, defaults and
 * validation; a new key is a row there and a field here.
 *
 * Strings are never NULL unless the comment says so. Everything belongs to the
 * struct config and is freed by config_free().
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/scoped.h"
#include "lib/base/strv.h"

enum arch { ARCH_X86_64, ARCH_AARCH64, ARCH_ARMV7L, ARCH_PPC64LE, ARCH_RISCV64, ARCH_S390X, ARCH_COUNT };

const char *arch_name(enum arch arch);	/* "x86_64", as in lima.yaml */
bool arch_parse(const char *name, enum arch *ret);
enum arch arch_host(void);

struct config_file {		/* something to fetch: an image, a kernel, an initrd */
	char *location;		/* URL, path, or "mmdebstrap:SUITE[?…]"; NULL: not given */
	char *digest;		/* "sha256:HEX", "sha512:HEX"; NULL: none */
	enum arch arch;
};

struct config_image {
	struct config_file file;
	char *variant;			/* NULL: none */
	char *arch_variant;		/* NULL: none */
	struct config_file kernel;	/* location NULL: none */
	char *kernel_cmdline;		/* NULL: none */
	struct config_file initrd;	/* location NULL: none */
};

enum provision_mode {
	PROVISION_SYSTEM, PROVISION_USER, PROVISION_BOOT, PROVISION_DEPENDENCY, PROVISION_DATA,
};

struct config_provision {
	enum provision_mode mode;
	char *script;			/* all but data; guest templates expanded */
	bool skip_default_dependency_resolution;	/* dependency */
	char *path, *content, *owner, *permissions;	/* data: "/etc/x", text, "root:root", "644" */
	bool overwrite;					/* data */
};

struct config_probe {
	char *description, *script, *hint;	/* script starts with "#!" */
};

enum l4_any { L4_ANY, L4_TCP, L4_UDP };

/* How a forward's bytes reach the guest; AUTO: the fastest that works. */
enum config_lane {
	CONFIG_LANE_AUTO, CONFIG_LANE_VSOCK, CONFIG_LANE_GRPC, CONFIG_LANE_SSH, CONFIG_LANE_DIRECT,
};

/* What happens when a host port is taken. */
enum config_conflict {
	CONFLICT_FIRST,		/* who has it keeps it; we wait and say who */
	CONFLICT_REMAP,		/* another port, as with hostPort: auto, unless the rule is static */
	CONFLICT_LOOPBACK,	/* 127.0.0.1 stands for a 127.0.0.x of the instance's own */
};

struct config_port_forward {	/* reference/port-forwarding.md §1, defaults filled */
	struct in6_addr guest_ip;	/* IPv4 as ::ffff:a.b.c.d */
	bool guest_ip_must_be_zero;
	uint16_t guest_port[2];		/* first, last; host byte order */
	char *guest_socket;		/* absolute; NULL: none */
	struct in6_addr host_ip;
	uint16_t host_port[2];		/* with host_port_auto: what to try first */
	bool host_port_auto;
	char *host_socket;		/* absolute; NULL: none */
	enum l4_any proto;
	bool reverse, ignore, is_static;
	enum config_lane lane;		/* the instance's, unless the rule has its own */
};

struct config_mount {
	char *location, *mount_point;	/* absolute */
	bool writable;
};

struct config_kv {		/* env, param, hostResolver.hosts: in the order of the file */
	char *key, *value;
};
struct config_map {
	struct config_kv *items;
	size_t len;
};
const char *config_map_get(const struct config_map *m, const char *key);	/* NULL: none */

struct config {
	char *minimum_lima_version;	/* NULL: none */
	char *vm_type;			/* "qemu" */
	char *os;			/* "Linux" */
	enum arch arch;
	struct config_image *images;
	size_t n_images;
	unsigned cpus;			/* ≥ 1 */
	uint64_t memory_bytes, disk_bytes;

	struct {
		char *name, *comment, *home, *shell;	/* guest user; home absolute */
		unsigned uid;				/* never 0 */
		bool passwordless_sudo;
	} user;

	struct {
		uint16_t local_port;	/* 0: choose a free one */
		bool load_dot_ssh_pub_keys, forward_agent, forward_x11, forward_x11_trusted;
		bool over_vsock;
	} ssh;

	struct config_map env, param;
	struct config_provision *provision;
	size_t n_provision;
	struct config_probe *probes;
	size_t n_probes;
	struct config_port_forward *port_forwards;	/* override + own + default.yaml order;
							 * without the implicit first and last rules */
	size_t n_port_forwards;
	struct {
		enum config_lane lane;
		enum config_conflict conflict;
		bool privileged_ports;	/* below ip_unprivileged_port_start, also by broad rules */
	} port_forwarding;
	struct config_mount *mounts;
	size_t n_mounts;

	struct {
		bool enabled, ipv6;
		struct config_map hosts;
	} host_resolver;
	struct strv dns;		/* IP addresses as text */

	struct {
		bool legacy_bios;
	} firmware;
	char *qemu_cpu_type;		/* vmOpts.qemu.cpuType[arch] or cpuType; NULL: choose */
	char *qemu_minimum_version;	/* NULL: none */

	char *timezone;			/* "": leave alone */
	char *guest_install_prefix;	/* "/usr/local" */
	bool upgrade_packages, propagate_proxy_env;
	bool plain;
	char *message;			/* printed after READY, template expanded; "" none */
	struct buf json;		/* the whole, filled, as JSON text: `limactl list --json` */
};

/* What a configuration is resolved for. */
struct config_context {
	const char *instance;		/* name, for templates and the host name */
	const char *instance_dir;	/* absolute; for {{.Dir}} and relative sockets */
	const char *lima_home;		/* absolute; default.yaml and override.yaml are in _config below it */
	bool check_host;		/* also look at the directories to mount: for create, start and
					 * validate. Off for list: a dead network mount must not stop it */
};

/* Problems found while reading, each one line "file:line:col: key: what"; an
 * error makes config_load() fail after all were collected. */
struct config_problems {
	struct strv errors;
	struct strv warnings;
};
void config_problems_done(struct config_problems *p);

/* @path: file named in messages. @text: its content (UTF-8, ≤ 4 MiB).
 * On failure @err holds the first problem and how many there are. @problems may
 * be NULL. */
int config_load(const struct config_context *ctx, const char *path, const char *text, size_t len,
		struct config_problems *problems, struct config **ret, struct error *err);
void config_free(struct config *c);

/* One rule of portForwards by itself, as YAML or JSON ("{guestPort: 80, hostPort:
 * 8080}"): checked and filled as if it stood in the file that @c came from. Free
 * with config_rule_free(). The error names keys: "guestPort: 70000 is not a port". */
int config_rule_parse(const struct config_context *ctx, const struct config *c, const char *text,
		      size_t len, struct config_port_forward **ret, struct error *err);
void config_rule_free(struct config_port_forward *rule);

SCOPED_DEFINE(config, struct config, config_free)
#define scoped_config SCOPED(config)
