/* accel.h - hardware virtualization or emulation, and why
 *
 * KVM is used only when all of it is there: the guest's architecture is the
 * host's, /dev/kvm opens for writing, its API version is 12 (the only one since
 * Linux 2.6.22), it makes a VM, and on x86 the CPU shows vmx or svm. The last
 * one is not pedantry: there are hosts (nested, under a hypervisor that hides
 * the extensions) whose /dev/kvm opens and answers, and every ordinary guest
 * hangs at kernel entry (prototypes; design.md §3). A wrong choice here would
 * be a start that hangs without a word.
 *
 * Everything else is TCG, with one line that says why.
 */
#pragma once

#include "lib/config/config.h"

enum qemu_accel_kind { QEMU_TCG, QEMU_KVM };

struct qemu_accel {
	enum qemu_accel_kind kind;
	char reason[256];	/* TCG: why, for the user; KVM: "" */
};

/* Where the facts come from; tests bring their own. */
struct qemu_accel_probe {
	enum arch host;
	const char *kvm_path;		/* "/dev/kvm" */
	int (*kvm_api_version)(int fd);	/* ioctl KVM_GET_API_VERSION */
	int (*kvm_make_vm)(int fd);	/* ioctl KVM_CREATE_VM: 0 or -errno */
	const char *cpuinfo_path;	/* "/proc/cpuinfo" */
};

/* Blocks for two system calls, no longer. @probe NULL: this machine. */
struct qemu_accel qemu_accel_choose(enum arch guest, const struct qemu_accel_probe *probe);

const char *qemu_accel_name(enum qemu_accel_kind kind);	/* "tcg", "kvm" */
