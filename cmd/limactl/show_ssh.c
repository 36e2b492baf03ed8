/* show_ssh.c - how to reach an instance with one's own ssh */
#include <errno.h>
#include <stdio.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/shell_line.h"
#include "hostagent/ssh.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "format", 'f', FLAG_STRING, "FORMAT", "cmd (the default), args, options or config", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* All that ssh needs to know, so that any host name will do. */
static void add_options(struct strv *argv, const struct ssh_target *t)
{
	ssh_add_options(argv, t, SSH_MUX);
	strv_add(argv, "-o");
	strv_addf(argv, "Hostname=%s", t->host);
	strv_add(argv, "-o");
	strv_addf(argv, "Port=%u", t->port);
}

/* On one line, to be read by a shell. */
static void print_words(const struct strv *words)
{
	const char *word;

	strv_foreach(word, words) {
		scoped_free char *quoted = shell_line_quote(word);

		printf("%s%s", word_i ? " " : "", quoted);
	}
	putchar('\n');
}

static int show_cmd(const struct ssh_target *t, struct error *err)
{
	scoped_strv struct strv argv = { 0 };

	if (ssh_add_program(&argv, err) < 0)
		return err->code;
	add_options(&argv, t);
	strv_take(&argv, layout_hostname(t->instance));
	print_words(&argv);
	return 0;
}

static int show_args(const struct ssh_target *t, struct error *err)
{
	scoped_strv struct strv argv = { 0 };

	add_options(&argv, t);
	print_words(&argv);
	return 0;
}

static int show_options(const struct ssh_target *t, struct error *err)
{
	scoped_strv struct strv argv = { 0 };

	add_options(&argv, t);
	for (size_t i = 0; i + 1 < argv.len; i++)
		if (streq(argv.items[i], "-o"))
			puts(argv.items[++i]);
	return 0;
}

static int show_config(const struct ssh_target *t, struct error *err)
{
	scoped_free char *text = NULL;

	if (ssh_config_text(t, &text, err) < 0)
		return err->code;
	fputs(text, stdout);
	return 0;
}

static const struct {
	const char *format;
	int (*show)(const struct ssh_target *t, struct error *err);
} formats[] = {
	{ "cmd", show_cmd }, { "args", show_args }, { "options", show_options }, { "config", show_config },
};

static int find_format(const char *name, size_t *ret, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (streq(name, formats[i].format)) {
			*ret = i;
			return 0;
		}
	}
	return error_set(err, -EINVAL, "--format: `%s` is none of cmd, args, options, config", name);
}

static int show(const struct instance *inst, const char *format, struct error *err)
{
	struct ssh_target t;
	size_t which = 0;
	int rc;

	if (find_format(format, &which, err) < 0)
		return err->code;
	if (!inst->config)
		return error_set(err, -EIO, "instance `%s` is broken: %s", inst->name,
				 inst->errors.len ? inst->errors.items[0] : "no reason known");
	if (!inst->ssh_local_port)
		return error_set(err, -ESRCH, "instance `%s` has no ssh port yet; start it with: "
				 "limactl start %s", inst->name, inst->name);
	ssh_target_init(&t, inst->lima_home, inst->name, inst->dir, inst->config, inst->ssh_local_port);
	rc = formats[which].show(&t, err);
	ssh_target_done(&t);
	return rc;
}

static int run(const struct args *a)
{
	const char *format = args_str(a, "format");
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	struct error err = { 0 };

	if (instance_arg_open(a->positional.items[0], &home, &inst, &err) < 0 ||
	    show(inst, format ? format : "cmd", &err) < 0)
		return verb_fail(&err);
	return 0;
}

const struct verb verb_show_ssh = {
	.name = "show-ssh",
	.group = VERB_ADVANCED,
	.usage = "INSTANCE",
	.summary = "show how to reach an instance with ssh",
	.text = "As a command line (cmd), its arguments without the host name (args), KEY=VALUE lines\n"
		"(options), or what belongs into ~/.ssh/config (config). Shorter, and right also when the port\n"
		"changes: ssh -F ~/.lima/INSTANCE/ssh.config lima-INSTANCE, or in ~/.ssh/config the line\n"
		"Include ~/.lima/*/ssh.config",
	.examples = "  limactl show-ssh default\n  limactl show-ssh --format config default >> ~/.ssh/config",
	.flags = (const struct flag *const[]){ flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run,
};
