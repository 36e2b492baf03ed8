/* shell.c - a shell or a command in a running instance
 *
 * Becomes ssh, so that the terminal, signals and the exit code are ssh's own.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/shell_line.h"
#include "hostagent/ssh.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "instance", 0, FLAG_STRING, "NAME", "the instance; then every argument is the command's", true },
	{ "shell", 0, FLAG_STRING, "SHELL", "the shell to run instead of the user's", false },
	{ "workdir", 0, FLAG_STRING, "DIR", "the directory to start in", false },
	{ "reconnect", 0, FLAG_BOOL, NULL, "drop the shared ssh connection first", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* After `usermod -aG` in the guest only a new connection has the new groups. */
static void drop_master(const struct ssh_target *t)
{
	scoped_child_result struct child_result r = { 0 };
	scoped_free char *sock = layout_instance_file(t->dir, FILE_SSH_SOCK);
	scoped_strv struct strv argv = { 0 };
	struct error err = { 0 };

	if (!path_exists(sock) || ssh_add_program(&argv, &err) < 0)
		return;
	ssh_add_control(&argv, t, "exit", NULL);
	child_run(&(struct child_spec){ .argv = (const char *const *)argv.items }, &r, &err);
	unlink(sock); /* stale when nobody answered */
}

static char *working_directory(const struct args *a, const struct config *c)
{
	const char *dir = args_str(a, "workdir");
	scoped_free char *cwd = dir ? NULL : getcwd(NULL, 0);

	if (dir)
		return shell_line_workdir(dir);
	return shell_line_cwd(cwd ? cwd : "/", c);
}

static int run_ssh(const struct args *a, const struct instance *inst, struct error *err)
{
	scoped_free char *cd = working_directory(a, inst->config), *line = NULL;
	scoped_strv struct strv argv = { 0 };
	size_t skip = args_str(a, "instance") ? 0 : 1; /* the name */
	size_t n = a->positional.len - skip;
	char *const *command = a->positional.items + (n ? skip : 0);
	struct ssh_target t;

	if (n && streq(command[0], "--"))
		command++, n--;
	line = shell_line_build(cd, args_str(a, "shell") ? args_str(a, "shell") : inst->config->user.shell,
				command, n);
	ssh_target_init(&t, inst->lima_home, inst->name, inst->dir, inst->config, inst->ssh_local_port);
	if (args_bool(a, "reconnect", false))
		drop_master(&t);
	if (ssh_add_program(&argv, err) < 0) {
		ssh_target_done(&t);
		return err->code;
	}
	ssh_add_options(&argv, &t, SSH_MUX);
	if (isatty(STDOUT_FILENO))
		strv_add(&argv, "-t");
	if (getenv("COLORTERM"))
		strv_add_all(&argv, "-o", "SendEnv=COLORTERM", NULL);
	strv_add_all(&argv, "-o", "LogLevel=ERROR", NULL);
	ssh_add_destination(&argv, &t);
	strv_add_all(&argv, "--", line, NULL);
	ssh_target_done(&t);
	execvp(argv.items[0], argv.items);
	return error_sys(err, -errno, "exec %s", argv.items[0]);
}

static int run(const struct args *a)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	struct error err = { 0 };
	const char *name = args_str(a, "instance");

	if (!name && a->positional.len)
		name = a->positional.items[0];
	if (!name)
		error_set(&err, -EINVAL, "shell needs the name of an instance: limactl shell default");
	else if (instance_arg_open(name, &home, &inst, &err) == 0 && instance_arg_check_running(inst, &err) == 0)
		run_ssh(a, inst, &err);
	return verb_fail(&err);
}

const struct verb verb_shell = {
	.name = "shell",
	.group = VERB_BASIC,
	.usage = "[FLAGS] INSTANCE [COMMAND…]",
	.summary = "open a shell in an instance, or run a command there",
	.text = "Starts in the same directory as here when that is mounted in the guest, else in the guest\n"
		"user's home. Words of COMMAND are quoted for the guest's shell; leading NAME=VALUE words are\n"
		"put into its environment. The exit code is the command's.",
	.examples = "  limactl shell default\n"
		    "  limactl shell default uname -a\n"
		    "  limactl shell --workdir /tmp default sh -c 'echo $PWD'",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = -1,
	.stop_at_positional = true,
	.arg = ARG_INSTANCE,
	.run = run,
};
