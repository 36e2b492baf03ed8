/* verb.h - the table of commands
 *
 * One row a verb: names, flags, help. Parsing, `help`, shell completion and the
 * man pages are all made from it, so they cannot disagree. A verb's own file
 * defines its row and its run function, which parses nothing itself: it gets
 * the flags by name from `struct args` (args.h).
 *
 * A verb may have verbs of its own (`limactl port add`): they name it as their
 * parent, and it only leads to them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct args;

enum flag_type {
	FLAG_BOOL,	/* --x, --x=false */
	FLAG_STRING,
	FLAG_INT,	/* ≥ 0 */
	FLAG_FLOAT,	/* ≥ 0 */
	FLAG_DURATION,	/* 90s, 10m, 1h30m */
	FLAG_LIST,	/* repeatable, and a,b,c */
	FLAG_STRINGS,	/* repeatable, no splitting at commas */
};

struct flag {
	const char *name;	/* NULL ends a table */
	char letter;		/* 0: none */
	enum flag_type type;
	const char *value;	/* what stands for the value in help, "N", "NAME" */
	const char *help;
	bool hidden;
};

enum verb_group { VERB_BASIC, VERB_ADVANCED, VERB_HIDDEN };

/* What a positional argument is, for completion. */
enum verb_arg {
	ARG_NONE, ARG_INSTANCE, ARG_TEMPLATE, ARG_INSTANCE_OR_TEMPLATE, ARG_FILE, ARG_SHELL,
	ARG_INSTANCE_FIRST,	/* something else behind it */
};

struct verb {
	const char *name;
	const char *aliases;	/* "ls" or "remove rm"; NULL: none */
	enum verb_group group;
	const char *usage;	/* after the verb: "INSTANCE [COMMAND…]" */
	const char *summary;	/* one line, no full stop */
	const char *text;	/* paragraphs for help and man; NULL: none */
	const char *examples;	/* lines; NULL: none */
	const struct flag *const *flags;	/* tables, NULL-terminated list; NULL: none */
	int min_args, max_args;	/* max_args -1: any */
	bool stop_at_positional;	/* flags only before the first positional */
	enum verb_arg arg;
	int (*run)(const struct args *a);	/* exit code; NULL: has verbs of its own */
	const struct verb *const *verbs;	/* NULL-terminated; NULL: none */
	const struct verb *parent;		/* NULL: stands after `limactl` */
};

extern const struct verb verb_create, verb_start, verb_stop, verb_restart, verb_shell, verb_list,
	verb_delete, verb_validate, verb_info, verb_help, verb_completion, verb_hostagent,
	verb_generate_doc, verb_complete, verb_port, verb_protect, verb_unprotect, verb_factory_reset,
	verb_prune, verb_show_ssh, verb_copy,
	verb_edit, verb_clone, verb_rename, verb_snapshot;

/* All verbs, in the order of help; NULL-terminated. */
extern const struct verb *const verbs[];
/* Flags that every verb takes. */
extern const struct flag global_flags[];

/* By name or alias, in @list (verbs, verb->verbs); NULL when there is none. */
const struct verb *verb_find(const struct verb *const *list, const char *name);
/* What stands after `limactl`, words joined by @sep: "port add", "port-add". */
enum { VERB_PATH_SIZE = 48 };
const char *verb_path(const struct verb *v, char sep, char out[VERB_PATH_SIZE]);
bool verb_has_name(const struct verb *v, const char *name);
/* A flag that @v takes (NULL: a global one), by @letter, or when that is 0 by the
 * @len bytes of @name. */
const struct flag *verb_find_flag(const struct verb *v, const char *name, size_t len, char letter);
