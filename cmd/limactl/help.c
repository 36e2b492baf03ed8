#include "cmd/limactl/help.h"

#include <string.h>
#include <strings.h>

#include "lib/base/mem.h"

static const struct {
	enum verb_group group;
	const char *title;
} groups[] = {
	{ VERB_BASIC, "Every day" },
	{ VERB_ADVANCED, "More" },
};

static void print_row(FILE *out, const char *left, const char *right)
{
	int pad = 26;

	for (const char *p = left; *p; p++)
		pad -= ((unsigned char)*p & 0xc0) != 0x80;

	fprintf(out, "  %s%*s%s\n", left, pad > 2 ? pad : 2, "", right);
}

static void print_group(FILE *out, const struct verb *const *list, enum verb_group group)
{
	char path[VERB_PATH_SIZE];

	for (size_t i = 0; list[i]; i++)
		if (list[i]->group == group)
			print_row(out, verb_path(list[i], ' ', path), list[i]->summary);
}

void help_overview(FILE *out)
{
	fputs("limactl - Linux virtual machines for developers\n\n", out);
	print_row(out, "limactl start", "create the instance `default` if need be, and start it");
	print_row(out, "limactl shell default", "open a shell in it");
	print_row(out, "limactl list", "show all instances");
	print_row(out, "limactl stop", "stop it; its disk stays");
	print_row(out, "limactl delete default", "delete it");
	fputs("\nA server that listens in the guest answers on the host's localhost, same port.\n\n"
	      "Commands:\n", out);
	for (size_t g = 0; g < ARRAY_SIZE(groups); g++)
		print_group(out, verbs, groups[g].group);
	fputs("\nlimactl COMMAND --help tells more about one.\n", out);
}

static void flag_label(const struct flag *f, char *out, size_t size)
{
	const char *value = f->type == FLAG_BOOL ? "" : f->value ? f->value : "VALUE";

	if (f->letter)
		snprintf(out, size, "-%c, --%s%s%s", f->letter, f->name, *value ? " " : "", value);
	else
		snprintf(out, size, "    --%s%s%s", f->name, *value ? " " : "", value);
}

static void print_flags(FILE *out, const struct flag *table)
{
	for (; table && table->name; table++) {
		char label[80];

		if (table->hidden)
			continue;
		flag_label(table, label, sizeof(label));
		print_row(out, label, table->help);
	}
}

static void print_all_flags(FILE *out)
{
	fputs("\nFlags of every command:\n", out);
	print_flags(out, global_flags);
}

void help_all(FILE *out)
{
	for (size_t g = 0; g < ARRAY_SIZE(groups); g++) {
		fprintf(out, "%s%s:\n", g ? "\n" : "", groups[g].title);
		print_group(out, verbs, groups[g].group);
	}
	print_all_flags(out);
}

void help_verb(FILE *out, const struct verb *v)
{
	char path[VERB_PATH_SIZE];

	verb_path(v, ' ', path);
	fprintf(out, "limactl %s - %s\n\nUsage: limactl %s %s\n", path, v->summary, path, v->usage);
	if (v->aliases)
		fprintf(out, "Also:  %s\n", v->aliases);
	if (v->text)
		fprintf(out, "\n%s\n", v->text);
	if (v->verbs) {
		fputs("\nCommands:\n", out);
		for (size_t g = 0; g < ARRAY_SIZE(groups); g++)
			print_group(out, v->verbs, groups[g].group);
	}
	if (v->examples)
		fprintf(out, "\nExamples:\n%s\n", v->examples);
	if (v->flags) {
		fputs("\nFlags:\n", out);
		for (size_t i = 0; v->flags[i]; i++)
			print_flags(out, v->flags[i]);
	}
	print_all_flags(out);
}

/* Levenshtein distance, bounded by short words. */
static unsigned distance(const char *a, const char *b)
{
	enum { MAX = 24 };
	size_t la = strlen(a), lb = strlen(b);
	unsigned row[MAX + 1];

	if (la > MAX || lb > MAX)
		return MAX;
	for (size_t j = 0; j <= lb; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned up = row[j];
			unsigned best = MIN(row[j], row[j - 1]) + 1;

			row[j] = MIN(best, diagonal + (a[i - 1] != b[j - 1]));
			diagonal = up;
		}
	}
	return row[lb];
}

const char *help_nearest(const struct verb *const *list, const char *word)
{
	const char *best = NULL;
	unsigned best_distance = 3;

	for (size_t i = 0; list[i]; i++) {
		unsigned d = distance(word, list[i]->name);

		if (list[i]->group != VERB_HIDDEN && d < best_distance) {
			best = list[i]->name;
			best_distance = d;
		}
	}
	return best;
}
