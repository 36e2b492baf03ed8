/* copy.c - files to and from running instances
 *
 * Becomes scp or rsync, so that progress, signals and the exit code are theirs.
 * Both are told by an ssh.config how to reach `lima-NAME`: the instance's own,
 * or, when two instances take part, one that includes all.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/limactl/copy_path.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/shell_line.h"
#include "hostagent/ssh.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "backend", 0, FLAG_STRING, "NAME", "scp, rsync, or auto: rsync where both sides have it", false },
	{ "recursive", 'r', FLAG_BOOL, NULL, "directories with all that is in them", false },
	{ "verbose", 'v', FLAG_BOOL, NULL, "say more", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

struct copy {
	struct copy_path *paths;	/* the last is where to */
	size_t n;
	const char *remote;		/* an instance that takes part; borrowed */
	bool two_instances, from_remote, to_remote;
	bool recursive, verbose;
	char *config;			/* ssh.config to use */
};

static void copy_done(struct copy *c)
{
	for (size_t i = 0; i < c->n; i++)
		copy_path_done(&c->paths[i]);
	free(c->paths);
	free(c->config);
}

static int take_paths(struct copy *c, const struct args *a, struct error *err)
{
	c->n = a->positional.len;
	c->paths = xcalloc(c->n, sizeof(*c->paths));
	for (size_t i = 0; i < c->n; i++) {
		struct copy_path *p = &c->paths[i];

		copy_path_parse(a->positional.items[i], p);
		if (!p->instance)
			continue;
		if (c->remote && !streq(c->remote, p->instance))
			c->two_instances = true;
		c->remote = p->instance;
		if (i + 1 < c->n)
			c->from_remote = true;
		else
			c->to_remote = true;
	}
	if (!c->remote)
		return error_set(err, -EINVAL, "none of the paths is in an instance; write INSTANCE:PATH");
	return 0;
}

static int check_instances(const struct copy *c, char **ret_home, struct error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		scoped_instance struct instance *inst = NULL;
		scoped_free char *home = NULL;

		if (!c->paths[i].instance)
			continue;
		if (instance_arg_open(c->paths[i].instance, &home, &inst, err) < 0 ||
		    instance_arg_check_running(inst, err) < 0)
			return err->code;
		free(*ret_home);
		*ret_home = steal_ptr(&home);
	}
	return 0;
}

/* ssh_config(5): Include takes globs, and quotes around them. Not _config: no file includes
 * itself. */
static int choose_config(struct copy *c, const char *home, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(home, c->remote);
	scoped_free char *text = NULL;

	if (!c->two_instances) {
		c->config = layout_instance_file(dir, FILE_SSH_CONFIG);
		return 0;
	}
	c->config = layout_ssh_config(home);
	text = copy_path_ssh_config(home, c->paths, c->n);
	return path_write_file(c->config, text, strlen(text), 0600, err);
}

/* --- what rsync must know beforehand ----------------------------------------- */

enum { NO_RSYNC = 3, IS_DIR = 0, IS_NO_DIR = 1 };	/* exit codes of the question */

/* Has the guest rsync, and is @path a directory there? */
static int ask_guest(const struct copy *c, const struct copy_path *path, int *ret, struct error *err)
{
	scoped_free char *host = layout_hostname(path->instance);
	scoped_free char *quoted = shell_line_quote(*path->path ? path->path : ".");
	scoped_free char *line = xasprintf("command -v rsync >/dev/null || exit %d; test -d %s", NO_RSYNC,
					   quoted);
	scoped_child_result struct child_result r = { 0 };
	scoped_strv struct strv argv = { 0 };

	if (ssh_add_program(&argv, err) < 0)
		return err->code;
	strv_add_all(&argv, "-F", c->config, host, "--", line, NULL);
	if (child_run(&(struct child_spec){ .argv = (const char *const *)argv.items }, &r, err) < 0)
		return err->code;
	if (r.exit_code != IS_DIR && r.exit_code != IS_NO_DIR && r.exit_code != NO_RSYNC) {
		scoped_free char *first = xstrndup(buf_str(&r.err), strcspn(buf_str(&r.err), "\r\n"));
		scoped_free char *said = log_escape(first, 200);	/* the guest has a say in it */

		return error_set(err, -EIO, "ssh to instance `%s`: exit %d: %s", path->instance,
				 r.exit_code, said);
	}
	*ret = r.exit_code;
	return 0;
}

static int look(const struct copy *c, const struct copy_path *path, int *ret, struct error *err)
{
	struct stat st;

	if (path->instance)
		return ask_guest(c, path, ret, err);
	*ret = stat(path->path, &st) == 0 && S_ISDIR(st.st_mode) ? IS_DIR : IS_NO_DIR;
	return 0;
}

/* Where scp would put the directory itself: `rsync -a src dst` puts src below dst
 * also when there is no dst yet, and `src/` what is in it. @ret_usable false:
 * some side has no rsync. */
static int prepare_rsync(struct copy *c, bool *ret_usable, struct error *err)
{
	int to = IS_NO_DIR, from = IS_NO_DIR;

	if (look(c, &c->paths[c->n - 1], &to, err) < 0)
		return err->code;
	if (to == IS_NO_DIR && c->n > 2)	/* rsync would pour them into one */
		return error_set(err, -ENOTDIR, "`%s` is not a directory, and there are several to copy",
				 c->paths[c->n - 1].given);
	for (size_t i = 0; i + 1 < c->n; i++) {
		if (look(c, &c->paths[i], &from, err) < 0)
			return err->code;
		if (to == NO_RSYNC || from == NO_RSYNC)
			return 0;
		if (from == IS_DIR && !c->recursive)
			return error_set(err, -EISDIR, "`%s` is a directory; copy it with -r",
					 c->paths[i].given);
		copy_path_trim(&c->paths[i], from == IS_DIR && to == IS_NO_DIR);
	}
	*ret_usable = true;
	return 0;
}

/* --- the programs ------------------------------------------------------------ */

static void add_paths(struct strv *argv, const struct copy *c)
{
	strv_add(argv, "--");
	for (size_t i = 0; i < c->n; i++) {
		scoped_free char *host =
			c->paths[i].instance ? layout_hostname(c->paths[i].instance) : NULL;

		if (host)
			strv_addf(argv, "%s:%s", host, c->paths[i].path);
		else
			strv_add(argv, c->paths[i].path);
	}
}

static void scp_argv(const struct copy *c, struct strv *argv)
{
	strv_add_all(argv, "scp", "-F", c->config, NULL);
	if (c->from_remote && c->to_remote)
		strv_add(argv, "-3");	/* guests do not know each other's keys */
	if (c->recursive)
		strv_add(argv, "-r");
	if (c->verbose)
		strv_add(argv, "-v");
	add_paths(argv, c);
}

static int rsync_argv(const struct copy *c, struct strv *argv, struct error *err)
{
	scoped_strv struct strv ssh = { 0 };

	if (ssh_add_program(&ssh, err) < 0)
		return err->code;
	scoped_free char *program = strv_join(&ssh, " "), *config = shell_line_quote(c->config);
	strv_add_all(argv, "rsync", "-a", "-s", "-e", NULL);
	strv_addf(argv, "%s -F %s", program, config);	/* rsync(1) takes quotes in -e */
	if (c->verbose)
		strv_add_all(argv, "-v", "--progress", NULL);
	else
		strv_add(argv, "-q");
	add_paths(argv, c);
	return 0;
}

static int become(struct strv *argv, const char *package, struct error *err)
{
	scoped_free char *program = path_find_program(argv->items[0]);

	if (!program)
		return error_set(err, -ENOENT, "program `%s` not found: install it (apt install %s)",
				 argv->items[0], package);
	execv(program, argv->items);
	return error_sys(err, -errno, "exec %s", program);
}

static int with_rsync(struct copy *c, bool must, bool *ret_usable, struct error *err)
{
	scoped_free char *program = path_find_program("rsync");

	if (c->from_remote && c->to_remote)
		return must ? error_set(err, -EINVAL, "rsync cannot copy from one instance to another; "
					"use --backend scp") : 0;
	if (!program)
		return must ? error_set(err, -ENOENT, "program `rsync` not found: install it "
					"(apt install rsync)") : 0;
	if (prepare_rsync(c, ret_usable, err) < 0)
		return err->code;
	if (must && !*ret_usable)
		return error_set(err, -ENOENT, "instance `%s` has no rsync; install it there, or use "
				 "--backend scp", c->remote);
	return 0;
}

static int copy(struct copy *c, const char *backend, struct error *err)
{
	scoped_strv struct strv argv = { 0 };
	scoped_free char *home = NULL;
	bool rsync = false;

	if (!streq(backend, "auto") && !streq(backend, "scp") && !streq(backend, "rsync"))
		return error_set(err, -EINVAL, "--backend: `%s` is none of auto, scp, rsync", backend);
	if (check_instances(c, &home, err) < 0 || choose_config(c, home, err) < 0)
		return err->code;
	if (!streq(backend, "scp") && with_rsync(c, streq(backend, "rsync"), &rsync, err) < 0)
		return err->code;
	if (!rsync)
		scp_argv(c, &argv);
	else if (rsync_argv(c, &argv, err) < 0)
		return err->code;
	return become(&argv, rsync ? "rsync" : "openssh-client", err);
}

static int run(const struct args *a)
{
	struct copy c __attribute__((cleanup(copy_done))) = {
		.recursive = args_bool(a, "recursive", false),
		.verbose = args_bool(a, "verbose", false) || args_bool(a, "debug", false),
	};
	const char *backend = args_str(a, "backend");
	struct error err = { 0 };

	if (take_paths(&c, a, &err) == 0)
		copy(&c, backend ? backend : "auto", &err);
	return verb_fail(&err);
}

const struct verb verb_copy = {
	.name = "copy",
	.aliases = "cp",
	.group = VERB_ADVANCED,
	.usage = "SOURCE… TARGET",
	.summary = "copy files to and from running instances",
	.text = "INSTANCE:PATH is a path in an instance, below the guest user's home unless it begins with /;\n"
		"anything else is a path here (./a:b for a name with a colon). As with cp -r, a directory goes\n"
		"into TARGET when that is a directory, and becomes TARGET otherwise. The exit code is that of\n"
		"the program that copies.",
	.examples = "  limactl copy notes.txt default:\n"
		    "  limactl copy -r default:/var/log ./guest-log\n"
		    "  limactl copy web:/etc/hosts db:/tmp/hosts-of-web",
	.flags = (const struct flag *const[]){ flags, NULL },
	.min_args = 2,
	.max_args = -1,
	.arg = ARG_INSTANCE_FIRST,
	.run = run,
};
