#include "lib/base/log_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/buf.h"
#include "lib/base/scoped.h"

/* The last lines of @fd are added to @ret. */
static int read_tail(int fd, const char *path, off_t size, size_t keep, struct buf *ret,
		     struct error *err)
{
	off_t from = size > (off_t)keep ? size - (off_t)keep : 0;
	scoped_buf struct buf b = { 0 };
	ssize_t n = pread(fd, buf_reserve(&b, keep), keep, from);
	const char *nl;

	if (n < 0)
		return error_sys(err, -errno, "read %s", path);
	b.len = (size_t)n;
	nl = memchr(b.data, '\n', b.len);
	if (nl)
		buf_consume(&b, (size_t)(nl + 1 - (char *)b.data));
	buf_add(ret, b.data, b.len);
	return 0;
}

int log_file_trim(const char *path, off_t max_bytes, size_t keep_bytes, const char *note,
		  struct error *err)
{
	scoped_fd int fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	scoped_buf struct buf tail = { 0 };
	struct stat st;

	if (fd < 0)
		return errno == ENOENT ? 0 : error_sys(err, -errno, "open %s", path);
	/* blocks, not size: a writer without O_APPEND leaves a hole in front */
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_blocks * 512 <= max_bytes)
		return 0;
	buf_add_str(&tail, note);
	if (read_tail(fd, path, st.st_size, keep_bytes, &tail, err) < 0)
		return err->code;
	if (ftruncate(fd, 0) < 0 || write(fd, tail.data, tail.len) < 0)
		return error_sys(err, -errno, "cut %s", path);
	return 0;
}
