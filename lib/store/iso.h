/* iso.h - an ISO 9660 image with Rock Ridge, written by libarchive */
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "lib/base/error.h"

struct iso_file {
	const char *path;	/* inside the image, no leading slash; directories are made */
	const void *data;	/* content, or NULL and @source */
	size_t len;
	const char *source;	/* file on the host to take the content from */
	mode_t mode;		/* 0644, 0755 … */
};

/* Writes @path atomically, 0600. @label: volume id, e.g. "cidata". */
int iso_write(const char *path, const char *label, const struct iso_file *files, size_t n_files,
	      struct error *err);
