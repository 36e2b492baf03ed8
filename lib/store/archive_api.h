/* archive_api.h - libarchive, loaded when first needed (shlib.h)
 *
 * The functions that unpacking (decompress.c) and the seed (iso.c) use, typed
 * from archive.h. Names are those of libarchive without "archive_".
 */
#pragma once

#include <archive.h>
#include <archive_entry.h>

#include "lib/base/error.h"

#define ARCHIVE_API(X)                                                                 \
	X(error_string) X(filter_bytes)                                    \
	X(read_new) X(read_free) X(read_open_fd) X(read_support_filter_gzip)           \
	X(read_support_filter_bzip2) X(read_support_filter_xz)                         \
	X(read_support_filter_zstd) X(read_support_format_raw) X(read_next_header)     \
	X(read_data_block)                                                             \
	X(write_new) X(write_free) X(write_close) X(write_set_format_iso9660)          \
	X(write_set_options) X(write_open_fd) X(write_header) X(write_data)            \
	X(entry_new) X(entry_free) X(entry_clear) X(entry_set_pathname)                \
	X(entry_set_mode) X(entry_set_size) X(entry_set_mtime) X(entry_set_atime)      \
	X(entry_set_ctime)                       X(entry_set_uid) X(entry_set_gid)    \
	X(entry_set_nlink)

struct archive_api {
#define X(name) __typeof__(archive_##name) *name;
	ARCHIVE_API(X)
#undef X
};

/* NULL with @err when libarchive is not there. Valid for the process's life. */
const struct archive_api *archive_api_load(struct error *err);
