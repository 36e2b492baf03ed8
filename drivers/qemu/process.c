#include "drivers/qemu/process.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "lib/base/buf.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum {
	LOG_HEADER_MAX_BYTES = 64 << 10,
	LOG_READ_MAX_BYTES = 16 << 20,	/* a QEMU that talks more than this is broken anyway */
	LAST_WORDS_MAX_BYTES = 400,
	LOOK_EVERY_MS = 1000,		/* kernels without pidfd_open */
};

struct process {		/* owner: the driver. refs: open handles */
	struct loop *loop;
	union {
		uv_handle_t any;
		uv_process_t child;
		uv_poll_t poll;
		uv_timer_t timer;
	} watch;
	bool is_child;
	pid_t pid;
	int pidfd;		/* adopted; -1 otherwise */
	bool gone, closing;
	process_exit_fn fn;
	void *arg;
};

static void on_closed(uv_handle_t *h)
{
	struct process *p = h->data;

	if (p->pidfd >= 0)
		close(p->pidfd);
	free(p);
}

void process_close(struct process *p)
{
	if (p->closing)
		return;
	p->closing = true;
	uv_close(&p->watch.any, on_closed);
}

static void tell(struct process *p, const struct process_exit *how)
{
	if (p->closing || p->gone)
		return;
	p->gone = true;
	p->fn(p->arg, how);
}

/* --- our child ------------------------------------------------------------ */

static void on_child_exit(uv_process_t *child, int64_t status, int signal)
{
	struct process_exit how = { .known = true, .code = (int)status, .signal = signal };

	tell(child->data, &how);
}

/* The command line as a shell would take it, so that it can be tried by hand. */
static char *quoted(const char *const *argv)
{
	scoped_buf struct buf b = { 0 };

	buf_add_str(&b, "#");
	for (; *argv && b.len < LOG_HEADER_MAX_BYTES; argv++) {
		bool plain = **argv && strspn(*argv, "abcdefghijklmnopqrstuvwxyz0123456789"
						     "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_=.,:/@+%") ==
					       strlen(*argv);

		buf_add_str(&b, plain ? " " : " '");
		for (const char *s = *argv; *s; s++)
			if (*s == '\'')
				buf_add_str(&b, "'\\''");
			else
				buf_add_u8(&b, *s == '\n' ? ' ' : (uint8_t)*s);
		buf_add_str(&b, plain ? "" : "'");
	}
	buf_add_str(&b, "\n");
	return buf_steal_str(&b);
}

static int open_log(const struct process_spec *spec, struct error *err)
{
	scoped_fd int fd = open(spec->log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC,
				0600);
	scoped_free char *header = quoted(spec->argv);

	if (fd < 0)
		return error_sys(err, -errno, "open %s", spec->log_path);
	if (write(fd, header, strlen(header)) < 0)
		return error_sys(err, -errno, "write %s", spec->log_path);
	return steal_fd(&fd);
}

/* argv and the working directory are constant for uv_spawn, its types are not. */
static int spawn(struct process *p, const struct process_spec *spec, int log_fd)
{
	uv_stdio_container_t stdio[16];
	uv_process_options_t o = { 0 };

	assert(spec->n_fds + 3 <= ARRAY_SIZE(stdio));
	stdio[0].flags = UV_IGNORE;
	for (size_t i = 1; i < spec->n_fds + 3; i++) {
		stdio[i].flags = UV_INHERIT_FD;
		stdio[i].data.fd = i < 3 ? log_fd : spec->fds[i - 3];
	}
	o.file = spec->argv[0];
	o.args = (char **)spec->argv;
	o.cwd = spec->cwd;
	o.exit_cb = on_child_exit;
	o.flags = UV_PROCESS_DETACHED;	/* setsid(2) */
	o.stdio = stdio;
	o.stdio_count = (int)spec->n_fds + 3;
	return uv_spawn(&p->loop->uv, &p->watch.child, &o);
}

int process_spawn(struct loop *loop, const struct process_spec *spec, process_exit_fn fn, void *arg,
		  struct process **ret, struct error *err)
{
	scoped_fd int log_fd = open_log(spec, err);
	struct process *p;
	mode_t mask;
	int rc;

	if (log_fd < 0)
		return log_fd;
	p = xnew(struct process);
	*p = (struct process){ .loop = loop, .pidfd = -1, .is_child = true, .fn = fn, .arg = arg };
	/* descriptors that we inherited ourselves stop here: a QEMU that kept a
	 * shell's pipe open would hang whoever reads it. Linux 5.11; best effort */
	syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
	/* what QEMU makes (serial.log, qemu.pid) is nobody else's business; the
	 * few microseconds in which this holds for our other threads do no harm */
	mask = umask(0077);
	rc = spawn(p, spec, log_fd);
	umask(mask);
	p->watch.any.data = p;
	if (rc < 0) {
		process_close(p);	/* also after a failed uv_spawn the handle is open */
		return error_sys(err, rc, "run %s", spec->argv[0]);
	}
	p->pid = p->watch.child.pid;
	*ret = p;
	return 0;
}

/* --- somebody else's child --------------------------------------------------- */

/* If it was our child after all (a test, an agent that restarted itself), it
 * must be reaped; otherwise its parent or init does. */
static void told_by_kernel(struct process *p)
{
	struct process_exit how = { .known = false };
	int status;

	if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
		how.known = true;
		how.code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
		how.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	}
	tell(p, &how);
}

static void on_pidfd(uv_poll_t *poll, int status, int events)
{
	struct process *p = poll->data;

	if (p->closing)
		return;
	uv_poll_stop(poll);
	told_by_kernel(p);
}

static void on_look(uv_timer_t *timer)
{
	struct process *p = timer->data;

	if (p->closing || (kill(p->pid, 0) == 0 || errno == EPERM))
		return;
	uv_timer_stop(timer);
	told_by_kernel(p);
}

static int watch_pidfd(struct process *p)
{
	int rc = uv_poll_init(&p->loop->uv, &p->watch.poll, p->pidfd);

	if (rc == 0)
		rc = uv_poll_start(&p->watch.poll, UV_READABLE, on_pidfd);
	return rc;
}

static int watch_by_timer(struct process *p)
{
	int rc = uv_timer_init(&p->loop->uv, &p->watch.timer);

	if (rc == 0)
		rc = uv_timer_start(&p->watch.timer, on_look, LOOK_EVERY_MS, LOOK_EVERY_MS);
	return rc;
}

int process_adopt(struct loop *loop, pid_t pid, process_exit_fn fn, void *arg,
		  struct process **ret, struct error *err)
{
	scoped_fd int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct process *p;
	int rc;

	/* EPERM: a sandbox that knows no pidfd_open answers so */
	if (pidfd < 0 && errno != ENOSYS && errno != EPERM)
		return error_sys(err, -errno, "watch process %d", (int)pid);
	if (pidfd < 0 && kill(pid, 0) < 0 && errno == ESRCH)
		return error_sys(err, -ESRCH, "watch process %d", (int)pid);
	p = xnew(struct process);
	*p = (struct process){ .loop = loop, .pid = pid, .pidfd = steal_fd(&pidfd), .fn = fn,
			       .arg = arg };
	rc = p->pidfd >= 0 ? watch_pidfd(p) : watch_by_timer(p);
	assert(rc == 0);	/* both take valid handles only */
	p->watch.any.data = p;
	*ret = p;
	return 0;
}

pid_t process_pid(const struct process *p)
{
	return p->pid;
}

int process_signal(struct process *p, int sig)
{
	if (p->gone)
		return -ESRCH;
	if (p->is_child)
		return uv_process_kill(&p->watch.child, sig);
	if (p->pidfd >= 0)
		return syscall(SYS_pidfd_send_signal, p->pidfd, sig, NULL, 0) < 0 ? -errno : 0;
	return kill(p->pid, sig) < 0 ? -errno : 0;
}

/* --- what it said --------------------------------------------------------------- */

/* "qemu-system-x86_64: -m: bad" -> "-m: bad" */
static const char *without_program(const char *line)
{
	const char *colon = strstr(line, ": ");

	if (strncmp(line, "qemu", 4) == 0 && colon && !memchr(line, ' ', (size_t)(colon - line)))
		return colon + 2;
	return line;
}

/* A warning is seldom the cause; a line that begins with the program's name
 * mostly is. */
static int weight(const char *line)
{
	if (!*line || *line == '#')
		return 0;
	if (strncmp(without_program(line), "warning:", 8) == 0 ||
	    strncmp(without_program(line), "info:", 5) == 0)
		return 1;
	return without_program(line) != line ? 3 : 2;
}

char *process_last_words(const char *log_path)
{
	scoped_buf struct buf b = { 0 };
	struct error ignored = ERROR_NONE;
	char *best = NULL, *line, *save = NULL;

	if (path_read_file(log_path, LOG_READ_MAX_BYTES, &b, &ignored) < 0 || !b.len)
		return xstrdup("");
	for (line = strtok_r((char *)b.data, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save))
		if (weight(line) && (!best || weight(line) >= weight(best)))
			best = line;
	return best ? log_escape(without_program(best), LAST_WORDS_MAX_BYTES) : xstrdup("");
}
