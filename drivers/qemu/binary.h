/* binary.h - which QEMU program to run, and is it good enough
 *
 * $QEMU_SYSTEM_X86_64 (and so on) names another program and may add arguments
 * in front of ours (cli.md §7); otherwise qemu-system-ARCH from $PATH. Questions
 * to the program itself are asked by running it with qemu_binary_question();
 * the answer is judged here, so that limactl (which may block) and the loop
 * (which may not) share everything but the waiting.
 */
#pragma once

#include <stdbool.h>

#include "drivers/qemu/version.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"

/* Appends the program and its first arguments. -ENOENT names the package. */
int qemu_binary_find(enum arch arch, struct strv *ret_program, struct error *err);

/* "PREFIX" of "PREFIX/bin/qemu-system-…"; NULL when it has no such place. Caller frees. */
char *qemu_binary_prefix(const struct strv *program);

/* The command line that asks for the version, and by its way of failing
 * whether `-sandbox` is known; @sandbox false: do not ask for that. */
void qemu_binary_question(const struct strv *program, bool sandbox, struct strv *ret_argv);

/* What came back. *ret_retry: it is a QEMU without seccomp, ask again without
 * @asked_sandbox. */
int qemu_binary_answer(const struct strv *program, int exit_code, const char *out,
		       const char *errout, bool asked_sandbox, bool *ret_retry,
		       struct qemu_version *ret, struct error *err);

/* Too old at all, or for this config, is an error; older than we test with adds
 * to @warnings (NULL: no interest). */
int qemu_binary_check_version(const struct qemu_version *v, const struct config *config,
			      struct strv *warnings, struct error *err);
