/* man.c - man pages in man(7) macros, made from the verb table */
#include "cmd/limactl/help.h"

#include <errno.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

/* Text as roff: backslashes, hyphens and control lines escaped; `x` in bold. */
static void add_text(struct buf *b, const char *s)
{
	bool line_start = true, bold = false;

	for (; *s; s++) {
		if (line_start && (*s == '.' || *s == '\''))
			buf_add_str(b, "\\&");
		line_start = *s == '\n';
		if (*s == '\\')
			buf_add_str(b, "\\e");
		else if (*s == '-')
			buf_add_str(b, "\\-");
		else if (*s == '`')
			buf_add_str(b, (bold = !bold) ? "\\fB" : "\\fR");
		else if (s[0] == '\n' && s[1] == '\n')
			buf_add_str(b, "\n.PP");
		else
			buf_add_u8(b, (uint8_t)*s);
	}
	buf_add_u8(b, '\n');
}

static void add_head(struct buf *b, const char *page, const char *summary)
{
	buf_addf(b, ".TH \"%s\" 1 \"\" \"lima-c " LIMA_VERSION "\" \"Lima commands\"\n", page);
	buf_add_str(b, ".SH NAME\n");
	scoped_free char *line = xasprintf("%s - %s", page, summary);
	add_text(b, line);
}

static void add_flags(struct buf *b, const struct flag *f)
{
	for (; f && f->name; f++) {
		if (f->hidden)
			continue;
		buf_add_str(b, ".TP\n\\fB");
		if (f->letter)
			buf_addf(b, "\\-%c\\fR, \\fB", f->letter);
		buf_add_str(b, "\\-\\-");
		for (const char *p = f->name; *p; p++)
			buf_addf(b, *p == '-' ? "\\%c" : "%c", *p);
		buf_add_str(b, "\\fR");
		if (f->type != FLAG_BOOL)
			buf_addf(b, " \\fI%s\\fR", f->value ? f->value : "VALUE");
		buf_add_u8(b, '\n');
		add_text(b, f->help);
	}
}

static void add_examples(struct buf *b, const char *examples)
{
	buf_add_str(b, ".SH EXAMPLES\n.nf\n");
	add_text(b, examples);
	buf_add_str(b, ".fi\n");
}

static void add_verbs(struct buf *b, const struct verb *const *list)
{
	char path[VERB_PATH_SIZE];

	for (size_t i = 0; list[i]; i++) {
		if (list[i]->group == VERB_HIDDEN)
			continue;
		buf_addf(b, ".TP\n\\fB%s\\fR\n", verb_path(list[i], ' ', path));
		add_text(b, list[i]->summary);
	}
}

static void page_of_verb(struct buf *b, const struct verb *v)
{
	char words[VERB_PATH_SIZE], dashed[VERB_PATH_SIZE];
	scoped_free char *page = xasprintf("limactl-%s", verb_path(v, '-', dashed));
	scoped_free char *usage = xasprintf("`limactl %s` %s", verb_path(v, ' ', words), v->usage);

	add_head(b, page, v->summary);
	buf_add_str(b, ".SH SYNOPSIS\n");
	add_text(b, usage);
	if (v->text) {
		buf_add_str(b, ".SH DESCRIPTION\n");
		add_text(b, v->text);
	}
	if (v->verbs) {
		buf_add_str(b, ".SH COMMANDS\n");
		add_verbs(b, v->verbs);
	}
	buf_add_str(b, ".SH OPTIONS\n");
	for (size_t i = 0; v->flags && v->flags[i]; i++)
		add_flags(b, v->flags[i]);
	add_flags(b, global_flags);
	if (v->examples)
		add_examples(b, v->examples);
	buf_add_str(b, ".SH EXIT STATUS\n");
	add_text(b, v == &verb_shell ? "That of the command in the guest; 255 when ssh fails; 1 when "
				       "limactl does."
				     : "0 on success, 1 on failure, 128 + N when ended by signal N.");
	buf_add_str(b, ".SH SEE ALSO\n\\fBlimactl\\fR(1)");
	if (v->parent)
		buf_addf(b, ",\n\\fBlimactl\\-%s\\fR(1)", v->parent->name);
	for (size_t i = 0; v->verbs && v->verbs[i]; i++)
		buf_addf(b, ",\n\\fBlimactl\\-%s\\-%s\\fR(1)", v->name, v->verbs[i]->name);
	buf_add_u8(b, '\n');
}

static void page_of_all(struct buf *b)
{
	add_head(b, "limactl", "Linux virtual machines for developers");
	buf_add_str(b, ".SH SYNOPSIS\n\\fBlimactl\\fR COMMAND [FLAGS] [ARGUMENTS]\n.SH DESCRIPTION\n");
	add_text(b, "Runs Linux guests under QEMU and makes every port that listens in a guest answer "
		    "on the host's localhost. `limactl start` creates and starts the instance "
		    "`default`; `limactl shell default` opens a shell in it.");
	buf_add_str(b, ".SH COMMANDS\n");
	add_verbs(b, verbs);
	buf_add_str(b, ".SH OPTIONS\n");
	add_flags(b, global_flags);
	buf_add_str(b, ".SH FILES\n.TP\n\\fI~/.lima\\fR\n");
	add_text(b, "Instances and configuration; $LIMA_HOME overrides it.");
	buf_add_str(b, ".TP\n\\fI~/.cache/lima\\fR\n");
	add_text(b, "Downloaded and built images.");
	buf_add_str(b, ".SH SEE ALSO\n");
	for (size_t i = 0; verbs[i]; i++)
		if (verbs[i]->group != VERB_HIDDEN)
			buf_addf(b, "%s\\fBlimactl\\-%s\\fR(1)", i ? ",\n" : "", verbs[i]->name);
	buf_add_str(b, ",\n\\fBqemu\\fR(1)\n");
}

static int write_page(const char *dir, const char *name, const struct buf *b, struct error *err)
{
	scoped_free char *path = xasprintf("%s/%s.1", dir, name);

	return path_write_file(path, b->data, b->len, 0644, err);
}

static int write_pages(const char *dir, const struct verb *const *list, struct error *err)
{
	for (size_t i = 0; list[i]; i++) {
		char path[VERB_PATH_SIZE];
		scoped_buf struct buf b = { 0 };
		scoped_free char *name = xasprintf("limactl-%s", verb_path(list[i], '-', path));

		if (list[i]->group == VERB_HIDDEN)
			continue;
		page_of_verb(&b, list[i]);
		if (write_page(dir, name, &b, err) < 0 ||
		    (list[i]->verbs && write_pages(dir, list[i]->verbs, err) < 0))
			return err->code;
	}
	return 0;
}

int help_write_man(const char *dir, struct error *err)
{
	scoped_buf struct buf all = { 0 };

	if (path_mkdir_all(dir, 0755, err) < 0)
		return err->code;
	page_of_all(&all);
	if (write_page(dir, "limactl", &all, err) < 0)
		return err->code;
	return write_pages(dir, verbs, err);
}
