/* help.h - help texts, man pages and shell completion, all out of the verb table */
#pragma once

#include <stdio.h>

#include "cmd/limactl/verb.h"
#include "lib/base/error.h"

void help_overview(FILE *out);	/* limactl alone: the five commands first */
void help_all(FILE *out);	/* limactl help: every command */
void help_verb(FILE *out, const struct verb *v);
/* The verb of @list whose name is nearest to @word, NULL when none is near. */
const char *help_nearest(const struct verb *const *list, const char *word);

/* Man pages limactl.1 and limactl-VERB[-VERB].1 into @dir, which is made if need be. */
int help_write_man(const char *dir, struct error *err);

/* Script for @shell: "bash", "zsh" or "fish". It asks `limactl __complete` for
 * the words. False when the shell is unknown. */
bool help_completion(FILE *out, const char *shell);
/* Candidates for the last of @words (which are what follows `limactl`), one a
 * line as "word\tdescription". */
void help_complete(FILE *out, int n, char *const *words);
