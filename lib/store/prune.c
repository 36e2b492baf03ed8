#include "lib/store/prune.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/scoped.h"
#include "lib/store/build_impl.h"
#include "lib/store/layout.h"

void prune_done(struct prune *p)
{
	strv_done(&p->keep);
}

static uint64_t bytes_of(char *path)
{
	char *const paths[] = { path, NULL };
	FTS *tree = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
	uint64_t bytes = 0;
	FTSENT *e;

	while (tree && (e = fts_read(tree)))
		if (e->fts_info != FTS_DP && e->fts_statp)
			bytes += (uint64_t)e->fts_statp->st_blocks * 512;
	if (tree)
		fts_close(tree);
	return bytes;
}

/* A kept download: what was begun and not finished goes all the same. */
static void remove_parts(const char *dir_path)
{
	scoped_dir DIR *dir = opendir(dir_path);
	struct dirent *de;

	while (dir && (de = readdir(dir)))
		if (strncmp(de->d_name, "data.part", 9) == 0 || strncmp(de->d_name, "data.tmp.", 9) == 0)
			unlinkat(dirfd(dir), de->d_name, 0);
}

static bool ends_with(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && streq(s + n - m, suffix);
}

/* Of a download the directory itself is locked, of a build KEY.lock beside it. */
static int open_lock(const char *path, bool build)
{
	size_t len = strlen(path) - (ends_with(path, ".tmp") ? strlen(".tmp") : 0);
	scoped_free char *lock = xasprintf("%.*s.lock", (int)len, path);

	if (!build)
		return open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return open(lock, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
}

static int prune_entry(struct prune *p, char *path, bool build, struct error *err)
{
	scoped_fd int lock = open_lock(path, build);
	uint64_t bytes;

	if (lock < 0)	/* a file that somebody put there, or gone since */
		return 0;
	if (flock(lock, LOCK_EX | LOCK_NB) < 0) {
		p->busy++;
		return 0;
	}
	if (strv_contains(&p->keep, path)) {
		remove_parts(path);
		return 0;
	}
	bytes = bytes_of(path);
	if (build && ends_with(path, ".tmp"))
		build_sweep(path);
	else if (path_remove_tree(path, err) < 0)
		return err->code;
	p->bytes += bytes;
	p->removed++;
	return 0;
}

static int prune_below(struct prune *p, const char *base, bool build, struct error *err)
{
	scoped_dir DIR *dir = opendir(base);
	struct dirent *de;

	if (!dir)
		return errno == ENOENT ? 0 : error_sys(err, -errno, "open %s", base);
	while ((de = readdir(dir))) {
		scoped_free char *path = xasprintf("%s/%s", base, de->d_name);

		if (de->d_name[0] == '.' || (build && ends_with(de->d_name, ".lock")))
			continue;
		if (interrupt_check(err) < 0 || prune_entry(p, path, build, err) < 0)
			return err->code;
	}
	return 0;
}

int prune_cache(struct prune *p, struct error *err)
{
	scoped_free char *cache = layout_cache_dir();
	scoped_free char *downloads = xasprintf("%s/download/by-url-sha256", cache);
	scoped_free char *builds = xasprintf("%s/build", cache);

	if (prune_below(p, downloads, false, err) < 0)
		return err->code;
	return prune_below(p, builds, true, err);
}
