/* scoped.h - locals that clean up after themselves
 *
 *	scoped_free char *path = xasprintf("%s/lock", dir);
 *	scoped_fd int fd = open(path, …);
 *	…
 *	s->fd = steal_fd(&fd);
 *
 * Every pointer and descriptor has one owner; a local gives it up by
 * steal_ptr/steal_fd. A type with its own free function gets its attribute by
 * SCOPED_DEFINE next to that function.
 */
#pragma once

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void scoped_free_ptr(void *pp)
{
	free(*(void **)pp);
}

static inline void scoped_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void scoped_close_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void scoped_close_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define scoped_free __attribute__((cleanup(scoped_free_ptr)))
#define scoped_fd   __attribute__((cleanup(scoped_close_fd)))
#define scoped_file __attribute__((cleanup(scoped_close_file)))
#define scoped_dir  __attribute__((cleanup(scoped_close_dir)))

/* SCOPED_DEFINE(config, struct config, config_free) makes `scoped_config`
 * possible: #define scoped_config SCOPED(config) */
#define SCOPED_DEFINE(name, type, free_fn)          \
	static inline void scoped_##name##_fn(type **p) \
	{                                               \
		if (*p)                                     \
			free_fn(*p);                            \
	}
#define SCOPED(name) __attribute__((cleanup(scoped_##name##_fn)))

#define steal_ptr(pp)                    \
	({                                   \
		__typeof__(*(pp)) stolen = *(pp); \
		*(pp) = NULL;                    \
		stolen;                          \
	})

static inline int steal_fd(int *fd)
{
	int stolen = *fd;

	*fd = -1;
	return stolen;
}
