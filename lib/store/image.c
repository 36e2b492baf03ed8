#include "lib/store/image.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/store/build.h"
#include "lib/store/decompress.h"
#include "lib/store/digest.h"
#include "lib/store/disk.h"
#include "lib/store/download.h"
#include "lib/store/layout.h"
#include "lib/store/sparse.h"

/* What an image consists of, in the order of moving in place; disk last. */
static const enum instance_file parts[] = { FILE_KERNEL,     FILE_INITRD, FILE_KERNEL_CMDLINE,
					    FILE_IMAGE_NAME, FILE_ISO,    FILE_DISK };

struct prepare {
	const struct config *config;
	const struct progress *progress;
	const char *dir;         /* instance directory */
	char *stage;             /* prepare.tmp in it */
	struct strv unreachable; /* servers that did not answer: not asked again */
	bool fetched;            /* something came from the network or was built */
};

void image_info_done(struct image_info *info)
{
	free(info->name);
	*info = (struct image_info){ 0 };
}

/* Last component of a URL or path, without query; caller frees. */
static char *file_name_of(const char *location)
{
	size_t len = strcspn(location, "?#");
	const char *start = location + len;

	while (start > location && start[-1] != '/')
		start--;
	return xstrndup(start, (size_t)(location + len - start));
}

char *image_name(const char *location)
{
	static const char *const suffixes[] = { ".gz",    ".bz2", ".xz",  ".zst",
						".qcow2", ".img", ".raw", ".iso" };
	char *name;

	if (build_is_location(location))
		return xstrndup(location, strcspn(location, "?"));
	name = file_name_of(location);
	for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
		size_t n = strlen(name), m = strlen(suffixes[i]);

		if (n > m && streq(name + n - m, suffixes[i]))
			name[n - m] = 0;
	}
	return name;
}

/* "https://host:port" of a URL; caller frees. */
static char *server_of(const char *url)
{
	const char *host = strstr(url, "://") + 3;

	return xstrndup(url, (size_t)(host - url) + strcspn(host, "/?#"));
}

static char *stage_file(const struct prepare *p, enum instance_file f)
{
	return layout_instance_file(p->stage, f);
}

/* --- one file ------------------------------------------------------------- */

static int download(struct prepare *p, const struct config_file *file, const char *name,
		    char **ret_path, struct error *err)
{
	scoped_download struct download d = { 0 };
	scoped_free char *what = xasprintf("downloading %s", name);
	scoped_free char *server = server_of(file->location);

	if (strv_contains(&p->unreachable, server))
		return error_set(err, -ENETUNREACH, "%s did not answer a moment ago", server);
	if (download_fetch(file->location, file->digest, what, p->progress, &d, err) < 0) {
		if (err->code == -ENETUNREACH)
			strv_add(&p->unreachable, server);
		return err->code;
	}
	p->fetched |= !d.cached;
	*ret_path = steal_ptr(&d.path);
	return 0;
}

/* Path of a local @file, which is checked if a digest is given. */
static int find_local(struct prepare *p, const struct config_file *file, const char *name,
		      char **ret_path, struct error *err)
{
	const char *location = file->location;
	scoped_free char *path = NULL, *what = xasprintf("checking %s", name);
	struct stat st;

	if (strncmp(location, "file://", 7) == 0)
		location += 7;
	else if (strstr(location, "://"))
		return error_set(
			err, -EINVAL,
			"`%s`: only http, https, file, mmdebstrap and paths can be fetched",
			location);
	path = path_expand_home(location);
	if (path[0] != '/')
		return error_set(err, -EINVAL, "`%s`: a local image needs an absolute path", path);
	if (stat(path, &st) < 0)
		return error_sys(err, -errno, "%s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s is not a file", path);
	if (file->digest && digest_verify_file(path, file->digest, what, p->progress, err) < 0)
		return err->code;
	*ret_path = steal_ptr(&path);
	return 0;
}

static int copy(struct prepare *p, const char *from, enum instance_file to, const char *name,
		struct error *err)
{
	scoped_free char *path = stage_file(p, to);
	scoped_free char *what = xasprintf("copying %s", name);
	struct disk_info info;
	bool raw = false;

	if (to == FILE_DISK && disk_inspect(from, &info, err) == 0)
		raw = streq(info.format, "raw");
	return sparse_copy_file(from, path, raw, what, p->progress, err);
}

/* Brings @file to the stage as @to. */
static int bring(struct prepare *p, const struct config_file *file, enum instance_file to,
		 bool unpack, struct error *err)
{
	scoped_free char *name = file_name_of(file->location);
	scoped_free char *from = NULL, *path = stage_file(p, to), *what = NULL;
	enum compression kind = COMPRESSION_NONE;

	if ((download_is_url(file->location) ? download(p, file, name, &from, err)
					     : find_local(p, file, name, &from, err)) < 0)
		return err->code;
	if (unpack && decompress_probe(from, name, &kind, err) < 0)
		return err->code;
	if (kind == COMPRESSION_NONE)
		return copy(p, from, to, name, err);
	what = xasprintf("unpacking %s", name);
	return decompress_file(from, path, what, p->progress, err);
}

static int write_text(struct prepare *p, enum instance_file to, const char *text, struct error *err)
{
	scoped_free char *path = stage_file(p, to);

	return path_write_file(path, text, strlen(text), 0600, err);
}

/* --- one image -------------------------------------------------------------- */

static int stage_built(struct prepare *p, const struct config_image *img, struct error *err)
{
	struct build_result built = { 0 };
	int rc = build_image(img->file.location, p->config->arch, p->progress, &built, err);

	if (rc < 0)
		return rc;
	p->fetched |= !built.cached;
	if (copy(p, built.disk, FILE_DISK, "the disk", err) < 0 ||
	    copy(p, built.kernel, FILE_KERNEL, "the kernel", err) < 0 ||
	    copy(p, built.initrd, FILE_INITRD, "the initrd", err) < 0)
		rc = err->code;
	else
		rc = write_text(p, FILE_KERNEL_CMDLINE, built.cmdline, err);
	build_result_done(&built);
	return rc;
}

/* What lies at stage/disk came from elsewhere: an ISO becomes the CD beside an
 * empty disk; anything else must be a disk that keeps to itself. */
static int check_staged_disk(struct prepare *p, struct error *err)
{
	scoped_free char *disk = stage_file(p, FILE_DISK), *iso = stage_file(p, FILE_ISO);
	struct disk_info info;

	if (!disk_is_iso(disk))
		return disk_check_untrusted(disk, &info, err);
	if (rename(disk, iso) < 0)
		return error_sys(err, -errno, "rename %s", iso);
	return disk_create(disk, p->config->disk_bytes, err);
}

static int stage_fetched(struct prepare *p, const struct config_image *img, struct error *err)
{
	if (bring(p, &img->file, FILE_DISK, true, err) < 0 || check_staged_disk(p, err) < 0)
		return err->code;
	if (!img->kernel.location)
		return 0;
	if (bring(p, &img->kernel, FILE_KERNEL, true, err) < 0)
		return error_wrap(err, "kernel");
	if (img->initrd.location && bring(p, &img->initrd, FILE_INITRD, false, err) < 0)
		return error_wrap(err, "initrd");
	if (img->kernel_cmdline)
		return write_text(p, FILE_KERNEL_CMDLINE, img->kernel_cmdline, err);
	return 0;
}

static int reset_stage(struct prepare *p, struct error *err)
{
	if (path_remove_tree(p->stage, err) < 0)
		return err->code;
	return path_mkdir_all(p->stage, 0700, err);
}

static int stage_image(struct prepare *p, const struct config_image *img, struct error *err)
{
	scoped_free char *name = image_name(img->file.location);
	int rc;

	if (interrupt_check(err) < 0 || reset_stage(p, err) < 0)
		return err->code;
	rc = build_is_location(img->file.location) ? stage_built(p, img, err)
						   : stage_fetched(p, img, err);
	return rc < 0 ? rc : write_text(p, FILE_IMAGE_NAME, name, err);
}

static int move_part(struct prepare *p, enum instance_file part, struct error *err)
{
	scoped_free char *from = stage_file(p, part);
	scoped_free char *to = layout_instance_file(p->dir, part);

	return rename(from, to) < 0 ? error_sys(err, -errno, "rename %s", to) : 0;
}

/* Moves what the stage holds into the instance directory. Interrupted before
 * the disk is moved, the next call begins anew and replaces what is there. */
static int move_in_place(struct prepare *p, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		scoped_free char *staged = stage_file(p, parts[i]);
		scoped_free char *old = layout_instance_file(p->dir, parts[i]);

		if (!path_exists(staged))
			unlink(old); /* of an earlier, interrupted move */
		else if (move_part(p, parts[i], err) < 0)
			return err->code;
	}
	return path_sync_dir(p->dir, err);
}

/* --- the list ----------------------------------------------------------------- */

static bool same_text(const char *a, const char *b)
{
	return a && b ? streq(a, b) : a == b;
}

static bool is_candidate(const struct config_image *first, const struct config_image *img)
{
	return img->file.arch == first->file.arch && same_text(img->variant, first->variant) &&
	       same_text(img->arch_variant, first->arch_variant);
}

static const struct config_image *first_match(const struct config *config)
{
	for (size_t i = 0; i < config->n_images; i++)
		if (config->images[i].file.arch == config->arch && config->images[i].file.location)
			return &config->images[i];
	return NULL;
}

static const struct config_image *next_candidate(const struct config *config,
						 const struct config_image *first,
						 const struct config_image *after)
{
	for (const struct config_image *img = after + 1; img < config->images + config->n_images;
	     img++)
		if (img->file.location && is_candidate(first, img))
			return img;
	return NULL;
}

/* The next image would fail the same way, or the user wants no more. */
static bool is_hopeless(int code)
{
	return code == -ECANCELED || code == -ENOSPC || code == -EDQUOT;
}

static int try_images(struct prepare *p, struct error *err)
{
	const struct config_image *first = first_match(p->config), *next;
	scoped_buf struct buf failures = { 0 };

	if (!first)
		return error_set(err, -ENOENT, "images: none is for arch %s",
				 arch_name(p->config->arch));
	for (const struct config_image *img = first; img; img = next) {
		scoped_free char *name = image_name(img->file.location);
		int rc = stage_image(p, img, err);

		next = next_candidate(p->config, first, img);
		if (rc == 0)
			return 0;
		if (is_hopeless(rc) || (!next && !failures.len))
			return error_wrap(err, "image `%s`", name);
		if (next)
			progress_note(p->progress, "image `%s` failed: %s; trying the next one",
				      name, err->msg);
		buf_addf(&failures, "%s%s: %s", failures.len ? "; " : "", name, err->msg);
	}
	return error_set(err, err->code, "no image works: %s", buf_str(&failures));
}

/* An instance that Lima created and did not start has `image` and no disk, and
 * its kernel in place already. */
static int adopt_lima_image(struct prepare *p, const char *image, struct error *err)
{
	scoped_free char *staged = stage_file(p, FILE_DISK), *iso = stage_file(p, FILE_ISO);

	if (reset_stage(p, err) < 0)
		return err->code;
	if (rename(image, staged) < 0)
		return error_sys(err, -errno, "rename %s", image);
	if (check_staged_disk(p, err) < 0) {
		const char *left = path_exists(iso) ? iso : staged;

		if (rename(left, image) < 0)
			error_wrap(err, "%s is lost (%s)", image, error_text(-errno));
		return err->code;
	}
	if (path_exists(iso) && move_part(p, FILE_ISO, err) < 0)
		return err->code;
	return move_part(p, FILE_DISK, err);
}

static int fill(struct prepare *p, struct error *err)
{
	scoped_free char *image = layout_instance_file(p->dir, FILE_IMAGE);
	struct error ignored;
	int rc;

	if (path_exists(image))
		rc = adopt_lima_image(p, image, err);
	else
		rc = try_images(p, err) < 0 ? err->code : move_in_place(p, err);
	path_remove_tree(p->stage, &ignored);
	return rc;
}

static char *stored_name(const struct prepare *p)
{
	scoped_free char *path = layout_instance_file(p->dir, FILE_IMAGE_NAME);
	const struct config_image *first = first_match(p->config);
	scoped_buf struct buf b = { 0 };
	struct error err;

	if (path_read_file(path, 4096, &b, &err) == 0)
		return xstrdup(buf_str(&b));
	return first ? image_name(first->file.location) : xstrdup("");
}

int image_prepare(const char *instance_dir, const struct config *config,
		  const struct progress *progress, struct image_info *ret, struct error *err)
{
	scoped_free char *disk = layout_instance_file(instance_dir, FILE_DISK);
	scoped_free char *kernel = layout_instance_file(instance_dir, FILE_KERNEL);
	struct prepare p = { .config = config, .progress = progress, .dir = instance_dir };
	int rc;

	p.stage = layout_instance_file(instance_dir, FILE_PREPARE_DIR);
	rc = path_exists(disk) ? 0 : fill(&p, err);
	if (rc == 0)
		*ret = (struct image_info){
			.name = stored_name(&p),
			.cached = !p.fetched,
			.direct_kernel = path_exists(kernel),
		};
	strv_done(&p.unreachable);
	free(p.stage);
	return rc;
}
