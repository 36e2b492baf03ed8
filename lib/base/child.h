/* child.h - other programs, run to the end or watched on the loop
 *
 * child_run() blocks and is for the short-lived commands: it ends early when
 * interrupt_pending() turns true, and then ends the child (SIGTERM, SIGKILL after
 * 5 s), with own_group its whole process group. A caller that is killed takes the
 * child with it. child_start() is for the loop: nothing blocks, output arrives by
 * callback, the exit exactly once.
 *
 * Both take argv[0] by path_find_program(), so /usr/sbin is searched too.
 * Children get default signal dispositions and no descriptors but the three.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct child_spec {
	const char *const *argv;	/* NULL-terminated */
	const char *const *env;		/* whole environment, NULL: ours */
	const char *cwd;		/* NULL: ours */
	const void *input;		/* sent to stdin, then EOF; NULL: /dev/null */
	size_t input_len;
	bool own_group;			/* new process group: a Ctrl-C at the terminal
					 * does not reach it */
	size_t max_output_bytes;	/* kept per stream; 0 means 64 KiB. More is
					 * dropped from the front (the tail says why) */
	/* Whole lines (without "\n") as they come; either may be NULL. A line
	 * of more than 8 KiB arrives in pieces. */
	void (*on_stdout_line)(void *arg, const char *line);
	void (*on_stderr_line)(void *arg, const char *line);
	void *line_arg;
};

struct child_result {
	int exit_code;		/* as a shell says it: 128 + signal when killed */
	int term_signal;	/* 0: exited by itself */
	struct buf out;		/* 0-terminated tail of stdout */
	struct buf err;		/* 0-terminated tail of stderr */
};

void child_result_done(struct child_result *r);
#define scoped_child_result __attribute__((cleanup(child_result_done)))

/* Runs to the end. Negative when it could not start or was interrupted
 * (-ECANCELED); a program that ran and failed is 0 with exit_code != 0. */
int child_run(const struct child_spec *spec, struct child_result *ret, struct error *err);

/* As child_run, but exit codes other than 0 are an error whose text carries the
 * last line of stderr: "qemu-img: exit 1: …". */
int child_run_ok(const struct child_spec *spec, struct child_result *ret, struct error *err);

struct child;

/* @r is owned by the caller of child_start only during the callback. */
typedef void (*child_exit_fn)(void *arg, const struct child_result *r);

/* Starts on the loop; @on_exit runs once, after all output was read, unless
 * child_close() came first. @env, @cwd, @input are copied. */
int child_start(struct loop *loop, const struct child_spec *spec, child_exit_fn on_exit, void *arg,
		struct child **ret, struct error *err);
pid_t child_pid(const struct child *c);
/* Sends @sig to the process (to its group with own_group). No-op after exit. */
void child_signal(struct child *c, int sig);
/* Forgets the child: SIGKILL if it still runs, no more callbacks, frees when
 * libuv is done with it. Also called after on_exit, fine inside it. */
void child_close(struct child *c);
