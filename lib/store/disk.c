#include "lib/store/disk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/child.h"
#include "lib/base/mem.h"

/* docs/interop/qcow2.txt of QEMU: offsets in the header, all big endian */
enum {
	QCOW2_VERSION = 4,
	QCOW2_BACKING_OFFSET = 8,
	QCOW2_CLUSTER_BITS = 20,
	QCOW2_SIZE = 24,
	QCOW2_CRYPT = 32,
	QCOW2_INCOMPATIBLE = 72, /* version 3 only */
	QCOW2_V2_BYTES = 72,
	QCOW2_V3_BYTES = 104,

	QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
};

enum { HEAD_BYTES = 512, SECTOR_BYTES = 512 };

/* Formats that QEMU would guess, and we name, by their first bytes (its block drivers
 * tell). What has no such mark is raw. */
static const struct {
	const char *format, *magic;
	size_t offset, len;
} magics[] = {
	{ "qcow2", "QFI\xfb", 0, 4 },
	{ "vmdk", "KDMV", 0, 4 },
	{ "vmdk", "COWD", 0, 4 },
	{ "vmdk", "# Disk DescriptorFile", 0, 21 },
	{ "vhdx", "vhdxfile", 0, 8 },
	{ "vpc", "conectix", 0, 8 },
	{ "qed", "QED\0", 0, 4 },
	{ "vdi", "\x7f\x10\xda\xbe", 0x40, 4 },
	{ "luks", "LUKS\xba\xbe", 0, 6 },
	{ "parallels", "WithoutFreeSpace", 0, 16 },
	{ "parallels", "WithouFreSpacExt", 0, 16 },
	{ "bochs", "Bochs Virtual HD Image", 0, 22 },
};

static uint32_t be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint64_t be64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static const char *guess_format(const uint8_t *head)
{
	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if (memcmp(head + magics[i].offset, magics[i].magic, magics[i].len) == 0)
			return magics[i].format;
	return "raw";
}

static int read_qcow2(const char *path, const uint8_t *head, size_t len, struct disk_info *info,
		      struct error *err)
{
	uint32_t version = be32(head + QCOW2_VERSION);
	uint32_t cluster_bits = be32(head + QCOW2_CLUSTER_BITS);

	if (len < QCOW2_V2_BYTES || (version == 3 && len < QCOW2_V3_BYTES))
		return error_set(err, -EINVAL, "%s: qcow2 header is cut off", path);
	if (version != 2 && version != 3)
		return error_set(err, -EINVAL, "%s: qcow2 version %u is not supported", path,
				 version);
	if (cluster_bits < 9 || cluster_bits > 21)
		return error_set(err, -EINVAL, "%s: qcow2 header is damaged (cluster bits %u)",
				 path, cluster_bits);
	if (be32(head + QCOW2_CRYPT))
		return error_set(err, -EINVAL, "%s: is an encrypted qcow2, which cannot be used",
				 path);
	info->virtual_bytes = be64(head + QCOW2_SIZE);
	info->has_backing = be64(head + QCOW2_BACKING_OFFSET) != 0;
	if (version == 3 && (be64(head + QCOW2_INCOMPATIBLE) & QCOW2_INCOMPAT_DATA_FILE))
		info->has_backing = true;
	return 0;
}

int disk_inspect(const char *path, struct disk_info *ret, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	uint8_t head[HEAD_BYTES] = { 0 };
	struct disk_info info = { 0 };
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_sys(err, -errno, "open %s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s is not a file", path);
	n = pread(fd, head, sizeof(head), 0);
	if (n < 0)
		return error_sys(err, -errno, "read %s", path);
	strcpy(info.format, guess_format(head));
	info.actual_bytes = (uint64_t)st.st_blocks * 512;
	if (streq(info.format, "raw"))
		info.virtual_bytes = (uint64_t)st.st_size;
	else if (streq(info.format, "qcow2") && read_qcow2(path, head, (size_t)n, &info, err) < 0)
		return err->code;
	*ret = info;
	return 0;
}

/* "driver=qcow2,file.driver=file,file.filename=PATH", commas doubled as QEMU's
 * option syntax wants. */
char *disk_image_opts(const char *format, const char *path)
{
	struct buf b = { 0 };

	buf_addf(&b, "driver=%s,file.driver=file,file.filename=", format);
	for (; *path; path++)
		buf_addf(&b, *path == ',' ? ",%c" : "%c", *path);
	return buf_steal_str(&b);
}

int disk_run_qemu_img(const char *const *argv, struct child_result *ret, struct error *err)
{
	const struct child_spec spec = { .argv = argv, .max_output_bytes = 1 << 20 };
	int rc = child_run_ok(&spec, ret, err);

	if (rc == -ENOENT)
		return error_wrap(err, "qemu-img is needed: install the package qemu-utils");
	return rc;
}

/* A second look, by QEMU's own eyes: the file must be usable, and nothing that
 * our reading missed may lead out of it. */
static int check_by_qemu_img(const char *path, const struct disk_info *info, struct error *err)
{
	scoped_child_result struct child_result res = { 0 };
	scoped_free char *opts = disk_image_opts(info->format, path);
	const char *const argv[] = { "qemu-img", "info", "--output=json", "-U", "--image-opts",
				     opts,       NULL };
	json_t *root, *size;
	bool outside;

	if (disk_run_qemu_img(argv, &res, err) < 0)
		return err->code;
	root = json_loadb((const char *)res.out.data, res.out.len, 0, NULL);
	size = json_object_get(root, "virtual-size");
	outside = json_object_get(root, "backing-filename") ||
		  json_object_get(json_object_get(json_object_get(root, "format-specific"), "data"),
				  "data-file");
	if (!json_is_integer(size) || outside) {
		json_decref(root);
		return error_set(err, -EINVAL, "%s: qemu-img info %s", path,
				 outside ? "names another file" : "gave no size");
	}
	json_decref(root);
	return 0;
}

int disk_refuse_outside(const char *path, struct error *err)
{
	return error_set(err, -EPERM,
			 "%s: refused: the image names another file of this machine (backing or "
			 "external data file) as part of itself",
			 path);
}

int disk_check_untrusted(const char *path, struct disk_info *ret, struct error *err)
{
	struct disk_info info;

	if (disk_inspect(path, &info, err) < 0)
		return err->code;
	if (info.has_backing)
		return disk_refuse_outside(path, err);
	if (!streq(info.format, "qcow2") && !streq(info.format, "raw"))
		return error_set(err, -EINVAL,
				 "%s: format %s is not supported; convert it: qemu-img convert -O "
				 "qcow2 IN OUT",
				 path, info.format);
	if (info.virtual_bytes == 0)
		return error_set(err, -EINVAL, "%s: the image is empty", path);
	/* raw is what has no mark of another format, so also a page that asks to log
	 * in to this network, and a file that was cut */
	if (streq(info.format, "raw") && info.virtual_bytes % SECTOR_BYTES)
		return error_set(err, -EINVAL, "%s: is no disk image: its %" PRIu64 " bytes are no "
				 "whole number of sectors, nor is it qcow2; look at what came",
				 path, info.virtual_bytes);
	if (streq(info.format, "qcow2") && check_by_qemu_img(path, &info, err) < 0)
		return err->code;
	*ret = info;
	return 0;
}

bool disk_is_iso(const char *path)
{
	enum { FIRST_DESCRIPTOR = 16 * 2048, ID_OFFSET = 1 };
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char id[5];

	return fd >= 0 && pread(fd, id, sizeof(id), FIRST_DESCRIPTOR + ID_OFFSET) == sizeof(id) &&
	       memcmp(id, "CD001", sizeof(id)) == 0;
}

int disk_create(const char *path, uint64_t bytes, struct error *err)
{
	scoped_child_result struct child_result res = { 0 };
	scoped_free char *size = xasprintf("%" PRIu64, bytes);
	/* "file:" keeps a path with a colon in it from being a protocol */
	scoped_free char *name = xasprintf("file:%s", path);
	const char *const argv[] = { "qemu-img", "create", "-q", "-f", "qcow2", name, size, NULL };

	if (disk_run_qemu_img(argv, &res, err) < 0)
		return err->code;
	return chmod(path, 0600) < 0 ? error_sys(err, -errno, "chmod %s", path) : 0;
}

int disk_grow(const char *path, uint64_t bytes, struct error *err)
{
	scoped_child_result struct child_result res = { 0 };
	scoped_free char *size = xasprintf("%" PRIu64, bytes);
	scoped_free char *opts = NULL;
	struct disk_info info;

	if (disk_inspect(path, &info, err) < 0)
		return err->code;
	/* a guest can write such a header into its raw disk */
	if (info.has_backing)
		return disk_refuse_outside(path, err);
	if (info.virtual_bytes == bytes)
		return 0;
	if (info.virtual_bytes > bytes)
		return error_set(err, -EINVAL,
				 "%s: has %.2f GiB; to shrink it to %.2f GiB would lose data: set "
				 "`disk` to at least what it has",
				 path, (double)info.virtual_bytes / (1 << 30),
				 (double)bytes / (1 << 30));
	opts = disk_image_opts(info.format, path);
	const char *const argv[] = { "qemu-img", "resize", "-q", "--image-opts", opts, size, NULL };
	if (disk_run_qemu_img(argv, &res, err) < 0)
		return error_wrap(err, "grow %s to %.2f GiB", path, (double)bytes / (1 << 30));
	return 0;
}
