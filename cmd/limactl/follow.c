#include "cmd/limactl/follow.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostagent/events.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/store/layout.h"

enum {
	TICK_MS = 100,			/* the spinner; also notices an interrupt that
					 * came just before poll() */
	MAX_LINE_BYTES = 256 * 1024,	/* the host agent's lines are far shorter */
	TAIL_BYTES = 64 * 1024,
	TAIL_LINES = 4,
};

int follow_open(struct follow *f, const char *dir, pid_t ha_pid, struct ui *ui, off_t offset,
		struct error *err)
{
	scoped_free char *path = layout_instance_file(dir, FILE_HA_STDOUT);

	*f = (struct follow){ .dir = dir, .ha_pid = ha_pid, .ui = ui, .watch_fd = -1 };
	f->pid_fd = pidfd_open(ha_pid, 0);
	f->log_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (f->log_fd < 0 && errno == ENOENT)
		return 0; /* a host agent in the foreground of a terminal has none */
	if (f->log_fd < 0)
		return error_sys(err, -errno, "open %s", path);
	lseek(f->log_fd, offset, SEEK_SET);
	f->watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (f->watch_fd < 0 || inotify_add_watch(f->watch_fd, path, IN_MODIFY) < 0)
		/* desktops run out of watches; the tick finds it too */
		log_debug("follow: watch %s: %s", path, error_text(-errno));
	return 0;
}

void follow_close(struct follow *f)
{
	scoped_close_fd(&f->log_fd);
	scoped_close_fd(&f->watch_fd);
	scoped_close_fd(&f->pid_fd);
	buf_done(&f->pending);
}

static void show_step(struct follow *f, const struct event_view *v)
{
	switch (v->step.state) {
	case STEP_STARTED: ui_step_start(f->ui, v->step.name); break;
	case STEP_PROGRESS: ui_step_detail(f->ui, v->step.detail, 0, 0); break;
	case STEP_DONE: ui_step_done(f->ui, v->step.name, v->step.detail, v->step.ms); break;
	case STEP_FAILED: ui_step_failed(f->ui, v->step.name); break;
	}
}

static void show_port(struct follow *f, const struct event_view *v)
{
	if (streq(v->port.type, "forwarding")) {
		f->forwards++;
	} else if (streq(v->port.type, "failed")) {
		f->waiting_forwards++;
		log_warn("port %s/%s is not forwarded to %s yet: %s", v->port.guest_addr,
			 v->port.protocol, v->port.host_addr, v->port.error);
	}
}

static void take_event(struct follow *f, const struct event_view *v)
{
	f->began = true;
	f->running = v->running;
	f->degraded = v->degraded;
	f->exiting |= v->exiting;
	if (v->ssh_port)
		f->ssh_port = v->ssh_port;
	if (v->first_error)
		snprintf(f->reason, sizeof(f->reason), "%s", v->first_error);
	f->delay_ms = MAX(f->delay_ms, v->delay_ms);
	if (v->notice)
		log_warn("%s", v->notice);
	if (v->step.name)
		show_step(f, v);
	if (v->port.type)
		show_port(f, v);
}

static void take_line(struct follow *f, const char *line, size_t len)
{
	struct event_view v = { 0 };
	struct error err = { 0 };
	json_t *root = NULL;

	if (event_parse(line, len, &v, &root, &err) < 0) {
		log_debug("follow: %s", err.msg);
		return;
	}
	take_event(f, &v);
	json_decref(root);
}

/* A log that outgrew its bound begins anew (lib/base/log_file.h). */
static void go_on_behind_cut(struct follow *f)
{
	struct stat st;

	if (fstat(f->log_fd, &st) == 0 && lseek(f->log_fd, 0, SEEK_CUR) > st.st_size)
		lseek(f->log_fd, 0, SEEK_END);
}

/* Everything that is in the log by now. */
static void read_log(struct follow *f)
{
	char *nl;

	for (;;) {
		ssize_t n = read(f->log_fd, buf_reserve(&f->pending, 16384), 16384);

		if (n == 0)
			go_on_behind_cut(f);
		if (n <= 0)
			break;
		f->pending.len += (size_t)n;
		while ((nl = memchr(f->pending.data, '\n', f->pending.len))) {
			size_t len = (size_t)(nl - (char *)f->pending.data);

			take_line(f, (const char *)f->pending.data, len);
			buf_consume(&f->pending, len + 1);
		}
		if (f->pending.len > MAX_LINE_BYTES)
			buf_reset(&f->pending);
	}
}

static bool is_gone(const struct follow *f)
{
	struct pollfd p = { .fd = f->pid_fd, .events = POLLIN };

	waitpid(f->ha_pid, NULL, WNOHANG); /* when it is our child */
	if (f->pid_fd >= 0)
		return poll(&p, 1, 0) == 1;
	return kill(f->ha_pid, 0) < 0 && errno == ESRCH;
}

bool follow_gone(struct follow *f, unsigned wait_ms)
{
	struct pollfd p = { .fd = f->pid_fd, .events = POLLIN };

	poll(&p, 1, (int)wait_ms);
	ui_tick(f->ui);
	return is_gone(f);
}

static void wait_a_bit(struct follow *f, uint64_t left_ms)
{
	struct pollfd p[2] = {
		{ .fd = f->watch_fd, .events = POLLIN },
		{ .fd = f->pid_fd, .events = POLLIN },
	};
	char drain[4096];

	if (poll(p, 2, (int)MIN(left_ms, (uint64_t)TICK_MS)) > 0 && p[0].revents)
		while (read(f->watch_fd, drain, sizeof(drain)) > 0)
			;
	ui_tick(f->ui);
}

/* 1: what we wait for is there; 0: not yet. */
static int check(struct follow *f, enum follow_until until, bool gone, struct error *err)
{
	if (until == FOLLOW_GONE)
		return gone;
	if (until == FOLLOW_BEGAN && f->began)
		return 1;
	if (until == FOLLOW_RUNNING && f->running && !f->exiting)
		return 1;
	if (!gone)
		return 0;
	return error_set(err, -EIO, "%s",
			 f->reason[0] ? f->reason : "the host agent ended without giving a reason");
}

int follow_wait(struct follow *f, enum follow_until until, uint64_t timeout_ms, struct error *err)
{
	uint64_t began = clock_mono_ms();

	for (;;) {
		bool gone = is_gone(f);	/* before reading: its last words are in the log then */
		uint64_t now, deadline;
		int rc;

		read_log(f);
		rc = check(f, until, gone, err);
		if (rc > 0)
			return 0;
		if (interrupt_check(err) < 0 || rc < 0)	/* Ctrl-C is the better reason */
			return err->code;
		now = clock_mono_ms();
		deadline = began + timeout_ms + (until == FOLLOW_GONE ? f->delay_ms : 0);
		if (now >= deadline)
			return error_set(err, -ETIMEDOUT, "no answer in %.0f s",
					 (double)(deadline - began) / 1000);
		wait_a_bit(f, deadline - now);
	}
}

static void add_tail(struct buf *out, const char *title, struct strv *lines)
{
	size_t from = lines->len > TAIL_LINES ? lines->len - TAIL_LINES : 0;

	for (size_t i = from; i < lines->len; i++) {
		if (lines->items[i][0] == '#')
			continue; /* the command line, which is a screenful */
		scoped_free char *clean = log_escape(lines->items[i], 400);

		buf_addf(out, "\n  %s: %s", title, clean);
	}
}

static void read_tail(const char *path, struct strv *ret)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	scoped_buf struct buf b = { 0 };
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	n = pread(fd, buf_reserve(&b, TAIL_BYTES), TAIL_BYTES,
		  st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0);
	if (n <= 0)
		return;
	b.len = (size_t)n;
	buf_add(&b, "", 0);
	strv_split(ret, buf_str(&b), "\n");
}

/* Of JSON log lines, the messages of those at warning and above. */
static void keep_serious(struct strv *lines)
{
	struct strv kept = { 0 };
	const char *line;

	strv_foreach(line, lines) {
		json_t *root = json_loads(line, 0, NULL);
		const char *level = json_string_value(json_object_get(root, "level"));
		const char *msg = json_string_value(json_object_get(root, "msg"));

		if (level && msg && (streq(level, "warning") || streq(level, "error") ||
				     streq(level, "fatal")))
			strv_add(&kept, msg);
		else if (!root)
			strv_add(&kept, line); /* a sanitizer, the dynamic linker, … */
		json_decref(root);
	}
	strv_done(lines);
	*lines = kept;
}

char *follow_log_tail(const char *dir)
{
	scoped_free char *ha = layout_instance_file(dir, FILE_HA_STDERR);
	scoped_free char *qemu = layout_instance_file(dir, FILE_QEMU_LOG);
	scoped_strv struct strv ha_lines = { 0 }, qemu_lines = { 0 };
	struct buf out = { 0 };

	read_tail(ha, &ha_lines);
	keep_serious(&ha_lines);
	read_tail(qemu, &qemu_lines);
	add_tail(&out, "host agent", &ha_lines);
	add_tail(&out, "qemu", &qemu_lines);
	return buf_steal_str(&out);
}
