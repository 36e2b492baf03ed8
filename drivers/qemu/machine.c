#include "drivers/qemu/machine.h"

#include <errno.h>
#include <stdlib.h>

#include "drivers/mac.h"
#include "drivers/qemu/args.h"
#include "drivers/qemu/binary.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"
#include "lib/store/layout.h"

enum { CMDLINE_MAX_BYTES = 4096 };	/* COMMAND_LINE_SIZE is 2048 on x86 */

/* Name relative to the instance directory when the file is there, else NULL. */
static const char *if_there(const struct qemu_machine *m, enum instance_file f)
{
	scoped_free char *path = layout_instance_file(m->spec->dir, f);

	return path_exists(path) ? layout_file_name(f) : NULL;
}

static int find_firmware(const struct qemu_machine *m, struct qemu_firmware *ret, struct error *err)
{
	scoped_free char *own = layout_instance_file(m->spec->dir, FILE_EFI_CODE), *prefix = qemu_binary_prefix(m->program);
	struct qemu_firmware_search where = { own, getenv("HOME"), prefix, "" };

	return qemu_firmware_find(m->spec->config->arch, &where, ret, err);
}

/* QEMU is always told the disk's format: left to guess, it would follow whatever
 * a guest wrote into the first sector of a raw disk. We look at every start, and
 * a disk that points outside itself is refused, so a raw disk which a guest
 * dressed up as qcow2 cannot make QEMU open a file of the host (users-want.md F). */
static int check_disk(const char *path, struct disk_info *ret, struct error *err)
{
	if (disk_inspect(path, ret, err) < 0)
		return err->code;
	if (ret->has_backing)
		return error_set(err, -EPERM, "%s: refused, it names another file as part of itself "
				 "(backing or data file); qemu-img convert makes it whole", path);
	if (!streq(ret->format, "qcow2") && !streq(ret->format, "raw"))
		return error_set(err, -EINVAL, "%s: refused, it begins like a %s image; only qcow2 and "
				 "raw are run", path, ret->format);
	return 0;
}

/* Kernel command line as a file, its last newline not part of it; caller frees. */
static int read_cmdline(const struct qemu_machine *m, char **ret, struct error *err)
{
	scoped_free char *path = layout_instance_file(m->spec->dir, FILE_KERNEL_CMDLINE);
	scoped_buf struct buf b = { 0 };

	if (!path_exists(path))
		return 0;
	if (path_read_file(path, CMDLINE_MAX_BYTES, &b, err) < 0)
		return err->code;
	while (b.len && strchr("\r\n ", b.data[b.len - 1]))
		b.data[--b.len] = 0;
	*ret = buf_steal_str(&b);
	return 0;
}

int qemu_machine_argv(const struct qemu_machine *m, struct strv *ret, struct error *err)
{
	const struct config *c = m->spec->config;
	const struct qemu_arch *arch = qemu_arch_find(c->arch);
	scoped_free char *disk = layout_instance_file(m->spec->dir, FILE_DISK), *cmdline = NULL;
	struct qemu_firmware firmware = { 0 };
	struct disk_info disk_info;
	char mac[DRIVER_MAC_SIZE];
	struct qemu_args_input in = {
		.name = m->spec->name,
		.config = c,
		.program = m->program,
		.version = *m->version,
		.accel = m->accel,
		.sandbox = m->sandbox,
		.mac = mac,
		.ssh_port = m->vsock && m->spec->ssh_over_vsock ? 0 : m->spec->ssh_port,
		.vsock_socket = m->vsock ? layout_file_name(FILE_VSOCK_SOCK) : NULL,
		.disk = layout_file_name(FILE_DISK),
		.iso = if_there(m, FILE_ISO),
		.cidata = if_there(m, FILE_CIDATA),
		.kernel = if_there(m, FILE_KERNEL),
		.initrd = if_there(m, FILE_INITRD),
		.serial_log = layout_file_name(FILE_SERIAL_LOG),
		.pid_file = layout_file_name(FILE_QEMU_PID),
	};
	int rc;

	if (driver_mac(m->spec->dir, mac, err) < 0 || check_disk(disk, &disk_info, err) < 0 ||
	    read_cmdline(m, &cmdline, err) < 0)
		return err->code;
	in.disk_format = disk_info.format;
	in.cmdline = cmdline;
	if (!in.kernel && !(c->firmware.legacy_bios && arch->has_legacy_bios)) {
		if (find_firmware(m, &firmware, err) < 0)
			return err->code;
		in.firmware = &firmware;
	}
	rc = qemu_args_build(&in, ret, err);
	free(firmware.path);
	return rc;
}
