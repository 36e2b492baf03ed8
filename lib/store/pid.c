#include "lib/store/pid.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum {
	BOOT_ID_SIZE = 36 + 1, /* a UUID as text */
	WAIT_SLICE_MS = 250,   /* how long Ctrl-C may go unnoticed */
};

/* "" when the kernel does not tell; it never changes while we run. */
static const char *boot_id(void)
{
	static char id[BOOT_ID_SIZE];
	scoped_buf struct buf b = { 0 };
	struct error err;

	if (!id[0] && path_read_file("/proc/sys/kernel/random/boot_id", 256, &b, &err) == 0)
		snprintf(id, sizeof(id), "%.*s", (int)strcspn(buf_str(&b), "\n"), buf_str(&b));
	return id;
}

/* What /proc/PID/stat says: proc(5), fields 2, 3 and 22. */
struct process {
	char comm[17]; /* 15 bytes at most, the kernel cuts it */
	char state;
	uint64_t start_ticks; /* clock ticks since boot */
};

static int read_process(pid_t pid, struct process *ret)
{
	scoped_free char *path = xasprintf("/proc/%d/stat", (int)pid);
	scoped_buf struct buf b = { 0 };
	const char *open_paren, *close_paren, *p;
	struct error err;

	if (path_read_file(path, 64 << 10, &b, &err) < 0)
		return err.code;
	open_paren = strchr(buf_str(&b), '(');
	close_paren = strrchr(buf_str(&b), ')'); /* the name itself may hold ')' */
	if (!open_paren || !close_paren || close_paren < open_paren || close_paren[1] != ' ')
		return -EIO;
	snprintf(ret->comm, sizeof(ret->comm), "%.*s", (int)(close_paren - open_paren - 1),
		 open_paren + 1);
	p = close_paren + 2; /* field 3 */
	ret->state = *p;
	for (int field = 3; field < 22 && p; field++) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	if (!p || sscanf(p, "%" SCNu64, &ret->start_ticks) != 1)
		return -EIO;
	return 0;
}

static bool process_alive(const struct process *p)
{
	return p->state != 'Z' && p->state != 'X' && p->state != 'x';
}

/* A decimal pid alone on the line at *@p, which moves behind it; 0 if it is none. */
static pid_t parse_pid_line(const char **p)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(*p, &end, 10);
	while (*end == ' ' || *end == '\r')
		end++;
	if (errno || end == *p || (*end && *end != '\n') || v <= 0 || v > INT32_MAX)
		return 0;
	*p = *end ? end + 1 : end;
	return (pid_t)v;
}

pid_t pid_file_read(const char *path, const char *comm_prefix)
{
	scoped_buf struct buf b = { 0 };
	struct process proc;
	struct error err;
	char id[BOOT_ID_SIZE];
	uint64_t start;
	const char *p;
	pid_t pid;

	if (path_read_file(path, 4096, &b, &err) < 0)
		return 0;
	p = buf_str(&b);
	pid = parse_pid_line(&p);
	if (pid == 0 || read_process(pid, &proc) < 0 || !process_alive(&proc))
		return 0;
	if (!*p) /* one line: QEMU's or Lima's */
		return !comm_prefix || strncmp(proc.comm, comm_prefix, strlen(comm_prefix)) == 0
			       ? pid
			       : 0;
	if (sscanf(p, "%36[0-9a-f-]\n%" SCNu64, id, &start) != 2)
		return 0;
	return streq(id, boot_id()) && start == proc.start_ticks ? pid : 0;
}

pid_t pid_of_listener(const char *path, const char *comm_prefix)
{
	/* non-blocking: a full backlog is an answer, too */
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	struct process proc;

	if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
		return 0;
	strcpy(sa.sun_path, path); /* checked above */
	/* unix(7): who called listen() last; an inherited socket is renewed by it */
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return 0;
	if (peer.pid <= 0 || read_process(peer.pid, &proc) < 0 || !process_alive(&proc) ||
	    strncmp(proc.comm, comm_prefix, strlen(comm_prefix)) != 0)
		return 0;
	return peer.pid;
}

int pid_file_write(const char *path, pid_t pid, struct error *err)
{
	scoped_free char *text = NULL;
	struct process proc;
	int rc = read_process(pid, &proc);

	if (rc < 0)
		return error_sys(err, rc == -ENOENT ? -ESRCH : rc, "write %s: process %d", path,
				 (int)pid);
	text = xasprintf("%d\n%s\n%" PRIu64 "\n", (int)pid, boot_id(), proc.start_ticks);
	return path_write_file(path, text, strlen(text), 0644, err);
}

/* Without pidfd_open (Linux < 5.3, some sandboxes): looks again and again. */
static int wait_by_looking(pid_t pid, uint64_t deadline_ms)
{
	struct process first, now;

	if (read_process(pid, &first) < 0)
		return 0;
	for (;;) {
		if (read_process(pid, &now) < 0 || !process_alive(&now) ||
		    now.start_ticks != first.start_ticks)
			return 0;
		if (interrupt_pending())
			return -ECANCELED;
		if (clock_mono_ms() >= deadline_ms)
			return -ETIMEDOUT;
		poll(NULL, 0, 20);
	}
}

int pid_wait_gone(pid_t pid, unsigned timeout_ms)
{
	uint64_t deadline_ms = clock_mono_ms() + timeout_ms;
	scoped_fd int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0)
		return errno == ESRCH ? 0 : wait_by_looking(pid, deadline_ms);
	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		uint64_t now = clock_mono_ms();
		uint64_t left = now < deadline_ms ? deadline_ms - now : 0;

		if (poll(&pfd, 1, (int)MIN(left, (uint64_t)WAIT_SLICE_MS)) > 0)
			return 0;
		if (interrupt_pending())
			return -ECANCELED;
		if (left == 0)
			return -ETIMEDOUT;
	}
}
