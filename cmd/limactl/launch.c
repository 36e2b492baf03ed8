#include "cmd/limactl/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd/limactl/follow.h"
#include "drivers/driver.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/store/disk.h"
#include "lib/store/image.h"
#include "lib/store/layout.h"
#include "lib/store/pid.h"

enum {
	KILL_WAIT_MS = 10 * 1000,
	UNDO_WAIT_MS = 60 * 1000,	/* an interrupted host agent taking its steps back */
	ADOPT_WAIT_MS = 30 * 1000,
};

static int check_driver(const struct instance *inst, struct error *err)
{
	const struct driver_ops *ops = driver_find(inst->config->vm_type);
	struct driver_spec spec = { .name = inst->name, .dir = inst->dir, .config = inst->config };
	scoped_strv struct strv warnings = { 0 };
	const char *w;

	if (!ops)
		return error_set(err, -EINVAL, "vmType `%s` is not known here", inst->config->vm_type);
	if (ops->validate(&spec, &warnings, err) < 0)
		return err->code;
	strv_foreach(w, &warnings)
		log_warn("%s", w);
	return 0;
}

static int prepare_image(const struct instance *inst, struct ui *ui, struct error *err)
{
	uint64_t began = clock_mono_ms();
	struct image_info info = { 0 };
	int rc;

	ui_step_start(ui, "image");
	rc = image_prepare(inst->dir, inst->config, ui_progress(ui), &info, err);
	if (rc < 0) {
		ui_step_failed(ui, "image");
		return rc;
	}
	scoped_free char *detail =
		xasprintf("%s%s", info.name ? info.name : "", info.cached ? " (cached)" : "");
	ui_step_done(ui, "image", detail, clock_mono_ms() - began);
	image_info_done(&info);
	return 0;
}

static int prepare_disk(const struct instance *inst, struct ui *ui, struct error *err)
{
	scoped_free char *disk = layout_instance_file(inst->dir, FILE_DISK);
	uint64_t began = clock_mono_ms();
	struct disk_info info = { 0 };
	char used[UI_SIZE_LEN];

	ui_step_start(ui, "disk");
	if (disk_inspect(disk, &info, err) < 0 ||
	    (info.virtual_bytes < inst->config->disk_bytes &&
	     disk_grow(disk, inst->config->disk_bytes, err) < 0)) {
		ui_step_failed(ui, "disk");
		return err->code;
	}
	if (info.virtual_bytes > inst->config->disk_bytes)
		log_debug("disk: larger than `disk:` says, left as it is");
	scoped_free char *detail =
		xasprintf("%s, %s used", info.format, ui_size(info.actual_bytes, used));
	ui_step_done(ui, "disk", detail, clock_mono_ms() - began);
	return 0;
}

int launch_prepare(const struct instance *inst, struct ui *ui, struct error *err)
{
	if (!inst->config->plain) {
		scoped_free char *agent = layout_guest_agent(arch_name(inst->config->arch), err);

		if (!agent)
			return err->code;
	}
	if (check_driver(inst, err) < 0 || interrupt_check(err) < 0 ||
	    prepare_image(inst, ui, err) < 0)
		return err->code;
	return prepare_disk(inst, ui, err);
}

static int host_agent_argv(const struct instance *inst, struct strv *ret, struct error *err)
{
	scoped_free char *pid = layout_instance_file(inst->dir, FILE_HA_PID);
	scoped_free char *sock = layout_instance_file(inst->dir, FILE_HA_SOCK);

	strv_add_all(ret, "limactl", "hostagent", "--pidfile", pid, "--socket", sock, NULL);
	if (log_level_get() <= LOG_DEBUG)
		strv_add(ret, "--debug");
	if (!inst->config->plain) {
		scoped_free char *agent = layout_guest_agent(arch_name(inst->config->arch), err);

		if (!agent)
			return err->code;
		strv_add_all(ret, "--guestagent", agent, NULL);
	}
	strv_add(ret, inst->name);
	return 0;
}

/* A fresh log, so that a follower cannot read the run before. */
static int open_log(const struct instance *inst, enum instance_file which, struct error *err)
{
	scoped_free char *path = layout_instance_file(inst->dir, which);
	int fd;

	unlink(path);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	return fd < 0 ? error_sys(err, -errno, "create %s", path) : fd;
}

/* Signals are blocked when this is called: one that comes before the defaults are
 * back must end this process, not be taken by limactl's handler and forgotten. */
static void become_host_agent(char **argv, int out, int err_fd)
{
	int null = open("/dev/null", O_RDONLY);
	sigset_t none;

	setsid();
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(null, 0);
	dup2(out, 1);
	dup2(err_fd, 2);
	close_range(3, ~0u, 0);
	execv("/proc/self/exe", argv);
	dprintf(2, "exec host agent: %s\n", strerror(errno));
	_exit(127);
}

static int spawn_host_agent(const struct instance *inst, pid_t *ret, struct error *err)
{
	scoped_strv struct strv argv = { 0 };
	scoped_fd int out = -1, log = -1;
	sigset_t all, before;
	pid_t pid;

	if (host_agent_argv(inst, &argv, err) < 0)
		return err->code;
	out = open_log(inst, FILE_HA_STDOUT, err);
	if (out < 0)
		return out;
	log = open_log(inst, FILE_HA_STDERR, err);
	if (log < 0)
		return log;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = fork();
	if (pid == 0)
		become_host_agent(argv.items, out, log);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return error_set(err, -EAGAIN, "start the host agent: no new process could be made");
	*ret = pid;
	return 0;
}

/* Under a service manager others still follow the logs where they always are. */
static int redirect_to_logs(const struct instance *inst, struct error *err)
{
	scoped_fd int out = open_log(inst, FILE_HA_STDOUT, err), log = -1;

	if (out < 0)
		return out;
	log = open_log(inst, FILE_HA_STDERR, err);
	if (log < 0)
		return log;
	if (dup2(out, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0)
		return error_sys(err, -errno, "redirect the host agent's output");
	return 0;
}

static int exec_foreground(const struct instance *inst, struct error *err)
{
	scoped_strv struct strv argv = { 0 };

	if (host_agent_argv(inst, &argv, err) < 0 ||
	    (!isatty(STDIN_FILENO) && redirect_to_logs(inst, err) < 0))
		return err->code;
	execv("/proc/self/exe", argv.items);
	return error_sys(err, -errno, "exec the host agent");
}

static void say_ready(const struct instance *inst, const struct follow *f, struct ui *ui,
		      uint64_t began)
{
	scoped_free char *waiting =
		f->waiting_forwards ? xasprintf(" (%u forwards waiting)", f->waiting_forwards)
				    : xstrdup("");

	ui_note(ui, "READY in %.1f s%s   limactl shell %s · limactl port list · limactl stop %s",
		(double)(clock_mono_ms() - began) / 1000, waiting, inst->name, inst->name);
	if (*inst->config->message)
		log_info("%s", inst->config->message);
}

/* The host agent takes its own steps back; all we do is ask and wait, whether or
 * not we were interrupted ourselves (a second Ctrl-C ends us at once). */
static void undo_start(struct follow *f)
{
	uint64_t end = clock_mono_ms() + UNDO_WAIT_MS;

	if (follow_gone(f, 0))
		return;
	kill(f->ha_pid, SIGTERM);
	while (clock_mono_ms() < end)
		if (follow_gone(f, 100))
			return;
	log_warn("the host agent (pid %d) does not end; limactl stop -f ends it", (int)f->ha_pid);
}

static pid_t running_qemu(const struct instance *inst)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_QEMU_PID);

	return pid_file_read(path, "qemu");
}

/* The host agent has ended: in order, or killed and QEMU without it? */
static int check_stopped(const struct instance *inst, const struct follow *f, struct error *err)
{
	pid_t qemu = running_qemu(inst);

	if (qemu)
		return error_set(err, -EIO, "the host agent ended but QEMU (pid %d) still runs; "
				 "limactl stop -f %s ends it", (int)qemu, inst->name);
	if (f->reason[0])
		log_warn("%s: %s", inst->name, f->reason);
	return 0;
}

static int start_failed(const struct instance *inst, struct follow *f, struct error *err)
{
	scoped_free char *tail = NULL;
	pid_t qemu;

	if (err->code == -ECANCELED) {
		undo_start(f);
		return error_set(err, -ECANCELED, "interrupted; `%s` is stopped", inst->name);
	}
	if (err->code == -ETIMEDOUT)
		return error_set(err, -ETIMEDOUT,
				 "%s; the machine is left running: look with limactl shell %s, or end it "
				 "with limactl stop %s", err->msg, inst->name, inst->name);
	tail = follow_log_tail(inst->dir);
	if (*tail)
		log_info("last lines of the logs in %s:%s", inst->dir, tail);
	qemu = running_qemu(inst);
	if (qemu)
		return error_set(err, err->code, "%s; QEMU (pid %d) still runs: limactl start %s takes it "
				 "over, limactl stop -f %s ends it", err->msg, (int)qemu, inst->name,
				 inst->name);
	return err->code;
}

int launch_start(const struct instance *inst, const struct launch_options *opts, struct ui *ui,
		 struct error *err)
{
	uint64_t began = clock_mono_ms();
	struct follow f;
	pid_t pid;
	int rc;

	if (opts->foreground)
		return exec_foreground(inst, err);
	if (spawn_host_agent(inst, &pid, err) < 0)
		return err->code;
	rc = follow_open(&f, inst->dir, pid, ui, 0, err);
	if (rc == 0)
		rc = follow_wait(&f, FOLLOW_RUNNING, opts->timeout_ms, err);
	if (rc < 0)
		rc = start_failed(inst, &f, err);
	else if (f.degraded)
		rc = error_set(err, -EIO, "%s; the machine is up but not as it should be: "
			       "limactl shell %s to look, limactl stop %s to end it",
			       f.reason, inst->name, inst->name);
	else
		say_ready(inst, &f, ui, began);
	follow_close(&f);
	return rc;
}

int launch_again(const struct instance *before, const struct launch_options *opts, struct ui *ui,
		 struct error *err)
{
	scoped_instance struct instance *inst = NULL;

	if (instance_inspect(before->lima_home, before->name, &inst, err) < 0)
		return err->code;
	if (!inst->config)
		return error_set(err, -EINVAL, "%s", inst->errors.len ? inst->errors.items[0] : "broken");
	if (launch_prepare(inst, ui, err) < 0)
		return err->code;
	return launch_start(inst, opts, ui, err);
}

/* A host agent for a machine that lost its own. It adopts, then can be told to stop. */
static int adopt(const struct instance *inst, struct ui *ui, pid_t *ret, struct error *err)
{
	struct follow f;
	int rc;

	if (spawn_host_agent(inst, ret, err) < 0)
		return err->code;
	rc = follow_open(&f, inst->dir, *ret, ui, 0, err);
	if (rc == 0)
		rc = follow_wait(&f, FOLLOW_BEGAN, ADOPT_WAIT_MS, err);
	follow_close(&f);
	return rc;
}

static off_t log_size(const struct instance *inst)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_HA_STDOUT);
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
}

int launch_stop(const struct instance *inst, struct ui *ui, struct error *err)
{
	pid_t pid = inst->ha_pid;
	off_t offset = log_size(inst);
	struct follow f;
	int rc;

	if (!pid) {
		if (adopt(inst, ui, &pid, err) < 0)
			return error_wrap(err, "adopt the running machine (limactl stop -f %s ends it)",
					  inst->name);
		offset = 0;
	}
	rc = follow_open(&f, inst->dir, pid, ui, offset, err);
	if (rc == 0 && kill(pid, SIGTERM) < 0 && errno != ESRCH)
		rc = error_sys(err, -errno, "signal the host agent (pid %d)", (int)pid);
	if (rc == 0)
		rc = follow_wait(&f, FOLLOW_GONE, STOP_TIMEOUT_MS, err);
	if (rc == -ETIMEDOUT)
		error_set(err, rc, "still running after %llu s; limactl stop -f %s ends it at once",
			  (unsigned long long)(STOP_TIMEOUT_MS + f.delay_ms) / 1000, inst->name);
	else if (rc == -ECANCELED)
		error_set(err, rc, "interrupted; the machine goes on stopping");
	else if (rc == 0)
		rc = check_stopped(inst, &f, err);
	follow_close(&f);
	return rc;
}

static int kill_and_wait(pid_t pid, const char *what, struct error *err)
{
	if (!pid)
		return 0;
	if (kill(pid, SIGKILL) < 0 && errno != ESRCH)
		return error_sys(err, -errno, "kill %s (pid %d)", what, (int)pid);
	if (pid_wait_gone(pid, KILL_WAIT_MS) == -ETIMEDOUT)
		return error_set(err, -ETIMEDOUT, "%s (pid %d) survived SIGKILL for %d s", what,
				 (int)pid, KILL_WAIT_MS / 1000);
	return 0;
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && streq(s + n - m, suffix);
}

static void sweep(const char *dir_path)
{
	scoped_dir DIR *dir = opendir(dir_path);
	struct dirent *de;

	while (dir && (de = readdir(dir)))
		if (has_suffix(de->d_name, ".pid") || has_suffix(de->d_name, ".sock") ||
		    has_suffix(de->d_name, ".tmp") || strstr(de->d_name, ".tmp."))
			unlinkat(dirfd(dir), de->d_name, 0);
	if (dir)	/* of the machine that just ended */
		unlinkat(dirfd(dir), layout_file_name(FILE_LIVE_RULES), 0);
}

int launch_kill(const struct instance *inst, struct error *err)
{
	if (kill_and_wait(inst->ha_pid, "host agent", err) < 0 ||
	    kill_and_wait(inst->driver_pid, "QEMU", err) < 0)
		return err->code;
	sweep(inst->dir);
	return 0;
}
