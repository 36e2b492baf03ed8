#include "drivers/qemu/firmware.h"

#include <errno.h>

#include "lib/base/mem.h"

struct known {
	const char *path;
	bool flash;
};

/* Plain images only: the secure-boot builds need SMM and refuse unsigned
 * kernels, which is nothing a development VM asked for. */
static const struct known x86_64_files[] = {
	{ "/usr/share/edk2/x64/OVMF_CODE.4m.fd", true },	/* Arch */
	{ "/usr/share/OVMF/OVMF_CODE.fd", true },		/* Debian ≤ 12, Ubuntu */
	{ "/usr/share/OVMF/OVMF_CODE_4M.fd", true },		/* Debian ≥ 12, Ubuntu ≥ 22.04 */
	{ "/usr/share/edk2/ovmf/OVMF_CODE.fd", true },		/* Fedora */
	{ "/usr/share/qemu/ovmf-x86_64.bin", true },		/* openSUSE */
	{ "/usr/share/qemu/ovmf-x86_64-4m.bin", true },
	{ NULL, false },
};

/* QEMU's `virt` has flash banks of 64 MiB and takes only images padded to
 * that; QEMU_EFI.fd is not. */
static const struct known aarch64_files[] = {
	{ "/usr/share/edk2/aarch64/QEMU_CODE.fd", true },
	{ "/usr/share/AAVMF/AAVMF_CODE.fd", true },
	{ "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", false },
	{ NULL, false },
};

static const struct {
	const struct known *files;
	const char *package;
} by_arch[ARCH_COUNT] = {
	[ARCH_X86_64] = { x86_64_files, "ovmf" },
	[ARCH_AARCH64] = { aarch64_files, "qemu-efi-aarch64" },
};

/* Takes @path. */
static bool take_if_there(char *path, bool flash, struct qemu_firmware *ret)
{
	if (access(path, R_OK) < 0) {
		free(path);
		return false;
	}
	*ret = (struct qemu_firmware){ path, flash };
	return true;
}

int qemu_firmware_find(enum arch arch, const struct qemu_firmware_search *where,
		       struct qemu_firmware *ret, struct error *err)
{
	const struct known *k = by_arch[arch].files;

	if (!k)
		return error_set(err, -ENOENT, "no UEFI firmware is known for %s", arch_name(arch));
	if (take_if_there(xstrdup(where->instance_file), true, ret))
		return 0;
	if (where->home &&
	    take_if_there(xasprintf("%s/.local/share/qemu/edk2-%s-code.fd", where->home,
				    arch_name(arch)), true, ret))
		return 0;
	if (where->qemu_prefix &&
	    take_if_there(xasprintf("%s/share/qemu/edk2-%s-code.fd", where->qemu_prefix,
				    arch_name(arch)), true, ret))
		return 0;
	for (; k->path; k++)
		if (take_if_there(xasprintf("%s%s", where->root, k->path), k->flash, ret))
			return 0;
	return error_set(err, -ENOENT, "no UEFI firmware for %s found; install it: "
			 "sudo apt install %s (or set firmware.legacyBIOS: true)",
			 arch_name(arch), by_arch[arch].package);
}
