/* complete.c - words for the shell's completion
 *
 * The scripts are thin: they hand the words typed so far to the hidden verb
 * `__complete`, which answers with candidates out of the verb table, the
 * instance directories and the template directories.
 */
#include "cmd/limactl/help.h"

#include <string.h>

#include "cmd/limactl/template_arg.h"
#include "lib/base/mem.h"
#include "lib/base/strv.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"

/* bash cuts words at colons (COMP_WORDBREAKS), so the words are taken from the
 * line, and what stands before the last colon is left out of the candidates. */
static const char bash_script[] =
	"_limactl() {\n"
	"\tlocal -a words\n"
	"\tlocal line=${COMP_LINE:0:COMP_POINT} cur\n"
	"\tread -ra words <<< \"$line\"\n"
	"\t[[ $line != *[[:space:]] ]] || words+=('')\n"
	"\tcur=${words[${#words[@]}-1]}\n"
	"\tmapfile -t COMPREPLY < <(limactl __complete -- \"${words[@]:1}\" 2>/dev/null | cut -f1)\n"
	"\tif [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then\n"
	"\t\tCOMPREPLY=(\"${COMPREPLY[@]#\"${cur%\"${cur##*:}\"}\"}\")\n"
	"\tfi\n"
	"\t[ ${#COMPREPLY[@]} -gt 0 ] || compopt -o default\n"
	"}\n"
	"complete -F _limactl limactl\n";

static const char zsh_script[] =
	"#compdef limactl\n"
	"_limactl() {\n"
	"\tlocal -a lines\n"
	"\tlines=(${(f)\"$(limactl __complete -- \"${(@)words[2,CURRENT]}\" 2>/dev/null)\"})\n"
	"\tlines=(${lines//:/\\\\:})\n"
	"\tlines=(${lines//$'\\t'/:})\n"
	"\t(( $#lines )) && _describe limactl lines || _files\n"
	"}\n"
	"if [ \"$funcstack[1]\" = _limactl ]; then _limactl \"$@\"; else compdef _limactl limactl; fi\n";

static const char fish_script[] =
	"function __limactl_words\n"
	"\tset -l words (commandline -opc) (commandline -ct)\n"
	"\tlimactl __complete -- $words[2..-1] 2>/dev/null\n"
	"end\n"
	"complete -c limactl -f -a '(__limactl_words)'\n";

bool help_completion(FILE *out, const char *shell)
{
	static const struct {
		const char *shell, *script;
	} scripts[] = { { "bash", bash_script }, { "zsh", zsh_script }, { "fish", fish_script } };

	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		if (streq(shell, scripts[i].shell)) {
			fputs(scripts[i].script, out);
			return true;
		}
	}
	return false;
}

static void offer(FILE *out, const char *prefix, const char *word, const char *help)
{
	if (strncmp(word, prefix, strlen(prefix)) == 0)
		fprintf(out, "%s\t%s\n", word, help);
}

static void offer_flags(FILE *out, const char *prefix, const struct flag *f)
{
	for (; f && f->name; f++) {
		scoped_free char *word = xasprintf("--%s", f->name);

		if (!f->hidden)
			offer(out, prefix, word, f->help);
	}
}

static void offer_instances(FILE *out, const char *prefix)
{
	scoped_free char *home = NULL;
	scoped_strv struct strv names = { 0 };
	struct error err = { 0 };
	const char *name;

	if (layout_lima_home(&home, &err) < 0 || instance_list(home, &names, &err) < 0)
		return;
	strv_foreach(name, &names)
		offer(out, prefix, name, "instance");
}

static void offer_templates(FILE *out, const char *prefix)
{
	scoped_free char *home = NULL;
	struct locator_template *list = NULL;
	struct error err = { 0 };
	size_t n = 0;

	if (layout_lima_home(&home, &err) < 0 || template_arg_list(home, &list, &n, &err) < 0)
		return;
	for (size_t i = 0; i < n; i++) {
		scoped_free char *word = xasprintf("template:%s", list[i].name);

		offer(out, prefix, word, "template");
	}
	locator_list_free(list, n);
}

static void offer_argument(FILE *out, const struct verb *v, int before, const char *word)
{
	switch (v->arg) {
	case ARG_INSTANCE_FIRST:
		if (!before)
			offer_instances(out, word);
		break;
	case ARG_INSTANCE: offer_instances(out, word); break;
	case ARG_TEMPLATE: offer_templates(out, word); break;
	case ARG_INSTANCE_OR_TEMPLATE:
		offer_instances(out, word);
		offer_templates(out, word);
		break;
	case ARG_SHELL:
		offer(out, word, "bash", "shell");
		offer(out, word, "zsh", "shell");
		offer(out, word, "fish", "shell");
		break;
	case ARG_FILE:
	case ARG_NONE: break;
	}
}

/* Is the word after this flag its value? */
static bool takes_next(const struct verb *v, const char *word)
{
	bool is_long = word[1] == '-';
	const struct flag *f = is_long ? verb_find_flag(v, word + 2, strlen(word + 2), 0)
				       : word[1] && !word[2] ? verb_find_flag(v, NULL, 0, word[1]) : NULL;

	return f && f->type != FLAG_BOOL;
}

void help_complete(FILE *out, int n, char *const *words)
{
	const char *word = n ? words[n - 1] : "";
	const struct verb *const *list = verbs;	/* NULL: the verb is known */
	const struct verb *v = NULL;
	int positionals = 0;

	for (int i = 0; i < n - 1; i++) {
		if (words[i][0] == '-') {
			if (!takes_next(v, words[i]))
				continue;
			if (++i == n - 1)
				return; /* the word is a flag's value: the shell offers files */
		} else if (list && verb_find(list, words[i])) {
			v = verb_find(list, words[i]);
			list = v->verbs;
		} else {
			positionals++;
		}
	}
	if (list && word[0] != '-') {
		for (size_t i = 0; list[i]; i++)
			if (list[i]->group != VERB_HIDDEN)
				offer(out, word, list[i]->name, list[i]->summary);
	} else if (word[0] == '-') {
		for (size_t i = 0; v && v->flags && v->flags[i]; i++)
			offer_flags(out, word, v->flags[i]);
		offer_flags(out, word, global_flags);
	} else if (v->stop_at_positional ? !positionals : v->max_args < 0 || positionals < v->max_args) {
		offer_argument(out, v, positionals, word);
	}
}
