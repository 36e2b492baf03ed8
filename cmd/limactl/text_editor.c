#include "cmd/limactl/text_editor.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/scoped.h"

enum { MAX_BYTES = 4 << 20 };

static const char header_end[] = "# --- what stands above this line is not kept ---\n";

static int find_editor(char **ret, struct error *err)
{
	static const char *const usual[] = { "editor", "vim", "vi", "nano", "emacs" };
	static const char *const variables[] = { "VISUAL", "EDITOR" };

	for (size_t i = 0; i < ARRAY_SIZE(variables); i++) {
		const char *value = getenv(variables[i]);

		if (value && *value) {
			*ret = xstrdup(value);
			return 0;
		}
	}
	for (size_t i = 0; i < ARRAY_SIZE(usual); i++) {
		*ret = path_find_program(usual[i]);
		if (*ret)
			return 0;
	}
	return error_set(err, -ENOENT, "no editor found: set EDITOR, or change single keys with flags");
}

/* $EDITOR may carry arguments, so a shell reads it. Ctrl-C in the editor is the
 * editor's. */
static int run_editor(const char *editor, const char *path, struct error *err)
{
	scoped_free char *command = xasprintf("%s \"$1\"", editor);
	struct sigaction ignore = { .sa_handler = SIG_IGN }, before;
	int status = 0;
	pid_t pid;

	sigaction(SIGINT, &ignore, &before);
	pid = fork();
	if (pid == 0) {
		signal(SIGINT, SIG_DFL);
		signal(SIGPIPE, SIG_DFL);
		execl("/bin/sh", "sh", "-c", command, "sh", path, NULL);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	sigaction(SIGINT, &before, NULL);
	if (pid < 0)
		return error_set(err, -EAGAIN, "start `%s`: no new process could be made", editor);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return error_set(err, -ECANCELED, "the editor `%s` failed, nothing was changed", editor);
	return 0;
}

static bool is_blank(const char *s)
{
	while (isspace((unsigned char)*s))
		s++;
	return !*s;
}

static int edit_file(const char *path, const char *header, struct buf *text, struct error *err)
{
	scoped_free char *editor = NULL;
	scoped_buf struct buf b = { 0 };
	const char *end;

	buf_addf(&b, "%s%s%s", header, header_end, buf_str(text));
	if (find_editor(&editor, err) < 0 || path_write_file(path, b.data, b.len, 0600, err) < 0 ||
	    run_editor(editor, path, err) < 0)
		return err->code;
	buf_reset(&b);
	if (path_read_file(path, MAX_BYTES, &b, err) < 0)
		return err->code;
	end = strstr(buf_str(&b), header_end);
	if (end)
		buf_consume(&b, (size_t)(end - buf_str(&b)) + strlen(header_end));
	if (is_blank(buf_str(&b)))
		return error_set(err, -ECANCELED, "nothing is left of it, so nothing was changed");
	buf_done(text);
	*text = b;
	b = (struct buf){ 0 };
	return 0;
}

int text_editor_run(const char *header, struct buf *text, struct error *err)
{
	const char *base = getenv("TMPDIR");
	scoped_free char *dir = xasprintf("%s/lima-editor-XXXXXX", base && *base ? base : "/tmp");
	struct error ignored;
	int rc;

	if (!mkdtemp(dir))
		return error_sys(err, -errno, "mkdir %s", dir);
	/* of that name, so that the editor knows the language */
	scoped_free char *path = xasprintf("%s/lima.yaml", dir);
	rc = edit_file(path, header, text, err);
	path_remove_tree(dir, &ignored);
	return rc;
}
