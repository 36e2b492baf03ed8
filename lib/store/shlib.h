/* shlib.h - shared libraries loaded when they are first needed
 *
 * limactl must start in a few milliseconds, and most verbs neither fetch, nor
 * unpack, nor hash. Measured on a 2-core machine, median of 60 starts of an
 * empty program: 0.5 ms plain, 1.2 with libcrypto, 2.3 with libarchive, 4.4
 * with libcurl (30 libraries behind it). So these three are not linked but
 * opened here, behind a table of function pointers typed from their headers.
 *
 * A user writes a struct of pointers, a table of SHLIB_SYM rows, and calls
 * shlib_load() before each use: it does its work once and is cheap after.
 * Not for two threads at once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "lib/base/error.h"

struct shlib_symbol {
	const char *name;
	size_t offset; /* of the pointer in the user's struct */
};

/* SHLIB_SYM(struct curl_api, easy_init, curl_easy_init) */
#define SHLIB_SYM(type, field, symbol) { #symbol, offsetof(type, field) }

struct shlib {
	const char *const *sonames;	/* tried in order, NULL-terminated */
	const char *package;		/* for the message: "libcurl4" */
	const struct shlib_symbol *symbols;
	size_t n_symbols;
	void *table;			/* the struct of pointers, filled on success */
	bool loaded;
};

int shlib_load(struct shlib *lib, struct error *err);
