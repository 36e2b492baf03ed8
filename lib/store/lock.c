#include "lib/store/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

enum {
	RETRY_MS = 50,
	CREATION_TIMEOUT_MS = 30 * 1000,
};

/* "12 start\n" of the holder; anything odd in it is "unknown". */
static void read_holder(int fd, struct lock_holder *ret)
{
	char text[64] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	*ret = (struct lock_holder){ 0 };
	if (n <= 0 || sscanf(text, "%d %31[a-z-]", &ret->pid, ret->verb) != 2 || ret->pid <= 0)
		*ret = (struct lock_holder){ .verb = "unknown" };
}

static void write_holder(int fd, const char *verb)
{
	char text[64];
	int len = snprintf(text, sizeof(text), "%d %.31s\n", (int)getpid(), verb);

	/* only for a message: a full disk must not keep anybody from `delete` */
	if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)len, 0) < 0)
		return;
}

/* Whether @path still names the file behind @fd: the one we waited for may have
 * been removed with its instance in between. */
static bool still_there(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* One attempt: 0 with the lock, -EAGAIN with the holder, or another error. */
static int try_lock(const char *path, const char *verb, int *ret_fd, struct lock_holder *holder,
		    struct error *err)
{
	for (;;) {
		scoped_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0)
			return error_sys(err, -errno, "open %s", path);
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			if (errno != EWOULDBLOCK)
				return error_sys(err, -errno, "lock %s", path);
			read_holder(fd, holder);
			return -EAGAIN;
		}
		if (!still_there(fd, path))
			continue;
		write_holder(fd, verb);
		*ret_fd = steal_fd(&fd);
		return 0;
	}
}

static int lock_until(const char *path, const char *verb, unsigned timeout_ms, int *ret_fd,
		      struct lock_holder *holder, struct error *err)
{
	uint64_t deadline = clock_mono_ms() + timeout_ms;

	for (;;) {
		int rc = try_lock(path, verb, ret_fd, holder, err);

		if (rc != -EAGAIN || clock_mono_ms() >= deadline || holder->pid == getpid())
			return rc;
		if (interrupt_check(err) < 0)
			return err->code;
		poll(NULL, 0, RETRY_MS);
	}
}

int lock_instance_wait(const char *instance_dir, const char *verb, unsigned timeout_ms, int *ret_fd,
		       struct error *err)
{
	scoped_free char *path = layout_instance_file(instance_dir, FILE_LOCK);
	const char *slash = strrchr(instance_dir, '/');
	const char *name = slash ? slash + 1 : instance_dir;
	struct lock_holder holder = { 0 };
	int rc = lock_until(path, verb, timeout_ms, ret_fd, &holder, err);

	if (rc == -EAGAIN)
		return error_set(err, -EBUSY,
				 "instance `%s` is being changed by `limactl %s` (pid %d)", name,
				 holder.verb, (int)holder.pid);
	if (rc == -ENOENT)
		return error_set(err, -ENOENT, "instance `%s` does not exist", name);
	return rc;
}

int lock_instance(const char *instance_dir, const char *verb, int *ret_fd, struct error *err)
{
	return lock_instance_wait(instance_dir, verb, 0, ret_fd, err);
}

int lock_creation(const char *lima_home, const char *verb, int *ret_fd, struct error *err)
{
	scoped_free char *config = layout_config_dir(lima_home);
	scoped_free char *path = layout_create_lock(lima_home);
	struct lock_holder holder = { 0 };
	int rc;

	if (path_mkdir_all(lima_home, 0700, err) < 0 || path_mkdir_all(config, 0700, err) < 0)
		return err->code;
	rc = lock_until(path, verb, CREATION_TIMEOUT_MS, ret_fd, &holder, err);
	if (rc != -EAGAIN)
		return rc;
	if (holder.pid == getpid())
		return error_set(err, -EDEADLK, "%s is held by this process already", path);
	return error_set(err, -EBUSY, "`limactl %s` (pid %d) keeps %s for more than %d s",
			 holder.verb, (int)holder.pid, path, CREATION_TIMEOUT_MS / 1000);
}

/* proc(5): "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF" */
bool lock_line_is_of(const char *line, const struct stat *st, pid_t holder)
{
	unsigned dev_major, dev_minor;
	uint64_t inode;
	int pid;

	if (sscanf(line, "%*d: FLOCK %*s WRITE %d %x:%x:%" SCNu64, &pid, &dev_major, &dev_minor,
		   &inode) != 4 ||
	    inode != st->st_ino)
		return false;
	if (dev_major == major(st->st_dev) && dev_minor == minor(st->st_dev))
		return true;
	/* btrfs: stat(2) gives each subvolume a device of its own, the line has the
	 * file system's */
	return holder > 0 && pid == holder;
}

/* To ask by flock() would take the lock for a moment, and make somebody else's fail. */
static bool flock_is_held(const struct stat *st, pid_t holder)
{
	scoped_file FILE *f = fopen("/proc/locks", "re");
	scoped_free char *line = NULL;
	size_t cap = 0;

	while (f && getline(&line, &cap, f) > 0)
		if (lock_line_is_of(line, st, holder))
			return true;
	return false;
}

bool lock_instance_holder(const char *instance_dir, struct lock_holder *ret)
{
	scoped_free char *path = layout_instance_file(instance_dir, FILE_LOCK);
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	read_holder(fd, ret);
	return flock_is_held(&st, ret->pid);
}
