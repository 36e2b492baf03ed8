#include "cmd/limactl/verb.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/strv.h"

const struct verb *const verbs[] = {
	&verb_start, &verb_shell, &verb_stop, &verb_list, &verb_delete, &verb_edit,
	&verb_create, &verb_restart, &verb_port, &verb_clone, &verb_rename, &verb_snapshot,
	&verb_copy, &verb_show_ssh, &verb_protect, &verb_unprotect, &verb_factory_reset, &verb_prune,
	&verb_validate, &verb_info, &verb_completion, &verb_help, &verb_hostagent,
	&verb_complete, &verb_generate_doc, NULL,
};

const struct flag global_flags[] = {
	{ "debug", 0, FLAG_BOOL, NULL, "log more: the same as --log-level=debug", false },
	{ "log-level", 0, FLAG_STRING, "LEVEL", "trace, debug, info, warn or error", false },
	{ "log-format", 0, FLAG_STRING, "FORMAT", "text (logfmt) or json; without it plain lines", false },
	{ "tty", 0, FLAG_BOOL, NULL, "ask questions and show live progress (default: on a terminal)", false },
	{ "yes", 'y', FLAG_BOOL, NULL, "ask nothing, take the defaults; the same as --tty=false", false },
	{ "help", 'h', FLAG_BOOL, NULL, "show help", false },
	{ "version", 'v', FLAG_BOOL, NULL, "print the version", true },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

bool verb_has_name(const struct verb *v, const char *name)
{
	scoped_strv struct strv aliases = { 0 };

	if (streq(v->name, name))
		return true;
	strv_split(&aliases, v->aliases ? v->aliases : "", " ");
	return strv_contains(&aliases, name);
}

const struct verb *verb_find(const struct verb *const *list, const char *name)
{
	for (size_t i = 0; list[i]; i++)
		if (verb_has_name(list[i], name))
			return list[i];
	return NULL;
}

const char *verb_path(const struct verb *v, char sep, char out[VERB_PATH_SIZE])
{
	if (v->parent)
		snprintf(out, VERB_PATH_SIZE, "%s%c%s", v->parent->name, sep, v->name);
	else
		snprintf(out, VERB_PATH_SIZE, "%s", v->name);
	return out;
}

static const struct flag *find_in(const struct flag *table, const char *name, size_t len, char letter)
{
	for (; table && table->name; table++) {
		if (letter ? table->letter == letter
			   : strlen(table->name) == len && strncmp(table->name, name, len) == 0)
			return table;
	}
	return NULL;
}

const struct flag *verb_find_flag(const struct verb *v, const char *name, size_t len, char letter)
{
	const struct flag *f = NULL;

	for (size_t i = 0; v && v->flags && v->flags[i] && !f; i++)
		f = find_in(v->flags[i], name, len, letter);
	return f ? f : find_in(global_flags, name, len, letter);
}
