/* help_verbs.c - the verbs that explain the others */
#include <stdio.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/help.h"
#include "lib/base/log.h"

static int run_help(const struct args *a)
{
	const struct verb *v = NULL;
	const char *word;

	if (!a->positional.len) {
		help_all(stdout);
		return 0;
	}
	strv_foreach(word, &a->positional) {
		const struct verb *const *list = v ? v->verbs : verbs;

		v = list ? verb_find(list, word) : NULL;
		if (!v) {
			log_write(LOG_FATAL, "unknown command `%s`; see: limactl help", word);
			return 1;
		}
	}
	help_verb(stdout, v);
	return 0;
}

const struct verb verb_help = {
	.name = "help",
	.group = VERB_ADVANCED,
	.usage = "[COMMAND…]",
	.summary = "tell about a command",
	.max_args = 2,
	.run = run_help,
};

static int run_completion(const struct args *a)
{
	if (help_completion(stdout, a->positional.items[0]))
		return 0;
	log_write(LOG_FATAL, "completion: `%s` is none of bash, zsh, fish", a->positional.items[0]);
	return 1;
}

const struct verb verb_completion = {
	.name = "completion",
	.group = VERB_ADVANCED,
	.usage = "bash|zsh|fish",
	.summary = "print a completion script for your shell",
	.examples = "  source <(limactl completion bash)\n"
		    "  limactl completion fish > ~/.config/fish/completions/limactl.fish",
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_SHELL,
	.run = run_completion,
};

static int run_complete(const struct args *a)
{
	help_complete(stdout, (int)a->positional.len, a->positional.items);
	return 0;
}

const struct verb verb_complete = {
	.name = "__complete",
	.group = VERB_HIDDEN,
	.usage = "-- [WORD…]",
	.summary = "candidates for the last word",
	.max_args = -1,
	.stop_at_positional = true,
	.run = run_complete,
};

static const struct flag doc_flags[] = {
	{ "type", 0, FLAG_STRING, "man", "what to write", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int run_generate_doc(const struct args *a)
{
	struct error err = { 0 };

	if (help_write_man(a->positional.items[0], &err) == 0)
		return 0;
	log_write(LOG_FATAL, "generate-doc: %s", err.msg);
	return 1;
}

const struct verb verb_generate_doc = {
	.name = "generate-doc",
	.group = VERB_HIDDEN,
	.usage = "DIR",
	.summary = "write man pages into DIR",
	.flags = (const struct flag *const[]){ doc_flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.run = run_generate_doc,
};
