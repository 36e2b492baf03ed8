/* process.h - the QEMU process: begun so that it outlives us, watched so that
 * its end is never missed
 *
 * QEMU gets a session of its own: neither a Ctrl-C at the terminal nor our death
 * ends it. What it writes to stderr goes to a file it owns, not to a pipe of
 * ours that would break with us. Its end is seen as our child (SIGCHLD, with
 * exit code or signal) or, when we adopted it after an earlier host agent died,
 * by a pidfd on the loop (Linux 5.3; before that by looking once a second).
 *
 * Signals are sent without a race against pid reuse: to a child that was not
 * reaped yet, or through the pidfd.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

struct process_exit {
	bool known;	/* false: adopted, the kernel tells only our own children's fate */
	int code;	/* exit code, when it exited by itself */
	int signal;	/* 0: exited by itself */
};

struct process_spec {
	const char *const *argv;	/* argv[0] is looked up in $PATH */
	const char *cwd;
	const char *log_path;		/* stdout and stderr; begun anew, first line is argv */
	const int *fds;			/* become descriptors 3, 4, …; still the caller's */
	size_t n_fds;
};

struct process;

/* Once, never before the call that started the watch returned. */
typedef void (*process_exit_fn)(void *arg, const struct process_exit *how);

int process_spawn(struct loop *loop, const struct process_spec *spec, process_exit_fn fn, void *arg,
		  struct process **ret, struct error *err);
/* -ESRCH when @pid is gone already. */
int process_adopt(struct loop *loop, pid_t pid, process_exit_fn fn, void *arg,
		  struct process **ret, struct error *err);

pid_t process_pid(const struct process *p);
/* 0, or -ESRCH when it is gone. */
int process_signal(struct process *p, int sig);
/* Stops watching; the process goes on. */
void process_close(struct process *p);

/* The line of @log_path (as written since process_spawn) that says best why
 * QEMU ended, without its program name: "-blockdev …: Could not open 'disk'".
 * Printable, bounded; "" when it said nothing. Caller frees. */
char *process_last_words(const char *log_path);
