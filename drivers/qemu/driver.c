#include "drivers/qemu/driver.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "drivers/mac.h"
#include "drivers/qemu/accel.h"
#include "drivers/qemu/args.h"
#include "drivers/qemu/binary.h"
#include "drivers/qemu/driver_impl.h"
#include "drivers/qemu/endpoint.h"
#include "drivers/qemu/machine.h"
#include "drivers/qemu/validate.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"
#include "lib/store/layout.h"
#include "lib/store/pid.h"

enum {
	VERSION_MS = 20 * 1000,		/* `-version`: 25 ms when nothing is wrong */
	GREETING_MS = 60 * 1000,	/* 26 ms; more when memory must be found first */
	END_AFTER_QMP_MS = 3000,	/* QMP lost at start: QEMU's exit is next, with the cause */
	RECONNECT_MS = 2000,
};

static struct qemu_vm *vm_of(struct driver *d)
{
	return (struct qemu_vm *)d;
}

char *vm_file(const struct qemu_vm *vm, enum instance_file f)
{
	return layout_instance_file(vm->spec->dir, f);
}

void vm_notice(struct qemu_vm *vm, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *text = xvasprintf(fmt, ap);
	va_end(ap);
	if (!vm->closing)
		vm->cb.notice(vm->cb.arg, text);
}

void vm_event(struct qemu_vm *vm, enum driver_event what, const char *detail)
{
	if (!vm->closing)
		vm->cb.event(vm->cb.arg, what, detail);
}

static void on_turn(uv_timer_t *timer)
{
	struct qemu_vm *vm = timer->data;

	if (!vm->closing)
		vm->next(vm);
}

/* One thing at a time: a new one takes the place of the one before. */
static void later(struct qemu_vm *vm, unsigned ms, void (*fn)(struct qemu_vm *vm))
{
	vm->next = fn;
	uv_timer_start(&vm->turn, on_turn, ms, 0);
}

static void start_is_done(struct qemu_vm *vm, const struct error *err)
{
	struct error none = ERROR_NONE;
	driver_done_fn done = vm->start_done;

	vm->start_done = NULL;
	if (done)
		done(vm->start_arg, err ? err : &none);
}

static void waiters_are_done(struct qemu_vm *vm, const struct error *err)
{
	struct waiter *w = vm->waiters, *next;

	vm->waiters = NULL;
	for (; w; w = next) {
		next = w->next;
		w->done(w->arg, err);
		free(w);
	}
}

/* --- the end ------------------------------------------------------------------ */

static void remove_files(struct qemu_vm *vm)
{
	static const enum instance_file left[] = { FILE_QMP_SOCK, FILE_GA_SOCK, FILE_SERIAL_SOCK,
						   FILE_QEMU_PID };

	for (size_t i = 0; i < ARRAY_SIZE(left); i++) {
		scoped_free char *path = vm_file(vm, left[i]);

		unlink(path);
	}
}

static void drop_qmp(struct qemu_vm *vm)
{
	struct qmp *q = steal_ptr(&vm->qmp);

	vm_changes_lost(vm);
	vm_snapshot_lost(vm);
	if (q)
		qmp_close(q);
}

/* Why it ended, for the user; caller frees. */
static char *describe_end(struct qemu_vm *vm, const struct process_exit *how)
{
	scoped_free char *log = vm_file(vm, FILE_QEMU_LOG);
	scoped_free char *words = process_last_words(log);
	const char *colon = *words ? ": " : "";

	if (how->signal == SIGKILL)
		return xasprintf("QEMU was killed (SIGKILL); if nobody did it, the host may be out "
				 "of memory: see dmesg");
	if (how->signal)
		return xasprintf("QEMU died of signal %d (%s)%s%s", how->signal,
				 strsignal(how->signal), colon, words);
	if (how->known && how->code)
		return xasprintf("QEMU exited with code %d%s%s", how->code, colon, words);
	if (streq(vm->shutdown, "guest-shutdown"))
		return xstrdup("the guest powered off");
	if (streq(vm->shutdown, "guest-panic"))
		return xstrdup("the guest's kernel panicked");
	if (streq(vm->shutdown, "host-signal"))
		return xstrdup("QEMU was asked to end by a signal from somebody else");
	if (*vm->shutdown)
		return xasprintf("QEMU ended (%s)", vm->shutdown);
	return xasprintf("QEMU is gone%s%s", colon, words);
}

static void begin_launch(struct qemu_vm *vm);

/* A QEMU that was built without the device, or a host without memfd, ends at once
 * and names it. Nobody's start shall fail for a faster way: once more without. */
static bool try_without_vsock(struct qemu_vm *vm, const struct process_exit *how, const char *end)
{
	if (!vm->start_done || vm->adopted || !vm->info.vsock || !how->known || how->code == 0 ||
	    !(strstr(end, "vsock") || strstr(end, "memory-backend")))
		return false;
	log_debug("driver: %s; trying without a vsock device", end);
	vm->no_vsock = true;
	vm->info.vsock = false;
	drop_qmp(vm);
	process_close(steal_ptr(&vm->process));
	remove_files(vm);
	later(vm, 0, begin_launch);
	return true;
}

static void on_exit_seen(void *arg, const struct process_exit *how)
{
	struct qemu_vm *vm = arg;
	struct error none = ERROR_NONE, failed = ERROR_NONE;
	scoped_free char *end = NULL;
	bool asked = vm->stop != NULL;

	if (vm->closing)
		return;
	end = describe_end(vm, how);
	if (!asked && try_without_vsock(vm, how, end))
		return;
	log_info("driver: %s, pid %d", asked ? "QEMU ended as asked" : end, vm->info.pid);
	vm->state = VM_GONE;
	uv_timer_stop(&vm->turn);
	uv_timer_stop(&vm->room);
	uv_timer_stop(&vm->logs);
	uv_timer_stop(&vm->settle);
	drop_qmp(vm);
	if (vm->stop)
		stop_free(steal_ptr(&vm->stop));
	process_close(steal_ptr(&vm->process));
	remove_files(vm);
	if (vm->start_done) {
		if (asked)
			error_set(&failed, -ECANCELED, "stopped while it was starting");
		else
			error_set(&failed, -EIO, "%s", end);
		start_is_done(vm, &failed);
	} else {
		vm_event(vm, DRIVER_EXITED, asked ? "" : end);
	}
	if (!vm->closing)
		waiters_are_done(vm, &none);
}

/* Start failed by our own judgement; QEMU, if there is one, goes too. */
static void fail_start(struct qemu_vm *vm)
{
	if (vm->process) {
		process_signal(vm->process, SIGKILL);
		process_close(steal_ptr(&vm->process));
		remove_files(vm);
	}
	drop_qmp(vm);
	uv_timer_stop(&vm->turn);
	vm->state = VM_GONE;
	start_is_done(vm, &vm->why);
}

/* --- QMP comes up ------------------------------------------------------------------- */

static void connect_qmp(struct qemu_vm *vm);
static void adopt_failed(struct qemu_vm *vm);

/* What we began we end; what ran before goes on running. */
static void give_up_start(struct qemu_vm *vm)
{
	error_wrap(&vm->why, "QEMU (pid %d) runs but its control channel does not work",
		   vm->info.pid);
	if (vm->adopted)
		adopt_failed(vm);
	else
		fail_start(vm);
}

/* A running VM stays a running VM without QMP; it is only less well looked after. */
static void on_qmp_closed(void *arg, const struct error *why)
{
	struct qemu_vm *vm = arg;

	drop_qmp(vm);
	if (vm->state == VM_CONNECTING && !vm->stop) {
		vm->why = *why;
		later(vm, why->code == -ETIMEDOUT ? 0 : END_AFTER_QMP_MS, give_up_start);
	} else if (vm->state == VM_RUNNING) {
		log_debug("driver: %s", why->msg);
		later(vm, RECONNECT_MS, connect_qmp);
	}
}

static void on_chardevs(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_vm *vm = arg;
	json_t *chardev;
	size_t i;

	if (err->code) {
		if (err->code != -ECANCELED)
			log_debug("driver: %s", err->msg);
		return;
	}
	json_array_foreach(ret, i, chardev) {
		const char *label = json_string_value(json_object_get(chardev, "label"));
		bool open = json_is_true(json_object_get(chardev, "frontend-open"));

		if (!label || !streq(label, QEMU_AGENT_CHARDEV) || open == vm->agent_open)
			continue;
		vm->agent_open = open;
		vm_event(vm, open ? DRIVER_AGENT_PORT_OPEN : DRIVER_AGENT_PORT_CLOSED, "");
		return;
	}
}

static void write_pid_file(struct qemu_vm *vm)
{
	scoped_free char *path = vm_file(vm, FILE_QEMU_PID);
	struct error err = ERROR_NONE;

	if (pid_file_write(path, vm->info.pid, &err) < 0)
		vm_notice(vm, "%s; if the host agent dies, stop QEMU by its pid %d", err.msg,
		       vm->info.pid);
}

static void on_status(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_vm *vm = arg;
	const char *status = json_string_value(json_object_get(ret, "status"));

	/* A stop that came in between has its own way to the end, and after a
	 * lost connection on_qmp_closed() knows how to go on. */
	if (vm->stop || err->code == -ECANCELED || err->code == -ECONNRESET ||
	    (err->code && vm->state == VM_RUNNING))
		return;
	if (err->code || !status) {
		vm->why = *err;
		if (!err->code)
			error_set(&vm->why, -EPROTO, "qmp `query-status`: no status");
		later(vm, 0, give_up_start);
		return;
	}
	log_info("driver: QEMU %s, %s, pid %d, %s", vm->info.version, vm->info.accel, vm->info.pid,
		 status);
	uv_timer_stop(&vm->turn);
	if (vm->state == VM_CONNECTING) {
		vm->state = VM_RUNNING;
		write_pid_file(vm);
		vm_watch_logs(vm);
		start_is_done(vm, NULL);
	} else if (vm->reconnecting) {
		vm_notice(vm, "the control channel to QEMU works again");
	}
	vm->reconnecting = false;
	if (vm->closing || !vm->qmp)
		return;
	if (json_is_true(json_object_get(ret, "running")) == vm->paused)
		vm_tell_paused(vm, !vm->paused);
	vm_look_at_status(vm, ret);
	if (!vm->closing && vm->qmp && vm->adopted)
		qmp_call(vm->qmp, "query-chardev", NULL, QMP_CALL_MS, on_chardevs, vm);
}

static void on_kvm(void *arg, json_t *ret, const struct error *err)
{
	struct qemu_vm *vm = arg;

	if (!err->code)
		snprintf(vm->info.accel, sizeof(vm->info.accel), "%s",
			 qemu_accel_name(json_is_true(json_object_get(ret, "enabled")) ? QEMU_KVM
										       : QEMU_TCG));
}

static void on_qmp_ready(void *arg, const struct qemu_version *version)
{
	struct qemu_vm *vm = arg;

	qemu_version_text(version, vm->info.version);
	qmp_call(vm->qmp, "query-kvm", NULL, QMP_CALL_MS, on_kvm, vm);
	qmp_call(vm->qmp, "query-status", NULL, QMP_CALL_MS, on_status, vm);
}

/* Takes the connected @fd. */
static int talk_qmp(struct qemu_vm *vm, int fd, struct error *err)
{
	const struct qmp_callbacks cb = { on_qmp_ready, vm_qmp_event, on_qmp_closed, vm };

	return qmp_open(vm->loop, fd, GREETING_MS, &cb, &vm->qmp, err);
}

static int open_qmp(struct qemu_vm *vm, struct error *err)
{
	scoped_free char *path = vm_file(vm, FILE_QMP_SOCK);
	int fd;

	return endpoint_connect(path, &fd, err) < 0 ? err->code : talk_qmp(vm, fd, err);
}

/* Again, after the connection of a running VM was lost. */
static void connect_qmp(struct qemu_vm *vm)
{
	struct error err = ERROR_NONE;

	if (vm->state != VM_RUNNING || vm->qmp)
		return;
	if (!vm->reconnecting)
		vm_notice(vm, "the control channel to QEMU was lost, trying again");
	vm->reconnecting = true;
	vm->adopted = true;	/* events may have been missed: ask for the port's state */
	if (open_qmp(vm, &err) < 0) {
		log_debug("driver: %s", err.msg);
		later(vm, RECONNECT_MS, connect_qmp);
	}
}

/* --- start -------------------------------------------------------------------------- */

/* A QEMU that serves this instance already; 0 none. */
static pid_t find_running(struct qemu_vm *vm)
{
	scoped_free char *pid_path = vm_file(vm, FILE_QEMU_PID), *qmp_path = vm_file(vm, FILE_QMP_SOCK);
	pid_t pid = pid_file_read(pid_path, "qemu-");

	return pid > 0 ? pid : pid_of_listener(qmp_path, "qemu-");
}

static const struct {
	enum instance_file file;
	int fd;			/* in QEMU */
} sockets[] = {
	{ FILE_QMP_SOCK, QEMU_FD_QMP },
	{ FILE_GA_SOCK, QEMU_FD_AGENT },
	{ FILE_SERIAL_SOCK, QEMU_FD_SERIAL },
};

static int listen_all(struct qemu_vm *vm, int fds[ARRAY_SIZE(sockets)], struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(sockets); i++) {
		scoped_free char *path = vm_file(vm, sockets[i].file);

		assert(sockets[i].fd == 3 + (int)i);
		if (endpoint_listen(path, &fds[i], err) < 0)
			return err->code;
	}
	return 0;
}

static void close_all(int fds[ARRAY_SIZE(sockets)])
{
	for (size_t i = 0; i < ARRAY_SIZE(sockets); i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* Spawns it with our end of the QMP connection made beforehand: it waits in the
 * backlog, and a QEMU that ends at once is told by its exit and its words, not
 * by a refused connect. */
static int spawn_qemu(struct qemu_vm *vm, const struct strv *argv, int *ret_qmp_fd,
		      struct error *err)
{
	int fds[ARRAY_SIZE(sockets)] = { -1, -1, -1 };
	scoped_free char *log = vm_file(vm, FILE_QEMU_LOG), *qmp = vm_file(vm, FILE_QMP_SOCK);
	scoped_free char *console = vm_file(vm, FILE_SERIAL_LOG);
	scoped_fd int qmp_fd = -1;
	const struct process_spec spec = {
		.argv = (const char *const *)argv->items,
		.cwd = vm->spec->dir,
		.log_path = log,
		.fds = fds,
		.n_fds = ARRAY_SIZE(fds),
	};
	int rc = listen_all(vm, fds, err);

	if (truncate(console, 0) < 0 && errno != ENOENT)	/* QEMU appends to it */
		log_debug("driver: truncate %s: %s", console, error_text(-errno));
	if (rc >= 0)
		rc = endpoint_connect(qmp, &qmp_fd, err);
	if (rc >= 0)
		rc = process_spawn(vm->loop, &spec, on_exit_seen, vm, &vm->process, err);
	close_all(fds);	/* from now on only QEMU listens: if it ends, so do the sockets */
	if (rc < 0)
		remove_files(vm);
	else
		*ret_qmp_fd = steal_fd(&qmp_fd);
	return rc;
}

static int launch(struct qemu_vm *vm, struct error *err)
{
	const struct config *c = vm->spec->config;
	const struct qemu_arch *arch = qemu_arch_find(c->arch);
	struct qemu_accel accel = qemu_accel_choose(c->arch, NULL);
	struct qemu_machine machine = {
		.spec = vm->spec,
		.program = &vm->program,
		.version = &vm->version,
		.accel = accel.kind,
		.sandbox = vm->sandbox,
		.vsock = vm->spec->vsock && !vm->no_vsock && qemu_args_know_vsock(&vm->version),
	};
	scoped_strv struct strv argv = { 0 };
	int qmp_fd;

	if (qemu_machine_argv(&machine, &argv, err) < 0 ||
	    spawn_qemu(vm, &argv, &qmp_fd, err) < 0)
		return err->code;
	vm->state = VM_CONNECTING;
	vm->info.pid = process_pid(vm->process);
	qemu_version_text(&vm->version, vm->info.version);
	vm->info.vsock = machine.vsock;
	snprintf(vm->info.accel, sizeof(vm->info.accel), "%s", qemu_accel_name(accel.kind));
	snprintf(vm->info.machine, sizeof(vm->info.machine), "%.*s",
		 (int)strcspn(arch->machine, ","), arch->machine);
	if (talk_qmp(vm, qmp_fd, err) < 0)
		return err->code;
	if (accel.kind == QEMU_TCG && !vm->no_vsock)	/* once */
		vm_notice(vm, "using TCG (slow): %s", accel.reason);
	return 0;
}

static void begin_launch(struct qemu_vm *vm)
{
	if (launch(vm, &vm->why) < 0)
		fail_start(vm);
}

static void ask_version(struct qemu_vm *vm);

static void on_answer(void *arg, const struct child_result *r)
{
	struct qemu_vm *vm = arg;
	bool again = false;

	child_close(steal_ptr(&vm->question));
	uv_timer_stop(&vm->turn);
	if (qemu_binary_answer(&vm->program, r->exit_code, buf_str(&r->out), buf_str(&r->err),
			       vm->sandbox, &again, &vm->version, &vm->why) < 0) {
		fail_start(vm);
		return;
	}
	if (again) {
		vm->sandbox = false;
		vm_notice(vm, "this QEMU was built without its seccomp sandbox, going on without");
		if (!vm->closing)
			ask_version(vm);
		return;
	}
	if (qemu_binary_check_version(&vm->version, vm->spec->config, NULL, &vm->why) < 0)
		fail_start(vm);
	else
		begin_launch(vm);
}

static void on_no_answer(struct qemu_vm *vm)
{
	child_close(steal_ptr(&vm->question));
	error_set(&vm->why, -ETIMEDOUT, "%s -version: no answer in %d s", vm->program.items[0],
		  VERSION_MS / 1000);
	fail_start(vm);
}

static void ask_version(struct qemu_vm *vm)
{
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = { .own_group = true };

	vm->state = VM_ASKING;
	qemu_binary_question(&vm->program, vm->sandbox, &argv);
	spec.argv = (const char *const *)argv.items;
	if (child_start(vm->loop, &spec, on_answer, vm, &vm->question, &vm->why) < 0) {
		fail_start(vm);
		return;
	}
	later(vm, VERSION_MS, on_no_answer);
}

static void begin_start(struct qemu_vm *vm)
{
	pid_t pid = find_running(vm);

	if (pid > 0) {
		error_set(&vm->why, -EBUSY, "QEMU runs already for `%s` (pid %d)", vm->spec->name,
			  (int)pid);
		fail_start(vm);
		return;
	}
	vm->sandbox = true;
	if (qemu_binary_find(vm->spec->config->arch, &vm->program, &vm->why) < 0)
		fail_start(vm);
	else
		ask_version(vm);
}

static void qemu_start(struct driver *d, driver_done_fn done, void *arg)
{
	struct qemu_vm *vm = vm_of(d);

	assert(vm->state == VM_IDLE && !vm->start_done);
	vm->start_done = done;
	vm->start_arg = arg;
	later(vm, 0, begin_start);
}

/* --- adopt -------------------------------------------------------------------------- */

/* Nobody to adopt, or not by us: whatever runs there goes on running. */
static void adopt_failed(struct qemu_vm *vm)
{
	if (vm->process)
		process_close(steal_ptr(&vm->process));
	drop_qmp(vm);
	vm->state = VM_IDLE;
	start_is_done(vm, &vm->why);
}

static void begin_adopt(struct qemu_vm *vm)
{
	const struct qemu_arch *arch = qemu_arch_find(vm->spec->config->arch);
	pid_t pid = find_running(vm);

	if (pid <= 0 ||
	    process_adopt(vm->loop, pid, on_exit_seen, vm, &vm->process, &vm->why) < 0) {
		vm->why = ERROR_NONE;
		error_set(&vm->why, -ENOENT, "no QEMU runs for `%s`", vm->spec->name);
		adopt_failed(vm);
		return;
	}
	vm->state = VM_CONNECTING;
	vm->adopted = true;
	vm->info.pid = pid;
	if (arch)
		snprintf(vm->info.machine, sizeof(vm->info.machine), "%.*s",
			 (int)strcspn(arch->machine, ","), arch->machine);
	if (open_qmp(vm, &vm->why) < 0) {
		error_wrap(&vm->why, "QEMU (pid %d) runs but cannot be reached", (int)pid);
		adopt_failed(vm);
	}
}

static void qemu_adopt(struct driver *d, driver_done_fn done, void *arg)
{
	struct qemu_vm *vm = vm_of(d);

	assert(vm->state == VM_IDLE && !vm->start_done);
	vm->start_done = done;
	vm->start_arg = arg;
	later(vm, 0, begin_adopt);
}

/* --- stop --------------------------------------------------------------------------- */

static void on_stop_says(void *arg, const char *text)
{
	vm_notice(arg, "%s", text);
}

static void on_stop_failed(void *arg, const struct error *err)
{
	struct qemu_vm *vm = arg;

	stop_free(steal_ptr(&vm->stop));
	waiters_are_done(vm, err);
}

static void nothing_to_stop(struct qemu_vm *vm)
{
	struct error none = ERROR_NONE, canceled = ERROR_NONE;

	vm->state = VM_GONE;
	error_set(&canceled, -ECANCELED, "stopped while it was starting");
	start_is_done(vm, &canceled);
	if (!vm->closing)
		waiters_are_done(vm, &none);
}

static void begin_stop(struct qemu_vm *vm, bool force)
{
	const struct stop_target target = {
		.loop = vm->loop,
		.process = vm->process,
		.qmp = &vm->qmp,
		.agent_open = &vm->agent_open,
		.say = on_stop_says,
		.failed = on_stop_failed,
		.arg = vm,
	};

	vm->stop_waits = false;
	uv_timer_stop(&vm->turn);
	uv_timer_stop(&vm->settle);
	vm->stop = stop_begin(&target, &vm->waits, force);
}

void vm_snapshot_is_over(struct qemu_vm *vm)
{
	if (vm->stop_waits && !vm_snapshot_changes(vm) && !vm->closing && vm->process)
		begin_stop(vm, false);
}

/* QEMU hears nothing until then, and would be ended for it. */
static void stop_after_snapshot(struct qemu_vm *vm)
{
	unsigned ms = vm_snapshot_wait_ms(vm);
	scoped_free char *text =
		xasprintf("a snapshot is under way; stopping when it is done, in %u s at most. limactl "
			  "stop -f %s does not wait: the snapshot may be lost, and what the guest did not "
			  "write to its disk yet is", ms / 1000, vm->spec->name);

	vm->stop_waits = true;
	vm->cb.delayed(vm->cb.arg, text, ms);
}

static void qemu_stop(struct driver *d, bool force, driver_done_fn done, void *arg)
{
	struct qemu_vm *vm = vm_of(d);
	struct waiter *w = xnew(struct waiter);

	w->done = done;
	w->arg = arg;
	w->next = vm->waiters;
	vm->waiters = w;
	if (!vm->process) {
		if (vm->question)	/* its answer must not go on with the start */
			child_close(steal_ptr(&vm->question));
		later(vm, 0, nothing_to_stop);
	} else if (vm->stop) {
		if (force)
			stop_force(vm->stop);
	} else if (!force && vm_snapshot_changes(vm)) {
		stop_after_snapshot(vm);
	} else {
		begin_stop(vm, force);
	}
}

/* --- the rest of the table ------------------------------------------------------------ */

static void qemu_info(struct driver *d, struct driver_info *ret)
{
	*ret = vm_of(d)->info;
}

static int qemu_agent_connect(struct driver *d, int *ret_fd, struct error *err)
{
	struct qemu_vm *vm = vm_of(d);
	scoped_free char *path = vm_file(vm, FILE_GA_SOCK);

	if (vm->state != VM_RUNNING)
		return error_set(err, -EAGAIN, "QEMU does not run yet");
	return endpoint_connect(path, ret_fd, err);
}

static void vm_unref(struct qemu_vm *vm)
{
	if (--vm->refs > 0)
		return;
	strv_done(&vm->program);
	free(vm);
}

static void on_handle_closed(uv_handle_t *h)
{
	vm_unref(h->data);
}

static void qemu_close(struct driver *d)
{
	struct qemu_vm *vm = vm_of(d);
	struct error canceled = ERROR_NONE;

	if (vm->closing)
		return;
	vm->closing = true;
	if (vm->question)
		child_close(steal_ptr(&vm->question));
	if (vm->stop)
		stop_free(steal_ptr(&vm->stop));
	vm_changes_cancel(vm);
	vm_snapshot_cancel(vm);
	drop_qmp(vm);
	if (vm->process)
		process_close(steal_ptr(&vm->process));
	error_set(&canceled, -ECANCELED, "driver closed");
	start_is_done(vm, &canceled);
	waiters_are_done(vm, &canceled);
	uv_close((uv_handle_t *)&vm->turn, on_handle_closed);
	uv_close((uv_handle_t *)&vm->room, on_handle_closed);
	uv_close((uv_handle_t *)&vm->logs, on_handle_closed);
	uv_close((uv_handle_t *)&vm->settle, on_handle_closed);
}

static int qemu_open(struct loop *loop, const struct driver_spec *spec,
		     const struct driver_callbacks *cb, struct driver **ret, struct error *err)
{
	struct qemu_vm *vm = xnew(struct qemu_vm);

	vm->loop = loop;
	vm->spec = spec;
	vm->cb = *cb;
	vm->waits = stop_waits_default;
	uv_timer_init(&loop->uv, &vm->turn);
	uv_timer_init(&loop->uv, &vm->room);
	uv_timer_init(&loop->uv, &vm->logs);
	uv_timer_init(&loop->uv, &vm->settle);
	vm->turn.data = vm->room.data = vm->logs.data = vm->settle.data = vm;
	vm->refs = 4;
	*ret = (struct driver *)vm;
	return 0;
}

void qemu_driver_set_waits(struct driver *d, const struct stop_waits *waits)
{
	vm_of(d)->waits = *waits;
}

void qemu_driver_set_job_wait(struct driver *d, unsigned ms)
{
	vm_of(d)->snapshot.job_ms = ms;
}

void qemu_driver_set_unplug_wait(struct driver *d, unsigned ms)
{
	vm_of(d)->unplug_ms = ms;
}

const struct driver_ops qemu_driver_ops = {
	.name = "qemu",
	.features = DRIVER_CAN_ADOPT | DRIVER_VSOCK | DRIVER_SNAPSHOTS,
	.validate = qemu_validate,
	.open = qemu_open,
	.start = qemu_start,
	.adopt = qemu_adopt,
	.info = qemu_info,
	.agent_connect = qemu_agent_connect,
	.vsock_plug = vm_vsock_plug,
	.vsock_unplug = vm_vsock_unplug,
	.ssh_forward = vm_ssh_forward,
	.snapshots = vm_snapshots,
	.snapshot = vm_snapshot,
	.stop = qemu_stop,
	.close = qemu_close,
};
