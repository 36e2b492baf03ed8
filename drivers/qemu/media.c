#include "drivers/qemu/media.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/scoped.h"

enum {	/* QEMU docs/interop/qcow2.txt, "Header"; all fields big-endian */
	QCOW2_VERSION_AT = 4,
	QCOW2_BACKING_OFFSET_AT = 8,
	QCOW2_INCOMPATIBLE_AT = 72,	/* version ≥ 3 */
	QCOW2_HEADER_V3_BYTES = 104,
};
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C(1) << 2)

static uint64_t be64_at(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static uint32_t be32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

int qemu_media_format(const char *path, const char **ret_format, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t head[QCOW2_HEADER_V3_BYTES] = { 0 };
	uint32_t version;

	if (fd < 0)
		return error_sys(err, -errno, "open %s", path);
	if (pread(fd, head, sizeof(head), 0) < 0)
		return error_sys(err, -errno, "read %s", path);
	if (memcmp(head, "QFI\xfb", 4) != 0) {
		*ret_format = "raw";
		return 0;
	}
	version = be32_at(head + QCOW2_VERSION_AT);
	if (version != 2 && version != 3)
		return error_set(err, -EINVAL, "%s: qcow2 version %u is unknown", path, version);
	if (be64_at(head + QCOW2_BACKING_OFFSET_AT) != 0)
		return error_set(err, -EINVAL, "%s: refused, it has a backing file (qemu-img "
				 "convert makes a whole image of it)", path);
	if (version == 3 && (be64_at(head + QCOW2_INCOMPATIBLE_AT) & QCOW2_INCOMPAT_DATA_FILE))
		return error_set(err, -EINVAL, "%s: refused, its data is in an external file", path);
	*ret_format = "qcow2";
	return 0;
}
