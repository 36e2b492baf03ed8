#include "drivers/qemu/endpoint.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/scoped.h"

enum { BACKLOG = 4 };	/* QEMU serves one client at a time */

static int address(const char *path, struct sockaddr_un *ret, struct error *err)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret->sun_path))
		return error_set(err, -ENAMETOOLONG, "socket %s: the path is longer than %zu bytes; "
				 "use a shorter $LIMA_HOME or name", path,
				 sizeof(ret->sun_path) - 1);
	strcpy(ret->sun_path, path);	/* checked above */
	return 0;
}

int endpoint_listen(const char *path, int *ret_fd, struct error *err)
{
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un sa;
	mode_t mask;
	int rc;

	if (fd < 0)
		return error_sys(err, -errno, "socket %s", path);
	if (address(path, &sa, err) < 0)
		return err->code;
	if (unlink(path) < 0 && errno != ENOENT)
		return error_sys(err, -errno, "remove %s", path);
	mask = umask(0177);
	rc = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	umask(mask);
	if (rc == 0 && listen(fd, BACKLOG) < 0)
		rc = -errno;
	if (rc < 0)
		return error_sys(err, rc, "listen on %s", path);
	*ret_fd = steal_fd(&fd);
	return 0;
}

int endpoint_connect(const char *path, int *ret_fd, struct error *err)
{
	/* non-blocking: a unix connect is done at once or says EAGAIN when the
	 * backlog is full */
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un sa;

	if (fd < 0)
		return error_sys(err, -errno, "socket %s", path);
	if (address(path, &sa, err) < 0)
		return err->code;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return error_sys(err, -errno, "connect to %s", path);
	*ret_fd = steal_fd(&fd);
	return 0;
}
