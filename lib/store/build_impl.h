/* build_impl.h - what the parts of the image builder share
 *
 * build.c keeps the cache and the order of things, build_spec.c reads locations
 * and makes keys, build_run.c finds and runs the programs, build_initrd.c makes
 * the initrd. What happens inside the image is told by the scripts in build/.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/child.h"
#include "lib/base/strv.h"
#include "lib/store/build.h"
#include "lib/store/digest.h"
#include "lib/store/embed.h"

extern const struct embed_file build_files[];
extern const size_t build_files_n;

/* What a killed build left: WORK, and the directory for mmdebstrap that WORK/tmpdir
 * names. The caller holds the entry's lock. */
void build_sweep(const char *work);

/* --- build_spec.c --- */

struct build_spec {
	char *suite;
	enum arch arch;
	const char *debian_arch;	/* "amd64" */
	const char *console;		/* "ttyS0" */
	struct strv packages;		/* all to install, sorted, once each */
};
void build_spec_done(struct build_spec *s);

/* -EINVAL when the location is malformed, -ENOTSUP for what cannot be built here. */
int build_spec_parse(const char *location, enum arch arch, struct build_spec *ret,
		     struct error *err);
/* Everything that goes into the image, one line each; readable, and digested: */
int build_spec_inputs(const struct build_spec *s, struct buf *ret, struct error *err);
/* hex sha256 of the inputs, the name of the cache entry. */
int build_spec_key(const struct buf *inputs, char out[DIGEST_TEXT_SIZE], struct error *err);
/* $LIMA_DEBIAN_MIRROR; NULL: mmdebstrap's own choice. */
const char *build_spec_mirror(void);

/* --- build_run.c --- */

/* One line that names every missing program by its Debian package, or what
 * keeps this user from making user namespaces. */
int build_run_check(struct error *err);
/* Where mmdebstrap makes its tree: it must be open to the users of the namespace,
 * so not below a closed home. A new directory with room; caller frees. */
int build_run_make_tmp(const char *key, char **ret, struct error *err);
/* mmdebstrap to WORK/rootfs.tar. */
int build_run_bootstrap(const struct build_spec *s, const char *work, const char *tmp,
			const struct progress *progress, struct error *err);
/* `sh WORK/files/SCRIPT WORK [ARG]` with the rights to keep owners. */
int build_run_script(const char *script, const char *work, const char *arg, struct error *err);
/* As path_remove_tree, also when other users of the namespace own what is in
 * there, and also while an interrupt is pending. */
void build_run_remove(const char *path);

/* --- build_initrd.c --- */

/* WORK/out/initrd from WORK/root and the kernel version in WORK/kernel-version. */
int build_initrd(const char *work, const char *kernel_version, struct error *err);
/* Modules (paths below the version's directory) to load for @wanted, in order;
 * @deps is the text of modules.dep. Names that are built in are skipped. */
void build_initrd_order(const char *deps, const char *const *wanted, struct strv *ret);
