#include "lib/base/child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

enum {
	DEFAULT_OUTPUT_BYTES = 64 * 1024,
	LINE_BYTES = 8 * 1024,
	READ_BYTES = 16 * 1024,
	TERM_WAIT_MS = 5000,
	POLL_MS = 200,		/* upper bound on noticing an interrupt that came between
				 * the check and poll() */
};

void child_result_done(struct child_result *r)
{
	buf_done(&r->out);
	buf_done(&r->err);
}

/* --- what both ways share: one output stream ----------------------------- */

struct stream {
	struct buf tail;	/* kept for the result */
	size_t max_bytes;
	struct buf line;	/* incomplete last line */
	void (*on_line)(void *arg, const char *line);
	void *line_arg;
};

static void stream_init(struct stream *s, const struct child_spec *spec,
			void (*on_line)(void *, const char *))
{
	*s = (struct stream){
		.max_bytes = spec->max_output_bytes ? spec->max_output_bytes : DEFAULT_OUTPUT_BYTES,
		.on_line = on_line,
		.line_arg = spec->line_arg,
	};
}

static void stream_emit(struct stream *s)
{
	s->on_line(s->line_arg, buf_str(&s->line));
	buf_reset(&s->line);
}

static void stream_add(struct stream *s, const char *data, size_t len)
{
	buf_add(&s->tail, data, len);
	if (s->tail.len > 2 * s->max_bytes)
		buf_consume(&s->tail, s->tail.len - s->max_bytes);
	if (!s->on_line)
		return;
	while (len) {
		const char *nl = memchr(data, '\n', len);
		size_t n = nl ? (size_t)(nl - data) : len;
		size_t take = MIN(n, (size_t)LINE_BYTES - s->line.len);

		buf_add(&s->line, data, take);
		if (nl && take == n)
			take++; /* the "\n" itself */
		if ((nl && take > n) || s->line.len == LINE_BYTES)
			stream_emit(s);
		data += take;
		len -= take;
	}
}

static void stream_end(struct stream *s)
{
	if (s->on_line && s->line.len)
		stream_emit(s);
	buf_done(&s->line);
	if (s->tail.len > s->max_bytes)
		buf_consume(&s->tail, s->tail.len - s->max_bytes);
	buf_add(&s->tail, "", 0);
}

static void result_set_status(struct child_result *r, int exit_code, int term_signal)
{
	r->term_signal = term_signal;
	r->exit_code = term_signal ? 128 + term_signal : exit_code;
}

/* --- child_run ------------------------------------------------------------ */

struct run {
	const struct child_spec *spec;
	pid_t pid;
	int in, out, err;	/* our ends of the pipes, -1 when closed */
	size_t sent;		/* of spec->input */
	struct stream s_out, s_err;
};

static void exec_child(const struct child_spec *spec, const char *program, pid_t parent, int in,
		       int out, int err)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		sigaction(sig, &dfl, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (spec->own_group)
		setpgid(0, 0);
	/* killed with no chance to end its children, limactl leaves none behind */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(126);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(126);
	close_range(3, ~0u, 0);
	if (spec->cwd && chdir(spec->cwd) < 0) {
		dprintf(2, "chdir %s: %s\n", spec->cwd, strerror(errno));
		_exit(126);
	}
	execve(program, (char *const *)spec->argv,
	       spec->env ? (char *const *)spec->env : environ);
	dprintf(2, "exec %s: %s\n", program, strerror(errno));
	_exit(127);
}

static int open_pipe(int ret[2], struct error *err)
{
	if (pipe2(ret, O_CLOEXEC) < 0)
		return error_sys(err, -errno, "pipe");
	return 0;
}

static int run_spawn(struct run *r, const char *program, struct error *err)
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, errp[2] = { -1, -1 };
	int rc = open_pipe(out, err);

	if (rc == 0)
		rc = open_pipe(errp, err);
	if (rc == 0 && r->spec->input)
		rc = open_pipe(in, err);
	else if (rc == 0 && (in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
		rc = error_sys(err, -errno, "open /dev/null");
	if (rc == 0) {
		pid_t parent = getpid();

		r->pid = fork();
		if (r->pid == 0)
			exec_child(r->spec, program, parent, in[0], out[1], errp[1]);
		if (r->pid < 0)
			rc = error_sys(err, -errno, "fork for %s", r->spec->argv[0]);
		else if (r->spec->own_group)
			setpgid(r->pid, r->pid); /* the child too: whoever is first */
	}
	scoped_close_fd(&in[0]);
	scoped_close_fd(&out[1]);
	scoped_close_fd(&errp[1]);
	r->in = in[1];
	r->out = out[0];
	r->err = errp[0];
	if (rc == 0 && r->in >= 0)
		fcntl(r->in, F_SETFL, O_NONBLOCK);
	return rc;
}

static void run_close(int *fd)
{
	scoped_close_fd(fd);
	*fd = -1;
}

static void run_read(int *fd, struct stream *s)
{
	char data[READ_BYTES];
	ssize_t n = read(*fd, data, sizeof(data));

	if (n > 0)
		stream_add(s, data, (size_t)n);
	else if (n == 0 || errno != EINTR)
		run_close(fd);
}

static void run_write(struct run *r)
{
	ssize_t n = write(r->in, (const char *)r->spec->input + r->sent,
			  r->spec->input_len - r->sent);

	if (n > 0)
		r->sent += (size_t)n;
	if (r->sent == r->spec->input_len || (n < 0 && errno != EAGAIN && errno != EINTR))
		run_close(&r->in);
}

static void run_kill(const struct run *r, int sig)
{
	kill(r->spec->own_group ? -r->pid : r->pid, sig);
}

/* True when the child has ended and was reaped. With @kill_group what it leaves
 * of its group goes too, while the zombie still keeps the group's id from reuse. */
static bool run_reap(struct run *r, bool kill_group, struct child_result *res)
{
	siginfo_t ended = { 0 };
	int status;

	if (waitid(P_PID, (id_t)r->pid, &ended, WEXITED | WNOHANG | WNOWAIT) < 0 ||
	    ended.si_pid != r->pid)
		return false;
	if (kill_group && r->spec->own_group)
		run_kill(r, SIGKILL);
	if (waitpid(r->pid, &status, 0) != r->pid)
		return false;
	result_set_status(res, WIFEXITED(status) ? WEXITSTATUS(status) : 0,
			  WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	return true;
}

static void run_poll(struct run *r)
{
	struct pollfd p[3] = {
		{ .fd = r->out, .events = POLLIN },
		{ .fd = r->err, .events = POLLIN },
		{ .fd = r->in, .events = POLLOUT },
	};

	if (poll(p, 3, POLL_MS) <= 0)
		return;
	if (p[0].revents)
		run_read(&r->out, &r->s_out);
	if (p[1].revents)
		run_read(&r->err, &r->s_err);
	if (p[2].revents)
		run_write(r);
}

/* Until the child has ended and its pipes are at their end. A grandchild that
 * keeps a pipe open after the child's end is waited for only briefly. */
static int run_loop(struct run *r, struct child_result *res, struct error *err)
{
	uint64_t kill_at = 0, drain_until = 0;
	bool ended = false, interrupted = false;

	while (!ended || r->out >= 0 || r->err >= 0) {
		if (!ended && !interrupted && interrupt_pending()) {
			interrupted = true;
			run_kill(r, SIGTERM);
			kill_at = clock_mono_ms() + TERM_WAIT_MS;
		}
		if (!ended && kill_at && clock_mono_ms() > kill_at) {
			run_kill(r, SIGKILL);
			kill_at = 0;
		}
		if (!ended && run_reap(r, interrupted, res)) {
			ended = true;
			drain_until = clock_mono_ms() + 500;
		}
		if (ended && clock_mono_ms() > drain_until)
			break;
		if (r->out < 0 && r->err < 0 && r->in < 0 && !ended) {
			poll(NULL, 0, 2);
			continue;
		}
		run_poll(r);
	}
	return interrupted ? error_set(err, -ECANCELED, "%s: interrupted", r->spec->argv[0]) : 0;
}

int child_run(const struct child_spec *spec, struct child_result *ret, struct error *err)
{
	struct run r = { .spec = spec, .in = -1, .out = -1, .err = -1 };
	struct child_result res = { 0 };
	scoped_free char *program = path_find_program(spec->argv[0]);
	struct sigaction ignore = { .sa_handler = SIG_IGN }, old;
	int rc;

	if (!program)
		return error_set(err, -ENOENT, "%s: not found in $PATH", spec->argv[0]);
	stream_init(&r.s_out, spec, spec->on_stdout_line);
	stream_init(&r.s_err, spec, spec->on_stderr_line);
	sigaction(SIGPIPE, &ignore, &old);
	rc = run_spawn(&r, program, err);
	if (rc == 0)
		rc = run_loop(&r, &res, err);
	sigaction(SIGPIPE, &old, NULL);
	run_close(&r.in);
	run_close(&r.out);
	run_close(&r.err);
	stream_end(&r.s_out);
	stream_end(&r.s_err);
	res.out = r.s_out.tail;
	res.err = r.s_err.tail;
	if (rc < 0) {
		child_result_done(&res);
		return rc;
	}
	*ret = res;
	return 0;
}

static char *last_line(const char *text)
{
	size_t len = strlen(text), start;

	while (len && strchr("\r\n\t ", text[len - 1]))
		len--;
	start = len;
	while (start && text[start - 1] != '\n')
		start--;
	return xstrndup(text + start, len - start);
}

int child_run_ok(const struct child_spec *spec, struct child_result *ret, struct error *err)
{
	struct child_result res = { 0 };
	int rc = child_run(spec, &res, err);

	if (rc < 0)
		return rc;
	if (res.exit_code != 0) {
		scoped_free char *why = last_line(buf_str(res.err.len ? &res.err : &res.out));

		if (res.term_signal)
			error_set(err, -EIO, "%s: killed by signal %d%s%s", spec->argv[0],
				  res.term_signal, *why ? ": " : "", why);
		else
			error_set(err, -EIO, "%s: exit %d%s%s", spec->argv[0], res.exit_code,
				  *why ? ": " : "", why);
		child_result_done(&res);
		return err->code;
	}
	*ret = res;
	return 0;
}

/* --- child_start ---------------------------------------------------------- */

struct child {			/* owner: who started it, until child_close() */
	uv_process_t process;
	uv_pipe_t in, out, err;
	uv_write_t write;
	struct stream s_out, s_err;
	char *input;
	char read_buf[READ_BYTES];
	unsigned refs;		/* open handles, the write, the owner */
	unsigned open_streams;	/* of out, err: not at EOF */
	bool own_group, running, told, closing;
	int exit_code, term_signal;
	child_exit_fn on_exit;
	void *arg;
};

static void child_unref(struct child *c)
{
	if (--c->refs)
		return;
	buf_done(&c->s_out.tail);
	buf_done(&c->s_out.line);
	buf_done(&c->s_err.tail);
	buf_done(&c->s_err.line);
	free(c->input);
	free(c);
}

static void on_handle_closed(uv_handle_t *h)
{
	child_unref(h->data);
}

static void close_handle(uv_handle_t *h)
{
	if (!uv_is_closing(h))
		uv_close(h, on_handle_closed);
}

/* The exit is told when the process is gone and both outputs are at their end. */
static void child_tell(struct child *c)
{
	struct child_result r = { 0 };

	if (c->running || c->open_streams || c->told || c->closing)
		return;
	c->told = true;
	stream_end(&c->s_out);
	stream_end(&c->s_err);
	result_set_status(&r, c->exit_code, c->term_signal);
	r.out = c->s_out.tail;
	r.err = c->s_err.tail;
	c->s_out.tail = c->s_err.tail = (struct buf){ 0 };
	c->on_exit(c->arg, &r);
	child_result_done(&r);
}

static void on_exited(uv_process_t *p, int64_t exit_status, int term_signal)
{
	struct child *c = p->data;

	c->running = false;
	c->exit_code = (int)exit_status;
	c->term_signal = term_signal;
	close_handle((uv_handle_t *)p);
	child_tell(c);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct child *c = h->data;

	*buf = uv_buf_init(c->read_buf, sizeof(c->read_buf));
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct child *c = s->data;
	struct stream *out = s == (uv_stream_t *)&c->out ? &c->s_out : &c->s_err;

	if (c->closing || n == 0)
		return;
	if (n > 0) {
		stream_add(out, buf->base, (size_t)n);
		return;
	}
	uv_read_stop(s);
	c->open_streams--;
	close_handle((uv_handle_t *)s);
	child_tell(c);
}

static void on_written(uv_write_t *req, int status)
{
	struct child *c = req->data;

	close_handle((uv_handle_t *)&c->in);
	child_unref(c);
}

static void child_init_pipe(struct child *c, struct loop *loop, uv_pipe_t *p)
{
	uv_pipe_init(&loop->uv, p, 0);
	p->data = c;
	c->refs++;
}

static int child_spawn(struct child *c, struct loop *loop, const struct child_spec *spec,
		       const char *program)
{
	uv_stdio_container_t stdio[3] = {
		{ .flags = UV_IGNORE },
		{ .flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&c->out },
		{ .flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&c->err },
	};
	uv_process_options_t opts = {
		.exit_cb = on_exited,
		.file = program,
		.args = (char **)spec->argv,
		.env = (char **)spec->env,
		.cwd = spec->cwd,
		.flags = spec->own_group ? UV_PROCESS_DETACHED : 0,
		.stdio = stdio,
		.stdio_count = 3,
	};

	if (spec->input) {
		stdio[0].flags = UV_CREATE_PIPE | UV_READABLE_PIPE;
		stdio[0].data.stream = (uv_stream_t *)&c->in;
	}
	c->process.data = c;
	c->refs++; /* uv_spawn initialises the handle even when it fails */
	return uv_spawn(&loop->uv, &c->process, &opts);
}

static void child_send_input(struct child *c, const struct child_spec *spec)
{
	uv_buf_t b;

	c->input = xmalloc(spec->input_len);
	memcpy(c->input, spec->input, spec->input_len);
	b = uv_buf_init(c->input, (unsigned)spec->input_len);
	c->write.data = c;
	c->refs++;
	if (uv_write(&c->write, (uv_stream_t *)&c->in, &b, 1, on_written) < 0)
		on_written(&c->write, 0);
}

int child_start(struct loop *loop, const struct child_spec *spec, child_exit_fn on_exit, void *arg,
		struct child **ret, struct error *err)
{
	scoped_free char *program = path_find_program(spec->argv[0]);
	struct child *c;
	int rc;

	if (!program)
		return error_set(err, -ENOENT, "%s: not found in $PATH", spec->argv[0]);
	c = xnew(struct child);
	c->own_group = spec->own_group;
	c->refs = 1;
	c->on_exit = on_exit;
	c->arg = arg;
	stream_init(&c->s_out, spec, spec->on_stdout_line);
	stream_init(&c->s_err, spec, spec->on_stderr_line);
	child_init_pipe(c, loop, &c->out);
	child_init_pipe(c, loop, &c->err);
	if (spec->input)
		child_init_pipe(c, loop, &c->in);
	rc = child_spawn(c, loop, spec, program);
	if (rc < 0) {
		child_close(c);
		return error_sys(err, rc, "start %s", spec->argv[0]);
	}
	c->running = true;
	c->open_streams = 2;
	uv_read_start((uv_stream_t *)&c->out, on_alloc, on_read);
	uv_read_start((uv_stream_t *)&c->err, on_alloc, on_read);
	if (spec->input)
		child_send_input(c, spec);
	*ret = c;
	return 0;
}

pid_t child_pid(const struct child *c)
{
	return uv_process_get_pid(&c->process);
}

void child_signal(struct child *c, int sig)
{
	if (!c->running)
		return;
	if (c->own_group)
		kill(-child_pid(c), sig);
	else
		uv_process_kill(&c->process, sig);
}

void child_close(struct child *c)
{
	if (c->closing)
		return;
	c->closing = true;
	child_signal(c, SIGKILL);
	close_handle((uv_handle_t *)&c->out);
	close_handle((uv_handle_t *)&c->err);
	if (c->in.data)
		close_handle((uv_handle_t *)&c->in);
	if (!c->running) /* else on_exited does: closing it now would leave a zombie */
		close_handle((uv_handle_t *)&c->process);
	child_unref(c);
}
