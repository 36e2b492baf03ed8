/* shell_line.h - the line that the guest's shell is given (pure)
 *
 *	CD ; exec [env K=V…] SHELL -l [-c 'COMMAND']
 *
 * sshd passes it to the user's shell; exec makes the wanted one take its place, so
 * that only one process stays.
 *
 * For a command by bash, which is the default, this costs a second start of bash,
 * as much as half a plain ssh. There the line is
 *
 *	CD ; [ "$SHELL" = SHELL ] || exec SHELL -l -c 'COMMAND' ; eval 'PROFILE' ; COMMAND
 *
 * sshd sets $SHELL to the shell that reads the line, so where that is the wanted one
 * already, it reads what a login bash reads (bash(1), INVOCATION) and goes on. COMMAND
 * is words, each quoted, so it cannot see the difference. Other shells, csh and fish
 * too, can parse the line, and leave it at exec.
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
