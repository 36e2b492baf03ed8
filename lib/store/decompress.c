#include "lib/store/decompress.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/store/archive_api.h"
#include "lib/store/sparse.h"

/* RFC 1952 2.3.1, bzip2's "BZh", xz file format 2.1.1.1, RFC 8878 3.1.1 */
static const struct {
	const char *name, *suffix, *magic;
	size_t magic_len;
} kinds[] = {
	[COMPRESSION_NONE] = { "none", "", "", 0 },
	[COMPRESSION_GZIP] = { "gzip", ".gz", "\x1f\x8b", 2 },
	[COMPRESSION_BZIP2] = { "bzip2", ".bz2", "BZh", 3 },
	[COMPRESSION_XZ] = { "xz", ".xz",
			     "\xfd"
			     "7zXZ\0",
			     6 },
	[COMPRESSION_ZSTD] = { "zstd", ".zst", "\x28\xb5\x2f\xfd", 4 },
};
static_assert(ARRAY_SIZE(kinds) == COMPRESSION_COUNT, "a row for every compression");

const char *compression_name(enum compression c)
{
	assert(c < COMPRESSION_COUNT);
	return kinds[c].name;
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && streq(s + n - m, suffix);
}

int decompress_probe(const char *path, const char *name, enum compression *ret, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	enum compression found = COMPRESSION_NONE;
	char head[8] = "";

	if (fd < 0 || pread(fd, head, sizeof(head), 0) < 0)
		return error_sys(err, -errno, "read %s", path);
	for (enum compression c = COMPRESSION_GZIP; c < COMPRESSION_COUNT; c++) {
		if (memcmp(head, kinds[c].magic, kinds[c].magic_len) == 0)
			found = c;
		else if (name && has_suffix(name, kinds[c].suffix))
			return error_set(err, -EBADMSG, "`%s` is called %s but is not %s data",
					 name, kinds[c].suffix, kinds[c].name);
	}
	*ret = found;
	return 0;
}

static int archive_error(const struct archive_api *api, struct archive *a, const char *path,
			 struct error *err)
{
	const char *text = api->error_string(a);

	return error_set(err, -EBADMSG, "unpack %s: %s", path, text ? text : "damaged");
}

static int unpack(const struct archive_api *api, struct archive *a, const char *from,
		  uint64_t from_bytes, struct sparse *out, const char *what,
		  const struct progress *progress, struct error *err)
{
	for (;;) {
		const void *block;
		size_t len;
		la_int64_t offset;
		int rc = api->read_data_block(a, &block, &len, &offset);

		if (interrupt_check(err) < 0)
			return err->code;
		if (rc == ARCHIVE_EOF)
			return 0;
		if (rc != ARCHIVE_OK)
			return archive_error(api, a, from, err);
		if (sparse_write(out, (uint64_t)offset, block, len, err) < 0)
			return err->code;
		progress_update(progress, what, (uint64_t)api->filter_bytes(a, -1), from_bytes);
	}
}

/* The raw format: one entry, the data behind the filters. */
static int open_raw(const struct archive_api *api, struct archive *a, int fd, const char *path,
		    struct error *err)
{
	struct archive_entry *entry;

	api->read_support_filter_gzip(a);
	api->read_support_filter_bzip2(a);
	api->read_support_filter_xz(a);
	api->read_support_filter_zstd(a);
	api->read_support_format_raw(a);
	if (api->read_open_fd(a, fd, 256 << 10) != ARCHIVE_OK ||
	    api->read_next_header(a, &entry) != ARCHIVE_OK)
		return archive_error(api, a, path, err);
	return 0;
}

int decompress_file(const char *from, const char *to, const char *what,
		    const struct progress *progress, struct error *err)
{
	const struct archive_api *api = archive_api_load(err);
	scoped_sparse struct sparse out = SPARSE_NONE;
	scoped_fd int fd = open(from, O_RDONLY | O_CLOEXEC);
	struct archive *a;
	struct stat st;
	int rc;

	if (!api)
		return error_wrap(err, "unpack %s", from);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_sys(err, -errno, "open %s", from);
	if (sparse_open(&out, to, err) < 0)
		return err->code;
	a = api->read_new();
	rc = open_raw(api, a, fd, from, err);
	if (rc == 0)
		rc = unpack(api, a, from, (uint64_t)st.st_size, &out, what, progress, err);
	api->read_free(a);
	return rc < 0 ? rc : sparse_commit(&out, out.end, err);
}
