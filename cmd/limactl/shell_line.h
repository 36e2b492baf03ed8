/* shell_line.h - the line that the guest's shell is given (pure)
 *
 *	CD ; exec [env K=V…] SHELL -l [-c 'COMMAND']
 *
 * as reference/cli.md §4 says. sshd passes it to the login shell; exec makes
 * the wanted one take its place, so that only one process stays.
 */
#pragma once

#include <stddef.h>

#include "lib/config/config.h"

/* @s as one word of a POSIX shell; caller frees. */
char *shell_line_quote(const char *s);
/* The CD part for --workdir: failing to enter it ends the command. */
char *shell_line_workdir(const char *dir);
/* The CD part for the host's @cwd: entered when it lies below a mount and is
 * there in the guest, otherwise the guest's home. Symlinks in @cwd were resolved
 * by getcwd(). */
char *shell_line_cwd(const char *cwd, const struct config *config);
/* @shell: "" or NULL for the user's own. @n 0: interactive. */
char *shell_line_build(const char *cd, const char *shell, char *const *command, size_t n);
