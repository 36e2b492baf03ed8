#include "cmd/limactl/shell_line.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

char *shell_line_quote(const char *s)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "0123456789_./:=@%^,+-";
	struct buf b = { 0 };

	if (*s && strspn(s, plain) == strlen(s))
		return xstrdup(s);
	buf_add_u8(&b, '\'');
	for (; *s; s++) {
		if (*s == '\'')
			buf_add_str(&b, "'\\''");
		else
			buf_add_u8(&b, (uint8_t)*s);
	}
	buf_add_u8(&b, '\'');
	return buf_steal_str(&b);
}

char *shell_line_workdir(const char *dir)
{
	scoped_free char *q = shell_line_quote(dir);

	return xasprintf("cd %s || exit 1", q);
}

static bool is_below(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	if (streq(dir, "/"))
		return true;
	return strncmp(path, dir, n) == 0 && (path[n] == 0 || path[n] == '/');
}

char *shell_line_cwd(const char *cwd, const struct config *config)
{
	for (size_t i = 0; i < config->n_mounts; i++) {
		const struct config_mount *m = &config->mounts[i];

		if (!is_below(cwd, m->location))
			continue;
		scoped_free char *in_guest = xasprintf("%s%s", m->mount_point, cwd + strlen(m->location));
		scoped_free char *q = shell_line_quote(in_guest);
		return xasprintf("cd %s 2>/dev/null || cd", q);
	}
	return xstrdup(":");
}

/* NAME=VALUE with a name that a shell would take as an assignment. */
static bool is_assignment(const char *s)
{
	const char *eq = strchr(s, '=');

	if (!eq || eq == s || isdigit((unsigned char)*s))
		return false;
	for (; s < eq; s++)
		if (!isalnum((unsigned char)*s) && *s != '_')
			return false;
	return true;
}

static void add_words(struct buf *b, char *const *words, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		scoped_free char *q = shell_line_quote(words[i]);

		buf_addf(b, "%s%s", i ? " " : "", q);
	}
}

/* What a login bash does before the command. */
#define LOGIN_BASH                                                                     \
	"eval 'if [ -r /etc/profile ]; then . /etc/profile; fi; "                          \
	"if [ -r ~/.bash_profile ]; then . ~/.bash_profile; "                              \
	"elif [ -r ~/.bash_login ]; then . ~/.bash_login; "                                \
	"elif [ -r ~/.profile ]; then . ~/.profile; fi'"

enum { TWICE_MAX = 4096 };	/* bytes of a command that may stand in the line twice */

static bool is_bash(const char *shell)
{
	const char *slash = shell ? strrchr(shell, '/') : NULL;

	return slash && streq(slash + 1, "bash");
}

char *shell_line_build(const char *cd, const char *shell, char *const *command, size_t n)
{
	scoped_free char *quoted_shell = shell && *shell ? shell_line_quote(shell) : xstrdup("\"$SHELL\"");
	scoped_buf struct buf words = { 0 };
	struct buf b = { 0 };
	size_t env = 0;
	bool in_place;

	while (env < n && is_assignment(command[env]))
		env++;
	add_words(&words, command + env, n - env);
	in_place = is_bash(shell) && env == 0 && n > 0 && words.len <= TWICE_MAX;
	buf_addf(&b, "%s ; ", cd);
	if (in_place)
		buf_addf(&b, "[ \"$SHELL\" = %s ] || ", quoted_shell);
	buf_add_str(&b, "exec ");
	if (env) {
		buf_add_str(&b, "env ");
		add_words(&b, command, env);
		buf_add_u8(&b, ' ');
	}
	buf_addf(&b, "%s -l", quoted_shell);
	if (n > env) {
		scoped_free char *q = shell_line_quote(buf_str(&words));
		buf_addf(&b, " -c %s", q);
	}
	if (in_place)
		buf_addf(&b, " ; " LOGIN_BASH " ; %s", buf_str(&words));
	return buf_steal_str(&b);
}
