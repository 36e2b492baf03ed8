#include "hostagent/forward/unix.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/scoped.h"

static int unix_socket(int *ret_fd, struct error *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return error_sys(err, -errno, "unix socket");
	*ret_fd = fd;
	return 0;
}

static int make_parent(const char *path, struct error *err)
{
	scoped_free char *dir = xstrdup(path);
	char *slash = strrchr(dir, '/');

	if (!slash || slash == dir)
		return 0;
	*slash = 0;
	return path_exists(dir) ? 0 : path_mkdir_all(dir, 0700, err);
}

/* 0: nobody is there. A socket file answers ECONNREFUSED when its listener is gone
 * (unix(7)). */
static int probe(const struct sockaddr_un *addr, struct error *err)
{
	scoped_fd int fd = -1;

	if (unix_socket(&fd, err) < 0)
		return err->code;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN)
		return error_set(err, -EADDRINUSE, "another program listens there");
	if (errno != ECONNREFUSED && errno != ENOENT)
		return error_sys(err, -errno, "probe `%s`", addr->sun_path);
	return 0;
}

static int remove_stale(const struct sockaddr_un *addr, struct error *err)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return error_set(err, -EEXIST, "exists and is not a socket");
	if (probe(addr, err) < 0)
		return err->code;
	log_debug("forward: removing stale socket `%s`", addr->sun_path);
	unlink(addr->sun_path);
	return 0;
}

static int fill_address(const char *path, struct sockaddr_un *ret, struct error *err)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret->sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "`%s` is longer than a socket's name may be (%zu)", path,
				 sizeof(ret->sun_path) - 1);
	strcpy(ret->sun_path, path);
	return 0;
}

bool unix_is_served(const char *path)
{
	struct error ignored = ERROR_NONE;
	struct sockaddr_un addr;

	return fill_address(path, &addr, &ignored) < 0 || probe(&addr, &ignored) < 0;
}

int unix_identify(const char *path, struct unix_id *ret)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return -errno;
	if (!S_ISSOCK(st.st_mode))
		return -ENOTSOCK;
	*ret = (struct unix_id){ st.st_dev, st.st_ino };
	return 0;
}

int unix_listen(const char *path, int *ret_fd, struct unix_id *ret_id, struct error *err)
{
	struct sockaddr_un addr;
	scoped_fd int fd = -1;

	if (fill_address(path, &addr, err) < 0 || make_parent(path, err) < 0 ||
	    remove_stale(&addr, err) < 0 || unix_socket(&fd, err) < 0)
		return err->code;
	/* Linux gives the file the socket inode's mode: no moment with a wider one */
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    listen(fd, SOMAXCONN) < 0)
		return error_sys(err, -errno, "listen on `%s`", path);
	if (unix_identify(path, ret_id) < 0)
		return error_set(err, -ENOENT, "`%s` vanished", path);
	*ret_fd = steal_fd(&fd);
	return 0;
}

void unix_remove(const char *path, const struct unix_id *id)
{
	struct unix_id now;

	if (unix_identify(path, &now) == 0 && now.dev == id->dev && now.ino == id->ino)
		unlink(path);
}
