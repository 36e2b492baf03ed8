/* live_rules.h - rules added while the instance runs, for the host agent that comes next
 *
 * They belong to the machine that runs, not to lima.yaml: when a host agent dies, the
 * one that adopts its machine finds them in a small file, and stopping removes it. A
 * line each, the oldest first: the rule's id, and the JSON that asked for it, to be
 * parsed again with the same words. The file has room for all rules there can be
 * (forward/rule.h), each of the longest text: what was written is always read back.
 *
 * Written whole, in libuv's pool, right after something changed. Its owner is the step
 * that owns the forwards; all on the loop thread.
 */
#pragma once

#include "lib/base/loop.h"

enum { LIVE_RULE_MAX_BYTES = 4096 };	/* a rule's JSON; a socket's path has 107 of them */

struct live_rules;

/* Before it is added anywhere. -EMSGSIZE: @text is longer. */
int live_rules_check(const char *text, struct error *err);

/* Nothing is kept yet, and the file is left as it is. */
struct live_rules *live_rules_new(struct loop *loop, const char *path);
/* What an earlier host agent left, the oldest first; lines that are none are skipped.
 * @each may add. Reads a short file, blocking. */
void live_rules_read(struct live_rules *l, void (*each)(void *arg, unsigned id, const char *text),
		     void *arg);

/* @text: checked before, copied */
void live_rules_add(struct live_rules *l, unsigned id, const char *text);
void live_rules_remove(struct live_rules *l, unsigned id);	/* none has it: fine */

/* Removes the file, of whomever; frees itself when nothing is being written any more. */
void live_rules_close(struct live_rules *l);
