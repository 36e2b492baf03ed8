/* path.h - files and directories, the careful way
 *
 * "Bad input loses nothing": a file is written under a temporary name in the
 * same directory, synced, and renamed over the old one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"

/* Whole file into @ret (0-terminated beyond len). More than @max_bytes is
 * -EFBIG; @ret untouched on failure. */
int path_read_file(const char *path, size_t max_bytes, struct buf *ret, struct error *err);

/* Writes @path atomically with @mode: PATH.tmp.PID, fsync, rename, fsync of the
 * directory. */
int path_write_file(const char *path, const void *data, size_t len, mode_t mode,
		    struct error *err);

/* mkdir -p; @mode for the last component, 0755 for the others. An existing
 * directory is success. */
int path_mkdir_all(const char *path, mode_t mode, struct error *err);

/* rm -rf that never follows symlinks and never leaves @path's directory tree.
 * A missing path is success. */
int path_remove_tree(const char *path, struct error *err);

bool path_exists(const char *path);

/* fsync of a directory, so that renames inside it last. */
int path_sync_dir(const char *path, struct error *err);

/* "~" and "~/x" with $HOME, otherwise a copy; caller frees. */
char *path_expand_home(const char *path);

/* Program @name looked up in $PATH and then in /usr/local/sbin, /usr/sbin and
 * /sbin (an unprivileged login has none of these in $PATH); a @name with a
 * slash is only checked. NULL when there is none; caller frees. */
char *path_find_program(const char *name);
