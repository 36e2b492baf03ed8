/* layout.h - the name of every file we keep
 *
 * $LIMA_HOME (default ~/.lima, symlinks resolved), its `_config` and one
 * directory per instance: names and modes of reference/cli.md §8. Nobody else
 * in the program spells a file name. docs/files.md tells who writes and who
 * reads each.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"

/* Files of an instance directory. */
enum instance_file {
	FILE_LIMA_YAML,		/* lima.yaml */
	FILE_LIMA_VERSION,	/* lima-version */
	FILE_CLOUD_CONFIG,	/* cloud-config.yaml: copy of user-data, to read */
	FILE_CIDATA,		/* cidata.iso */
	FILE_INSTANCE_ID,	/* instance-id: stable seed id */
	FILE_IMAGE,		/* image: what Lima fetched and did not start yet */
	FILE_IMAGE_NAME,	/* image-name: what disk was made from, for people */
	FILE_PREPARE_DIR,	/* prepare.tmp: disk, kernel … until they are whole */
	FILE_DISK,		/* disk */
	FILE_ISO,		/* iso */
	FILE_KERNEL,		/* kernel */
	FILE_KERNEL_CMDLINE,	/* kernel.cmdline */
	FILE_INITRD,		/* initrd */
	FILE_EFI_CODE,		/* qemu-efi-code.fd */
	FILE_QEMU_PID,		/* qemu.pid */
	FILE_QMP_SOCK,		/* qmp.sock */
	FILE_SERIAL_LOG,	/* serial.log */
	FILE_SERIAL_SOCK,	/* serial.sock */
	FILE_QEMU_LOG,		/* qemu.log: what QEMU wrote to stderr */
	FILE_SSH_SOCK,		/* ssh.sock: ControlMaster */
	FILE_LANE_SOCKS,	/* lane-PID-N.sock begins so: guest addresses by ssh; lane-rN.sock */
	FILE_SSH_CONFIG,	/* ssh.config */
	FILE_SSH_HOST_KEY,	/* ssh_host_ed25519_key: the guest's own, 0600; + ".pub" */
	FILE_SSH_KNOWN_HOSTS,	/* ssh_known_hosts: the guest's pinned host key */
	FILE_GA_SOCK,		/* ga.sock: virtio-serial port of the guest agent */
	FILE_GA_FWD_SOCK,	/* ga-ssh.sock: agent socket forwarded by ssh */
	FILE_VSOCK_SOCK,	/* vsock.sock: QEMU connects to its vsock device, us */
	FILE_GA_SECRET,		/* ga.secret: link magic, 0600 */
	FILE_HA_PID,		/* ha.pid */
	FILE_HA_SOCK,		/* ha.sock */
	FILE_HA_STDOUT,		/* ha.stdout.log: events, JSON lines */
	FILE_HA_STDERR,		/* ha.stderr.log: log, JSON lines */
	FILE_LOCK,		/* lock: flock, held by who changes the instance */
	FILE_PROTECTED,		/* protected */
	FILE_HOST_PORTS,	/* host-ports: those we chose, to choose again */
	FILE_LIVE_RULES,	/* live-rules: added while it runs, for the next host agent */
	FILE_LOOPBACK,		/* loopback: 127.0.0.x of the instance's own */
	FILE_SOCK_DIR,		/* sock/: forwarded sockets */
	FILE_COUNT
};

const char *layout_file_name(enum instance_file f);

/* $LIMA_HOME resolved, without creating it; caller frees. An error when it is
 * there and cannot be read. */
int layout_lima_home(char **ret, struct error *err);
/* Caller frees each. */
char *layout_instance_dir(const char *lima_home, const char *name);
char *layout_instance_file(const char *instance_dir, enum instance_file f);
char *layout_config_dir(const char *lima_home);		/* …/_config */
char *layout_user_key(const char *lima_home);		/* …/_config/user; + ".pub" */
char *layout_ssh_config(const char *lima_home);		/* …/_config/ssh.config: all instances */
char *layout_create_lock(const char *lima_home);	/* …/_config/create.lock */
char *layout_cache_dir(void);				/* ${XDG_CACHE_HOME:-~/.cache}/lima */

/* Where the program's own files are, relative to the running binary:
 * PREFIX/share/lima when installed as PREFIX/bin/limactl; BUILD/share/lima when
 * run from a CMake build tree (BUILD holds CMakeCache.txt); $LIMA_SHARE
 * overrides. Caller frees; NULL with @err when there is none. */
char *layout_share_dir(struct error *err);
/* share/lima/lima-guestagent.Linux-ARCH, checked to exist. Caller frees. */
char *layout_guest_agent(const char *arch, struct error *err);
/* Directories with templates, in order ($LIMA_TEMPLATES_PATH, else
 * $LIMA_HOME/_templates and share/lima/templates). They need not exist. */
struct strv;
int layout_template_dirs(const char *lima_home, struct strv *ret, struct error *err);

/* reference/cli.md §1: [A-Za-z0-9]+([._-][A-Za-z0-9]+)*, ≤ 76 chars, not ending
 * .yml/.yaml, not so long that INSTDIR/ssh.sock.XXXXXXXXXXXXXXXX passes
 * sun_path. */
int layout_check_name(const char *name, struct error *err);
int layout_check_socket_paths(const char *instance_dir, struct error *err);
/* "lima-" + name with . and _ as -; caller frees. */
char *layout_hostname(const char *name);
