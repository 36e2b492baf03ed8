#include "lib/store/build.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/build_impl.h"
#include "lib/store/layout.h"

enum {
	WORK_BYTES_NEEDED = 1600 << 20,	/* two of: tar, tree, raw image, qcow2; 370 MiB each */
	LOCK_POLL_MS = 200,
};

/* One entry of the cache, build/KEY; made as build/KEY.tmp/out and renamed, under
 * the flock of build/KEY.lock. */
struct entry {
	char *base;		/* …/build */
	char *dir, *work, *out;
	int lock_fd;
};

static void entry_init(struct entry *e, const char *key)
{
	scoped_free char *cache = layout_cache_dir();

	e->base = xasprintf("%s/build", cache);
	e->dir = xasprintf("%s/%s", e->base, key);
	e->work = xasprintf("%s.tmp", e->dir);
	e->out = xasprintf("%s/out", e->work);
	e->lock_fd = -1;
}

static void entry_done(struct entry *e)
{
	free(e->base);
	free(e->dir);
	free(e->work);
	free(e->out);
	if (e->lock_fd >= 0)
		close(e->lock_fd);
}

void build_result_done(struct build_result *r)
{
	free(r->disk);
	free(r->kernel);
	free(r->initrd);
	free(r->cmdline);
	*r = (struct build_result){ 0 };
}

/* --- the cache --------------------------------------------------------------- */

/* -ENOENT when the entry is not complete (it is then no entry). */
static int load_entry(const struct entry *e, struct build_result *ret, struct error *err)
{
	struct build_result r = { .disk = xasprintf("%s/disk.qcow2", e->dir),
				  .kernel = xasprintf("%s/kernel", e->dir),
				  .initrd = xasprintf("%s/initrd", e->dir), .cached = true };
	scoped_free char *cmdline = xasprintf("%s/cmdline", e->dir);
	scoped_buf struct buf b = { 0 };

	if (!path_exists(r.disk) || !path_exists(r.kernel) || !path_exists(r.initrd) ||
	    path_read_file(cmdline, 4096, &b, err) < 0) {
		build_result_done(&r);
		return error_set(err, -ENOENT, "%s: not built", e->dir);
	}
	b.data[strcspn(buf_str(&b), "\n")] = 0;
	r.cmdline = xstrdup(buf_str(&b));
	*ret = r;
	return 0;
}

static int lock_entry(struct entry *e, const struct progress *progress, struct error *err)
{
	scoped_free char *path = xasprintf("%s.lock", e->dir);

	e->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (e->lock_fd < 0)
		return error_sys(err, -errno, "open %s", path);
	while (flock(e->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return error_sys(err, -errno, "lock %s", path);
		if (interrupt_check(err) < 0)
			return err->code;
		progress_update(progress, "waiting for another build of this image", 0, 0);
		poll(NULL, 0, LOCK_POLL_MS);
	}
	return 0;
}

void build_sweep(const char *work)
{
	scoped_free char *note = xasprintf("%s/tmpdir", work);
	scoped_buf struct buf b = { 0 };
	struct stat st;

	if (path_read_file(note, 4096, &b, &(struct error){ 0 }) == 0) {
		const char *tmp = buf_str(&b), *base = strrchr(tmp, '/');

		if (base && strncmp(base, "/lima-build-", 12) == 0 && lstat(tmp, &st) == 0 &&
		    S_ISDIR(st.st_mode) && st.st_uid == geteuid())
			build_run_remove(tmp);
	}
	if (path_exists(work))
		build_run_remove(work);
}

/* The same for other entries whose builder is gone. */
static void sweep_others(const struct entry *e)
{
	scoped_dir DIR *dir = opendir(e->base);
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		size_t len = strlen(de->d_name);
		scoped_free char *work = xasprintf("%s/%s", e->base, de->d_name);
		scoped_free char *lock = NULL;
		scoped_fd int fd = -1;

		if (len < 5 || !streq(de->d_name + len - 4, ".tmp") || streq(work, e->work))
			continue;
		lock = xasprintf("%.*s.lock", (int)(strlen(work) - 4), work);
		fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			build_sweep(work);
	}
}

/* --- building ------------------------------------------------------------------ */

static int check_room(const struct entry *e, struct error *err)
{
	struct statvfs v;

	if (statvfs(e->base, &v) < 0)
		return error_sys(err, -errno, "statvfs %s", e->base);
	if ((uint64_t)v.f_bavail * v.f_frsize < WORK_BYTES_NEEDED)
		return error_set(err, -ENOSPC,
				 "%s has %llu MiB free, building takes %d; free some, or set "
				 "XDG_CACHE_HOME", e->base,
				 (unsigned long long)v.f_bavail * v.f_frsize >> 20,
				 WORK_BYTES_NEEDED >> 20);
	return 0;
}

static int write_work_files(const struct entry *e, struct error *err)
{
	scoped_free char *files = xasprintf("%s/files", e->work);

	if (path_mkdir_all(e->work, 0755, err) < 0 || path_mkdir_all(files, 0755, err) < 0 ||
	    path_mkdir_all(e->out, 0755, err) < 0)
		return err->code;
	for (size_t i = 0; i < build_files_n; i++) {
		scoped_free char *path = xasprintf("%s/%s", files, build_files[i].name);

		if (path_write_file(path, build_files[i].data, embed_len(&build_files[i]), 0644,
				    err) < 0)
			return err->code;
	}
	return 0;
}

static int bootstrap(const struct entry *e, const struct build_spec *spec, const char *key,
		     const struct progress *progress, struct error *err)
{
	scoped_free char *note = xasprintf("%s/tmpdir", e->work);
	scoped_free char *tmp = NULL;
	int rc;

	if (build_run_make_tmp(key, &tmp, err) < 0)
		return err->code;
	rc = path_write_file(note, tmp, strlen(tmp), 0600, err);
	if (rc == 0)
		rc = build_run_bootstrap(spec, e->work, tmp, progress, err);
	build_run_remove(tmp);
	return rc;
}

/* The one kernel's version: assemble.sh wrote what lies in /usr/lib/modules. */
static int read_kernel_version(const struct entry *e, char **ret, struct error *err)
{
	scoped_free char *path = xasprintf("%s/kernel-version", e->work);
	scoped_buf struct buf b = { 0 };
	scoped_strv struct strv versions = { 0 };

	if (path_read_file(path, 4096, &b, err) < 0)
		return err->code;
	strv_split(&versions, buf_str(&b), "\n");
	if (versions.len != 1)
		return error_set(err, -EINVAL,
				 "the packages bring %zu kernels instead of one; leave kernels out "
				 "of `include`", versions.len);
	*ret = xstrdup(versions.items[0]);
	return 0;
}

static int take_kernel(const struct entry *e, const char *version, struct error *err)
{
	static const char *const names[] = { "vmlinuz", "vmlinux" };
	scoped_free char *to = xasprintf("%s/kernel", e->out);

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		scoped_free char *from = xasprintf("%s/root/boot/%s-%s", e->work, names[i],
						   version);
		scoped_buf struct buf b = { 0 };

		if (!path_exists(from))
			continue;
		if (path_read_file(from, 256 << 20, &b, err) < 0)
			return err->code;
		return path_write_file(to, b.data, b.len, 0644, err);
	}
	return error_set(err, -ENOENT, "no kernel %s in the image's /boot", version);
}

/* net.ifnames=0: the card is eth0 from the start, without udev's renaming.
 * panic=3: a machine that fell over starts again instead of standing still. Seen
 * once in 30 boots under TCG with a CPU without rdrand: the kernel patches its
 * text when the random pool is ready, while the other CPU runs it. */
static int write_cmdline(const struct entry *e, const struct build_spec *spec,
			 const struct buf *inputs, struct error *err)
{
	scoped_free char *path = xasprintf("%s/cmdline", e->out);
	scoped_free char *inputs_path = xasprintf("%s/inputs", e->out);
	scoped_free char *text = xasprintf("root=LABEL=lima-root rw console=%s quiet "
					   "systemd.show_status=no net.ifnames=0 panic=3\n",
					   spec->console);

	if (path_write_file(inputs_path, inputs->data, inputs->len, 0644, err) < 0)
		return err->code;
	return path_write_file(path, text, strlen(text), 0644, err);
}

static int sync_file(const char *path, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return error_sys(err, -errno, "sync %s", path);
	return 0;
}

static int convert(const struct entry *e, struct error *err)
{
	scoped_free char *raw = xasprintf("%s/disk.raw", e->work);
	scoped_free char *qcow2 = xasprintf("%s/disk.qcow2", e->out);
	const char *argv[] = { "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2",
			       raw, qcow2, NULL };
	struct child_spec spec = { .argv = argv, .own_group = true };
	scoped_child_result struct child_result r = { 0 };

	if (child_run_ok(&spec, &r, err) < 0)
		return err->code;
	return sync_file(qcow2, err);
}

static int assemble(const struct entry *e, const struct build_spec *spec,
		    const struct progress *progress, struct error *err)
{
	scoped_free char *version = NULL;
	scoped_free char *mke2fs = path_find_program("mke2fs");
	scoped_free char *what = xasprintf("building %s: assembling the image", spec->suite);

	progress_update(progress, what, 80, 100);
	if (build_run_script("assemble.sh", e->work, NULL, err) < 0 ||
	    read_kernel_version(e, &version, err) < 0 || take_kernel(e, version, err) < 0 ||
	    build_initrd(e->work, version, err) < 0)
		return err->code;
	progress_update(progress, what, 88, 100);
	if (build_run_script("pack.sh", e->work, mke2fs, err) < 0)
		return err->code;
	progress_update(progress, what, 94, 100);
	return convert(e, err);
}

static int make_entry(const struct entry *e, const struct build_spec *spec, const char *key,
		      const struct buf *inputs, const struct progress *progress, struct error *err)
{
	if (check_room(e, err) < 0 || write_work_files(e, err) < 0 ||
	    bootstrap(e, spec, key, progress, err) < 0 || assemble(e, spec, progress, err) < 0 ||
	    write_cmdline(e, spec, inputs, err) < 0 || path_sync_dir(e->out, err) < 0)
		return err->code;
	if (rename(e->out, e->dir) < 0)
		return error_sys(err, -errno, "rename %s", e->dir);
	return path_sync_dir(e->base, err);
}

static int build_locked(const struct entry *e, const struct build_spec *spec, const char *key,
			const struct buf *inputs, const struct progress *progress,
			struct build_result *ret, struct error *err)
{
	int rc;

	if (load_entry(e, ret, err) == 0)	/* whoever held the lock has made it */
		return 0;
	*err = ERROR_NONE;
	build_run_remove(e->dir);		/* incomplete: it was meddled with */
	build_sweep(e->work);
	sweep_others(e);
	rc = build_run_check(err);
	if (rc == 0)
		rc = make_entry(e, spec, key, inputs, progress, err);
	build_sweep(e->work);
	if (rc < 0)
		return rc;
	progress_update(progress, "building: done", 100, 100);
	if (load_entry(e, ret, err) < 0)
		return err->code;
	ret->cached = false;
	return 0;
}

/* The name of the entry, and what it is the digest of. */
static int entry_key(const struct build_spec *spec, struct buf *ret_inputs, char ret[DIGEST_TEXT_SIZE],
		     struct error *err)
{
	if (build_spec_inputs(spec, ret_inputs, err) < 0)
		return err->code;
	return build_spec_key(ret_inputs, ret, err);
}

int build_entry_dir(const char *location, enum arch arch, char **ret, struct error *err)
{
	scoped_buf struct buf inputs = { 0 };
	char key[DIGEST_TEXT_SIZE];
	struct build_spec spec;
	struct entry e;
	int rc = build_spec_parse(location, arch, &spec, err);

	if (rc < 0)
		return rc;
	rc = entry_key(&spec, &inputs, key, err);
	build_spec_done(&spec);
	if (rc < 0)
		return rc;
	entry_init(&e, key);
	*ret = steal_ptr(&e.dir);
	entry_done(&e);
	return 0;
}

static int build_spec_image(const struct build_spec *spec, const struct progress *progress,
			    struct build_result *ret, struct error *err)
{
	scoped_buf struct buf inputs = { 0 };
	char key[DIGEST_TEXT_SIZE];
	struct entry e;
	int rc;

	if (entry_key(spec, &inputs, key, err) < 0)
		return err->code;
	entry_init(&e, key);
	rc = load_entry(&e, ret, err);
	if (rc < 0) {
		*err = ERROR_NONE;
		rc = path_mkdir_all(e.base, 0755, err);
		if (rc == 0)
			rc = lock_entry(&e, progress, err);
		if (rc == 0)
			rc = build_locked(&e, spec, key, &inputs, progress, ret, err);
	}
	entry_done(&e);
	return rc;
}

int build_image(const char *location, enum arch arch, const struct progress *progress,
		struct build_result *ret, struct error *err)
{
	struct build_spec spec;
	int rc = build_spec_parse(location, arch, &spec, err);

	if (rc < 0)
		return rc;
	rc = build_spec_image(&spec, progress, ret, err);
	build_spec_done(&spec);
	return rc < 0 && rc != -ECANCELED ? error_wrap(err, "build %s", location) : rc;
}
