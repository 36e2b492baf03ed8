/* ready.h - a script in the guest, asked until it succeeds
 *
 * Readiness probes of the template, and marker files of guests whose agent does
 * not tell how far they are. The script goes to the standard input of its own
 * interpreter over ssh; tries follow each other with back-off until a deadline,
 * which also ends a try that hangs.
 */
#pragma once

#include <stdint.h>

#include "hostagent/ssh.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "lib/config/config.h"

typedef void (*ready_done_fn)(void *arg, const struct error *err);	/* err->code 0: yes */

struct ready_script {
	const char *description;	/* what is waited for; in the error */
	const char *script;		/* starts with "#!" */
	const char *hint;		/* what to do when it fails; "" none */
	const struct config_map *param;	/* exported as PARAM_key to shells; NULL: none */
	enum ssh_mux mux;
	unsigned deadline_ms;		/* all tries together */
};

struct ready_probe;
/* @t is borrowed, @s is copied where needed after return. */
struct ready_probe *ready_probe_start(struct loop *loop, const struct ssh_target *t,
				      const struct ready_script *s, ready_done_fn done, void *arg);
void ready_probe_close(struct ready_probe *p);

/* --- pure ---------------------------------------------------------------- */

/* The interpreter with its arguments out of the first line: "#!/bin/bash -e\n"
 * is "/bin/bash -e"; NULL without one; caller frees. */
char *ready_interpreter(const char *script);
/* @script with PARAM_… exported after its first line when the interpreter is a
 * Bourne-like shell, else a copy; caller frees. */
char *ready_script_text(const char *script, const struct config_map *param);
/* Script that succeeds when @marker in the guest holds @instance_id
 * (reference/hostagent.md §4); caller frees. */
char *ready_marker_script(const char *marker, const char *instance_id);
