/* instance_arg.h - what every verb about an instance does first */
#pragma once

#include "cmd/limactl/args.h"
#include "cmd/limactl/ui.h"
#include "lib/store/instance.h"

/* The instance's name out of the first positional, "default" without one. */
const char *instance_arg_name(const struct args *a);
/* $LIMA_HOME and the instance in it. An unknown name is an error that says how
 * to create it. */
int instance_arg_open(const char *name, char **ret_home, struct instance **ret, struct error *err);
/* Can a command be run in it by ssh? */
int instance_arg_check_running(const struct instance *inst, struct error *err);
/* The instance's lock for @verb. With @force a command that holds it (a `start`
 * that hangs in another terminal) is told to give up and its machine killed. */
int instance_arg_lock(const char *home, const char *name, const char *verb, bool force, int *ret_lock,
		      struct error *err);
/* As instance_arg_open, with the instance's lock held; inspected under it. */
int instance_arg_open_locked(const char *name, const char *verb, bool force, char **ret_home,
			     int *ret_lock, struct instance **ret, struct error *err);
/* Prints @err as the one fatal line and gives the exit code: 1, or 128 + signal
 * after an interrupt. */
int verb_fail(const struct error *err);
/* Runs @work with progress to show and interrupts caught; gives the exit code. */
int verb_with_ui(const struct args *a,
		 int (*work)(const struct args *a, struct ui *ui, struct error *err));
/* Calls @each for every positional, for @fallback when there is none; what fails is
 * told and the others are done all the same. Gives the exit code: stopped half
 * way by a signal is no success. */
int verb_for_each(const struct args *a, const char *fallback,
		  int (*each)(const char *word, void *arg, struct error *err), void *arg);
