/* main.c - from argv into the verb table */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

/* The position of the next word in argv after @from that is neither a flag nor
 * the value of a global one. 0: there is none. */
static int find_word(int argc, char **argv, int from)
{
	for (int i = from + 1; i < argc; i++) {
		if (argv[i][0] != '-')
			return i;
		if (streq(argv[i], "--log-level") || streq(argv[i], "--log-format"))
			i++;
	}
	return 0;
}

static int run_overview(const struct args *a)
{
	help_overview(stdout);
	return 0;
}

/* `limactl` with flags at most. */
static const struct verb no_verb = { .name = "", .usage = "COMMAND", .run = run_overview };

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
	if (args_bool(&a, "version", false)) {
		puts("limactl version " LIMA_VERSION);
		return 0;
	}
	if ((args_bool(&a, "help", false) && v != &no_verb) || !v->run) {
		help_verb(stdout, v);
		return 0;
	}
	return v->run(&a);
}

/* Descriptors 0, 1 and 2 exist and children can be waited for, however we were
 * started: otherwise the first file opened for writing would get our messages. */
static void put_process_in_order(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
	signal(SIGCHLD, SIG_DFL);
}

/* What a full disk or a closed descriptor swallowed must not look like success. */
static int check_output(int code)
{
	bool lost = ferror(stdout) != 0;

	if (fflush(stdout) == 0 && !lost)
		return code;
	log_write(LOG_FATAL, "write to stdout: %s; what was printed is not complete", strerror(errno));
	return code ? code : 1;
}

static void tell_unknown(const struct verb *const *list, const struct verb *parent, const char *word)
{
	const char *near = help_nearest(list, word), *of = parent ? parent->name : "";

	log_write(LOG_FATAL, "unknown command `%s%s%s`%s%s%s; see: limactl %s%s--help", of,
		  parent ? " " : "", word, near ? ", did you mean `" : "", near ? near : "",
		  near ? "`?" : "", of, parent ? " " : "");
}

/* The verb that argv names, word by word; NULL, told: there is no such verb.
 * What is left of argv goes to @rest. */
static const struct verb *find_verb(int argc, char **argv, struct strv *rest)
{
	const struct verb *const *list = verbs;
	const struct verb *v = NULL;
	int at = 0, from = 1;

	while (list && (at = find_word(argc, argv, at))) {
		const struct verb *next = verb_find(list, argv[at]);

		if (!next) {
			tell_unknown(list, v, argv[at]);
			return NULL;
		}
		for (; from < at; from++)
			strv_add(rest, argv[from]);
		from = at + 1;
		v = next;
		list = v->verbs;
	}
	for (; from < argc; from++)
		strv_add(rest, argv[from]);
	return v ? v : &no_verb;
}

int main(int argc, char **argv)
{
	scoped_strv struct strv rest = { 0 };
	const struct verb *v;

	put_process_in_order();
	log_setup(LOG_INFO, LOG_FORMAT_PLAIN);
	v = find_verb(argc, argv, &rest);
	return v ? check_output(run_verb(v, (int)rest.len, rest.items)) : 1;
}
