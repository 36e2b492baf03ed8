/* args.h - from a configuration to QEMU's command line
 *
 * Pure: no file is looked at, no process asked; whatever depends on the machine
 * comes in by struct qemu_args_input. The same input gives the same words, so
 * tests compare whole command lines (test/unit/args/).
 *
 * QEMU runs with the instance directory as its working directory and gets file
 * names relative to it, so neither a long path nor a comma in it matters. Paths
 * from elsewhere (firmware) have their commas doubled (QEMU docs, "-blockdev").
 * Its sockets are made, bound and listened on by us and handed over as
 * descriptors: we can connect before QEMU is up, and never have to look whether
 * the file is there yet.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qemu/accel.h"
#include "drivers/qemu/firmware.h"
#include "drivers/qemu/version.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"

/* Descriptors in the QEMU process, listening unix sockets. */
enum { QEMU_FD_QMP = 3, QEMU_FD_AGENT = 4, QEMU_FD_SERIAL = 5 };

/* Name of the guest agent's virtio-serial port, /dev/virtio-ports/… in the guest. */
#define QEMU_AGENT_PORT	   "io.lima-vm.guest_agent.0"
/* Its names inside QEMU: VSERPORT_CHANGE's id, query-chardev's label. */
#define QEMU_AGENT_PORT_ID "agent-port"
#define QEMU_AGENT_CHARDEV "agent"
/* The vsock device, and the PCIe port that was made for it alone. Its chardev is
 * "vsock0" when QEMU started with it, "vsock1" and so on after that (change.h). */
#define QEMU_VSOCK_DRIVER  "vhost-user-vsock-pci"
#define QEMU_VSOCK_DEVICE  "vsock"
#define QEMU_VSOCK_PORT	   "vsock-port"
#define QEMU_VSOCK_CHARDEV "vsock"
/* The qcow2 (or raw) layer of the instance's disk. */
#define QEMU_DISK_NODE	   "disk"
#define QEMU_NETDEV	   "net0"

struct qemu_args_input {
	const char *name;		/* instance */
	const struct config *config;	/* arch, cpus, memory, firmware, cpu type */
	const struct strv *program;	/* argv[0] and what $QEMU_SYSTEM_ARCH adds */
	struct qemu_version version;
	enum qemu_accel_kind accel;
	bool sandbox;			/* this QEMU was built with seccomp */

	const char *mac;
	uint16_t ssh_port;		/* on 127.0.0.1, leads to the guest's 22; 0: none does */
	const char *vsock_socket;	/* who listens there is the vsock device; NULL: none */

	const char *disk, *disk_format;	/* "qcow2" or "raw" */
	const char *iso;		/* boot medium; NULL: none */
	const char *cidata;		/* NULL: none */
	const char *kernel;		/* NULL: firmware boots the disk */
	const char *initrd;		/* NULL: none */
	const char *cmdline;		/* kernel's; NULL: none */
	const struct qemu_firmware *firmware;	/* NULL: the machine's BIOS */
	const char *serial_log, *pid_file;
};

/* Appends to @ret, untouched on failure. */
int qemu_args_build(const struct qemu_args_input *in, struct strv *ret, struct error *err);

/* Does this version know what vsock_socket makes of it? Whether it was built with
 * the device is only told by its failing to start. */
bool qemu_args_know_vsock(const struct qemu_version *version);

/* What differs between the architectures we run. */
struct qemu_arch {
	const char *suffix;		/* qemu-system-SUFFIX */
	const char *env;		/* variable that names another binary */
	const char *package;		/* of Debian and Ubuntu */
	const char *machine;		/* machine type and options */
	const char *tcg_cpu;
	bool has_legacy_bios;
};
/* NULL: guests of this kind are not run by us. */
const struct qemu_arch *qemu_arch_find(enum arch arch);
