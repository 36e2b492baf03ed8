#include "lib/store/sparse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "lib/base/interrupt.h"
#include "lib/base/mem.h"

enum {
	BLOCK_BYTES = 4096,           /* what is worth a hole */
	CHUNK_BYTES = 4 << 20,        /* copied between two looks at Ctrl-C */
	SPACE_CHECK_BYTES = 64 << 20, /* written between two looks at free space */
	RESERVE_BYTES = 16 << 20,     /* left to others: a compressed file may swell
				       * without bound and must not fill the disk */
};

static bool free_space(const char *path, uint64_t *ret)
{
	const char *slash = strrchr(path, '/');
	scoped_free char *dir = slash ? xstrndup(path, (size_t)(slash - path) + 1) : xstrdup(".");
	struct statvfs vfs;

	if (statvfs(dir, &vfs) < 0 || vfs.f_blocks == 0)
		return false;
	*ret = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	return true;
}

static double mib(uint64_t bytes)
{
	return (double)bytes / (1 << 20);
}

int sparse_write_error(struct error *err, int code, const char *path, uint64_t needed)
{
	uint64_t avail;

	if ((code != -ENOSPC && code != -EDQUOT) || !free_space(path, &avail))
		return error_sys(err, code, "write %s", path);
	if (needed)
		return error_set(err, code,
				 "write %s: %s (%.1f MiB needed, %.1f MiB free): make room there",
				 path, error_text(code), mib(needed), mib(avail));
	return error_set(err, code, "write %s: %s (%.1f MiB free): make room there", path,
			 error_text(code), mib(avail));
}

int sparse_check_space(const char *path, uint64_t needed, struct error *err)
{
	uint64_t avail;

	if (!free_space(path, &avail) || avail >= needed)
		return 0;
	return sparse_write_error(err, -ENOSPC, path, needed);
}

int sparse_open(struct sparse *s, const char *path, struct error *err)
{
	*s = SPARSE_NONE;
	s->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->fd < 0)
		return error_sys(err, -errno, "create %s", path);
	s->path = xstrdup(path);
	return 0;
}

void sparse_abort(struct sparse *s)
{
	if (s->fd >= 0) {
		close(s->fd);
		unlink(s->path);
	}
	free(s->path);
	*s = SPARSE_NONE;
}

int sparse_commit(struct sparse *s, uint64_t size, struct error *err)
{
	int rc = 0;

	if (ftruncate(s->fd, (off_t)size) < 0 || fsync(s->fd) < 0)
		rc = -errno;
	if (rc < 0)
		return sparse_write_error(err, rc, s->path, 0);
	close(s->fd);
	s->fd = -1;
	sparse_abort(s);
	return 0;
}

static bool is_zero(const uint8_t *p, size_t len)
{
	return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

static int check_reserve(struct sparse *s, size_t len, struct error *err)
{
	uint64_t avail;

	if (s->until_space_check >= len) {
		s->until_space_check -= len;
		return 0;
	}
	if (!free_space(s->path, &avail))
		return 0;
	if (avail < RESERVE_BYTES + len)
		return sparse_write_error(err, -ENOSPC, s->path, RESERVE_BYTES + len);
	s->until_space_check = MIN(avail - RESERVE_BYTES - len, (uint64_t)SPACE_CHECK_BYTES);
	return 0;
}

static int write_at(struct sparse *s, uint64_t offset, const uint8_t *p, size_t len,
		    struct error *err)
{
	if (check_reserve(s, len, err) < 0)
		return err->code;
	while (len) {
		ssize_t n = pwrite(s->fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR) {
			if (interrupt_check(err) < 0)
				return err->code;
			continue;
		}
		if (n < 0)
			return sparse_write_error(err, -errno, s->path, 0);
		p += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int sparse_write(struct sparse *s, uint64_t offset, const void *data, size_t len, struct error *err)
{
	const uint8_t *p = data;
	size_t pos = 0;

	while (pos < len) {
		/* runs of blocks of one kind; blocks lie on the file's own grid */
		size_t start = pos, n = MIN(BLOCK_BYTES - (offset + pos) % BLOCK_BYTES, len - pos);
		bool zero = is_zero(p + pos, n);

		do {
			pos += n;
			n = MIN((size_t)BLOCK_BYTES, len - pos);
		} while (pos < len && is_zero(p + pos, n) == zero);
		if (!zero && write_at(s, offset + start, p + start, pos - start, err) < 0)
			return err->code;
	}
	s->end = MAX(s->end, offset + len);
	return 0;
}

/* By our own hands, where the kernel cannot or zeros are to be found. */
static int copy_by_reading(int in, struct sparse *out, uint64_t from, uint64_t len,
			   struct error *err)
{
	enum { READ_BYTES = 256 << 10 };
	scoped_free uint8_t *buf = xmalloc(READ_BYTES);

	while (len) {
		ssize_t n = pread(in, buf, MIN(len, (uint64_t)READ_BYTES), (off_t)from);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_sys(err, -errno, "read");
		if (n == 0)
			return error_set(err, -EIO, "read: the file became shorter meanwhile");
		if (sparse_write(out, from, buf, (size_t)n, err) < 0)
			return err->code;
		from += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int copy_range(int in, struct sparse *out, uint64_t from, uint64_t len, bool *by_reading,
		      struct error *err)
{
	loff_t in_off = (loff_t)from, out_off = (loff_t)from;

	if (!*by_reading && check_reserve(out, len, err) < 0)
		return err->code;
	while (!*by_reading && len) {
		ssize_t n = copy_file_range(in, &in_off, out->fd, &out_off, len, 0);

		if (n > 0) {
			len -= (uint64_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
			return sparse_write_error(err, -errno, out->path, 0);
		*by_reading = true; /* EXDEV, EINVAL, ENOSYS …: not between these two */
	}
	return len ? copy_by_reading(in, out, (uint64_t)in_off, len, err) : 0;
}

static int copy_extents(int in, struct sparse *out, uint64_t size, bool find_zeros,
			const char *what, const struct progress *progress, struct error *err)
{
	bool by_reading = find_zeros;

	for (uint64_t pos = 0; pos < size;) {
		off_t data = lseek(in, (off_t)pos, SEEK_DATA);
		off_t hole = data < 0 ? -1 : lseek(in, data, SEEK_HOLE);
		uint64_t from = data < 0 ? pos : (uint64_t)data;
		uint64_t to = hole < 0 ? size : MIN((uint64_t)hole, size);

		if (data < 0 && errno == ENXIO) /* only a hole is left */
			break;
		for (; from < to; from = pos) {
			uint64_t n = MIN(to - from, (uint64_t)CHUNK_BYTES);

			if (interrupt_check(err) < 0 ||
			    copy_range(in, out, from, n, &by_reading, err) < 0)
				return err->code;
			pos = from + n;
			progress_update(progress, what, pos, size);
		}
		pos = to;
	}
	return 0;
}

int sparse_copy_file(const char *from, const char *to, bool find_zeros, const char *what,
		     const struct progress *progress, struct error *err)
{
	scoped_sparse struct sparse out = SPARSE_NONE;
	scoped_fd int in = open(from, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (in < 0 || fstat(in, &st) < 0)
		return error_sys(err, -errno, "open %s", from);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s is not a file", from);
	if (sparse_open(&out, to, err) < 0)
		return err->code;
	if (ioctl(out.fd, FICLONE, in) < 0) {
		uint64_t used = (uint64_t)st.st_blocks * 512;

		if (sparse_check_space(to, find_zeros ? 0 : MIN(used, (uint64_t)st.st_size), err) <
			    0 ||
		    copy_extents(in, &out, (uint64_t)st.st_size, find_zeros, what, progress, err) <
			    0)
			return error_wrap(err, "copy %s", from);
	}
	return sparse_commit(&out, (uint64_t)st.st_size, err);
}
