/* main.c - from argv into the verb table */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/help.h"
#include "cmd/limactl/verb.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

/* The position of the verb in argv: the first word that is neither a flag nor
 * the value of one. 0: there is none. */
static int find_verb(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (argv[i][0] != '-')
			return i;
		if (streq(argv[i], "--log-level") || streq(argv[i], "--log-format"))
			i++;
	}
	return 0;
}

static int setup_log(const struct args *a, struct error *err)
{
	const char *level = args_str(a, "log-level"), *format = args_str(a, "log-format");
	enum log_level l = args_bool(a, "debug", false) ? LOG_DEBUG : LOG_INFO;
	enum log_format f = LOG_FORMAT_PLAIN;

	if (level && *level && !log_level_parse(level, &l))
		return error_set(err, -1, "--log-level: `%s` is none of trace, debug, info, warn, error",
				 level);
	if (format && streq(format, "json"))
		f = LOG_FORMAT_JSON;
	else if (format && streq(format, "text"))
		f = LOG_FORMAT_TEXT;
	else if (format)
		return error_set(err, -1, "--log-format: `%s` is neither text nor json", format);
	if (args_bool(a, "tty", false) && args_bool(a, "yes", false))
		return error_set(err, -1, "--tty and --yes contradict each other");
	log_setup(l, f);
	return 0;
}

static int run_verb(const struct verb *v, int argc, char **argv)
{
	scoped_args struct args a = { 0 };
	struct error err = { 0 };

	if (args_parse(v, argc, argv, &a, &err) < 0 || setup_log(&a, &err) < 0) {
		log_write(LOG_FATAL, "%s", err.msg);
		return 1;
	}
	if (args_bool(&a, "help", false)) {
		help_verb(stdout, v);
		return 0;
	}
	return v->run(&a);
}

static int print_version(void)
{
	puts("limactl version " LIMA_VERSION);
	return 0;
}

static int no_verb(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (streq(argv[i], "--version") || streq(argv[i], "-v"))
			return print_version();
		if (!streq(argv[i], "--help") && !streq(argv[i], "-h") && argv[i][0] == '-' &&
		    !streq(argv[i], "--debug") && !streq(argv[i], "-y")) {
			log_write(LOG_FATAL, "unknown flag: %s; see: limactl --help", argv[i]);
			return 1;
		}
	}
	help_overview(stdout);
	return 0;
}

int main(int argc, char **argv)
{
	scoped_strv struct strv rest = { 0 };
	const struct verb *v;
	int at;

	log_setup(LOG_INFO, LOG_FORMAT_PLAIN);
	at = find_verb(argc, argv);
	if (!at)
		return no_verb(argc, argv);
	v = verb_find(argv[at]);
	if (!v) {
		const char *near = help_nearest(argv[at]);

		log_write(LOG_FATAL, "unknown command `%s`%s%s%s; see: limactl --help", argv[at],
			  near ? ", did you mean `" : "", near ? near : "", near ? "`?" : "");
		return 1;
	}
	for (int i = 1; i < argc; i++)
		if (i != at)
			strv_add(&rest, argv[i]);
	return run_verb(v, (int)rest.len, rest.items);
}
