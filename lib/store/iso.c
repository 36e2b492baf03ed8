#include "lib/store/iso.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/store/archive_api.h"

enum {
	SOURCE_MAX_BYTES = 256 << 20, /* the guest agent has 6 MB */
	FIXED_TIME = 946684800,       /* 2000-01-01T00:00:00Z, so that the same input gives
				       * the same files; the root directory has the time
				       * of writing, libarchive leaves no choice */

	/* ECMA-119 8.4: primary volume descriptor, in the 17th sector of 2048 */
	PVD_VOLUME_ID = 16 * 2048 + 40,
	PVD_VOLUME_ID_BYTES = 32, /* blanks behind */
};

struct iso {
	const struct archive_api *api;
	struct archive *a;
	struct archive_entry *entry;
	struct strv dirs; /* already in the image */
};

static int iso_error(struct iso *iso, const char *what, struct error *err)
{
	const char *text = iso->api->error_string(iso->a);

	return error_set(err, -EIO, "%s: %s", what, text ? text : "libarchive failed");
}

static int add_entry(struct iso *iso, const char *path, mode_t mode, const void *data, size_t len,
		     struct error *err)
{
	const struct archive_api *api = iso->api;
	struct archive_entry *e = api->entry_clear(iso->entry);

	api->entry_set_pathname(e, path);
	api->entry_set_mode(e, mode);
	api->entry_set_size(e, (la_int64_t)len);
	api->entry_set_uid(e, 0);
	api->entry_set_gid(e, 0);
	api->entry_set_nlink(e, 1);
	api->entry_set_mtime(e, FIXED_TIME, 0);
	api->entry_set_atime(e, FIXED_TIME, 0);
	api->entry_set_ctime(e, FIXED_TIME, 0);
	if (api->write_header(iso->a, e) != ARCHIVE_OK)
		return iso_error(iso, path, err);
	if (len && api->write_data(iso->a, data, len) != (la_ssize_t)len)
		return iso_error(iso, path, err);
	return 0;
}

/* The directories above @path that are not there yet. */
static int add_parents(struct iso *iso, const char *path, struct error *err)
{
	for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		scoped_free char *dir = xstrndup(path, (size_t)(slash - path));

		if (strv_contains(&iso->dirs, dir))
			continue;
		if (add_entry(iso, dir, S_IFDIR | 0755, NULL, 0, err) < 0)
			return err->code;
		strv_add(&iso->dirs, dir);
	}
	return 0;
}

static int add_file(struct iso *iso, const struct iso_file *file, struct error *err)
{
	scoped_buf struct buf content = { 0 };
	const void *data = file->data;
	size_t len = file->len;

	if (!data && file->source) {
		if (path_read_file(file->source, SOURCE_MAX_BYTES, &content, err) < 0)
			return err->code;
		data = content.data;
		len = content.len;
	}
	if (add_parents(iso, file->path, err) < 0)
		return err->code;
	return add_entry(iso, file->path, S_IFREG | (file->mode & 0777), data, len, err);
}

/* libarchive writes the label in upper case, as ECMA-119 wants it; but udev makes
 * /dev/disk/by-label/… of it as it is written, and guests look for "cidata". */
static int write_label(int fd, const char *label)
{
	char volume_id[PVD_VOLUME_ID_BYTES + 1];

	snprintf(volume_id, sizeof(volume_id), "%-*s", PVD_VOLUME_ID_BYTES, label);
	return pwrite(fd, volume_id, PVD_VOLUME_ID_BYTES, PVD_VOLUME_ID) < 0 ? -errno : 0;
}

static int write_image(struct iso *iso, int fd, const char *label, const struct iso_file *files,
		       size_t n_files, struct error *err)
{
	const struct archive_api *api = iso->api;
	/* strict: modes as they are, not what a CD-ROM would say; no Joliet: its
	 * label is cut and upper-cased, and some readers prefer it */
	scoped_free char *options = xasprintf(
		"iso9660:volume-id=%s,iso9660:rockridge=strict,iso9660:!joliet,iso9660:!pad",
		label);

	if (api->write_set_format_iso9660(iso->a) != ARCHIVE_OK ||
	    api->write_set_options(iso->a, options) != ARCHIVE_OK ||
	    api->write_open_fd(iso->a, fd) != ARCHIVE_OK)
		return iso_error(iso, "ISO 9660", err);
	for (size_t i = 0; i < n_files; i++)
		if (add_file(iso, &files[i], err) < 0)
			return err->code;
	if (api->write_close(iso->a) != ARCHIVE_OK)
		return iso_error(iso, "ISO 9660", err);
	return 0;
}

static int write_tmp(const char *tmp, const char *label, const struct iso_file *files,
		     size_t n_files, struct error *err)
{
	struct iso iso = { .api = archive_api_load(err) };
	scoped_fd int fd = -1;
	int rc;

	if (!iso.api)
		return err->code;
	unlink(tmp); /* of a process with our pid that died */
	fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_sys(err, -errno, "create %s", tmp);
	iso.a = iso.api->write_new();
	iso.entry = iso.api->entry_new();
	rc = write_image(&iso, fd, label, files, n_files, err);
	iso.api->entry_free(iso.entry);
	iso.api->write_free(iso.a);
	strv_done(&iso.dirs);
	if (rc < 0)
		return rc;
	rc = write_label(fd, label);
	return rc < 0 ? error_sys(err, rc, "write %s", tmp) : 0;
}

int iso_write(const char *path, const char *label, const struct iso_file *files, size_t n_files,
	      struct error *err)
{
	scoped_free char *tmp = xasprintf("%s.tmp.%d", path, (int)getpid());
	int rc = write_tmp(tmp, label, files, n_files, err);

	/* no fsync: the seed is written anew at every start */
	if (rc == 0 && rename(tmp, path) < 0)
		rc = error_sys(err, -errno, "rename %s", path);
	if (rc < 0) {
		unlink(tmp);
		return error_wrap(err, "write %s", path);
	}
	return 0;
}
