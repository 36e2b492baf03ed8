/* embed.h - files of the source tree that are part of the program (cmake/embed.cmake) */
#pragma once

#include <stddef.h>

struct embed_file {
	const char *name;		/* "boot.Linux/25-guestagent.sh" */
	const char *data, *end;		/* followed by a 0 byte, so a text can be used as a string */
};

static inline size_t embed_len(const struct embed_file *f)
{
	return (size_t)(f->end - f->data);
}
