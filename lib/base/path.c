#include "lib/base/path.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "lib/base/mem.h"
#include "lib/base/strv.h"

int path_read_file(const char *path, size_t max_bytes, struct buf *ret, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	scoped_buf struct buf b = { 0 };

	if (fd < 0)
		return error_sys(err, -errno, "open %s", path);
	for (;;) {
		uint8_t *p = buf_reserve(&b, 65536);
		ssize_t n = read(fd, p, 65536);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_sys(err, -errno, "read %s", path);
		if (n == 0)
			break;
		b.len += (size_t)n;
		if (b.len > max_bytes)
			return error_set(err, -EFBIG, "read %s: larger than %zu bytes", path,
					 max_bytes);
	}
	buf_add(&b, "", 0);
	buf_done(ret);
	*ret = b;
	b = (struct buf){ 0 };
	return 0;
}

static int write_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int path_sync_dir(const char *path, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return error_sys(err, -errno, "open %s", path);
	if (fsync(fd) < 0 && errno != EINVAL) /* some file systems cannot sync a directory */
		return error_sys(err, -errno, "sync %s", path);
	return 0;
}

static int write_and_sync(const char *tmp, const void *data, size_t len, mode_t mode,
			  struct error *err)
{
	scoped_fd int fd = -1;
	int rc;

	unlink(tmp); /* of a process with our pid that died */
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_sys(err, -errno, "create %s", tmp);
	rc = write_all(fd, data, len);
	if (rc < 0)
		return error_sys(err, rc, "write %s", tmp);
	if (fchmod(fd, mode) < 0)
		return error_sys(err, -errno, "chmod %s", tmp);
	if (fsync(fd) < 0)
		return error_sys(err, -errno, "sync %s", tmp);
	return 0;
}

static char *dir_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return xstrdup(".");
	return slash == path ? xstrdup("/") : xstrndup(path, (size_t)(slash - path));
}

int path_write_file(const char *path, const void *data, size_t len, mode_t mode, struct error *err)
{
	scoped_free char *tmp = xasprintf("%s.tmp.%d", path, (int)getpid());
	scoped_free char *dir = dir_of(path);

	if (write_and_sync(tmp, data, len, mode, err) < 0) {
		unlink(tmp);
		return err->code;
	}
	if (rename(tmp, path) < 0) {
		int code = -errno;

		unlink(tmp);
		return error_sys(err, code, "rename %s", path);
	}
	return path_sync_dir(dir, err);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int path_mkdir_all(const char *path, mode_t mode, struct error *err)
{
	scoped_free char *copy = xstrdup(path);

	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = 0;
		if (mkdir(copy, 0755) < 0) {
			int code = -errno;

			/* a read-only file system says so before it looks whether it exists */
			if (code != -EEXIST && !is_dir(copy))
				return error_sys(err, code, "mkdir %s", copy);
		}
		*p = '/';
	}
	if (mkdir(path, mode) < 0) {
		int code = -errno;

		if (code != -EEXIST)
			return error_sys(err, code, "mkdir %s", path);
		if (!is_dir(path))
			return error_set(err, -ENOTDIR, "mkdir %s: a file is in the way", path);
	}
	return 0;
}

static int remove_at(int dirfd, const char *name, const char *shown, struct error *err)
{
	scoped_dir DIR *dir = NULL;
	struct dirent *de;
	int fd;

	if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return error_sys(err, -errno, "remove %s", shown);
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return error_sys(err, -errno, "open %s", shown);
	dir = fdopendir(fd);
	if (!dir) {
		int code = -errno;

		close(fd);
		return error_sys(err, code, "read %s", shown);
	}
	while ((de = readdir(dir))) {
		if (streq(de->d_name, ".") || streq(de->d_name, ".."))
			continue;
		scoped_free char *sub = xasprintf("%s/%s", shown, de->d_name);
		if (remove_at(fd, de->d_name, sub, err) < 0)
			return err->code;
	}
	if (unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		return error_sys(err, -errno, "remove %s", shown);
	return 0;
}

int path_remove_tree(const char *path, struct error *err)
{
	return remove_at(AT_FDCWD, path, path, err);
}

bool path_exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

char *path_expand_home(const char *path)
{
	const char *home = getenv("HOME");

	if (home && path[0] == '~' && (path[1] == 0 || path[1] == '/'))
		return xasprintf("%s%s", home, path + 1);
	return xstrdup(path);
}

char *path_find_program(const char *name)
{
	scoped_strv struct strv dirs = { 0 };
	const char *env = getenv("PATH"), *dir;

	if (strchr(name, '/'))
		return access(name, X_OK) == 0 ? xstrdup(name) : NULL;
	strv_split(&dirs, env ? env : "/usr/local/bin:/usr/bin:/bin", ":");
	strv_add_all(&dirs, "/usr/local/sbin", "/usr/sbin", "/sbin", NULL);
	strv_foreach(dir, &dirs) {
		char *full = xasprintf("%s/%s", dir, name);
		struct stat st;

		if (stat(full, &st) == 0 && S_ISREG(st.st_mode) && access(full, X_OK) == 0)
			return full;
		free(full);
	}
	return NULL;
}
