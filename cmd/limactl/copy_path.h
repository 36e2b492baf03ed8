/* copy_path.h - what an argument of `limactl copy` names: INSTANCE:PATH, or a file here */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct copy_path {
	const char *given;	/* for messages; borrowed */
	char *instance;		/* NULL: here */
	char *path;		/* "": the guest user's home */
};
/* As scp has it: what stands before a colon is no host when it has a slash, so
 * ./a:b is a file here; neither is it when no instance can be called so. */
void copy_path_parse(const char *given, struct copy_path *ret);
void copy_path_done(struct copy_path *p);

/* Tells ssh how to reach the instances among @paths; caller frees. They stand first, as
 * ssh takes the first that fits and a.b has the host name of a-b. The others follow:
 * another copy between other two may use the same file. */
char *copy_path_ssh_config(const char *home, const struct copy_path *paths, size_t n);

/* The path without slashes at its end, or with exactly one. / stays as it is. */
void copy_path_trim(struct copy_path *p, bool slash);
