#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/decompress.h"
#include "lib/store/sparse.h"

/* 8 MiB with data at both ends and in the middle; the rest is zeros. */
enum { IMAGE_BYTES = (8 << 20) + 123, DATA_BYTES = 70000 };

static char tmp[] = "/tmp/lima-decompress-XXXXXX";
static uint8_t *image;

static char *in_tmp(const char *name)
{
	return xasprintf("%s/%s", tmp, name);
}

static int setup(void **state)
{
	unsigned seed = 1;

	image = xcalloc(1, IMAGE_BYTES);
	for (size_t i = 0; i < DATA_BYTES; i++) {
		seed = seed * 1103515245 + 12345;
		image[i] = image[(4 << 20) + 100 + i] = image[IMAGE_BYTES - 1 - i] =
			(uint8_t)(seed >> 16);
	}
	return mkdtemp(tmp) ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err;

	free(image);
	return path_remove_tree(tmp, &err);
}

static void compress(const char *path, int (*add_filter)(struct archive *), size_t len)
{
	struct archive *a = archive_write_new();
	struct archive_entry *e = archive_entry_new();

	assert_int_equal(archive_write_set_format_raw(a), ARCHIVE_OK);
	assert_int_equal(add_filter(a), ARCHIVE_OK);
	assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
	archive_entry_set_filetype(e, AE_IFREG);
	assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
	assert_int_equal(archive_write_data(a, image, len), len);
	assert_int_equal(archive_write_close(a), ARCHIVE_OK);
	archive_entry_free(e);
	archive_write_free(a);
}

static const struct {
	const char *name;
	enum compression kind;
	int (*add_filter)(struct archive *);
} kinds[] = {
	{ "x.img.gz", COMPRESSION_GZIP, archive_write_add_filter_gzip },
	{ "x.img.bz2", COMPRESSION_BZIP2, archive_write_add_filter_bzip2 },
	{ "x.img.xz", COMPRESSION_XZ, archive_write_add_filter_xz },
	{ "x.img.zst", COMPRESSION_ZSTD, archive_write_add_filter_zstd },
};

static void assert_is_image(const char *path)
{
	scoped_buf struct buf b = { 0 };
	struct error err;
	struct stat st;

	assert_int_equal(path_read_file(path, IMAGE_BYTES, &b, &err), 0);
	assert_int_equal(b.len, IMAGE_BYTES);
	assert_memory_equal(b.data, image, IMAGE_BYTES);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	if (st.st_blocks * 512 > 1 << 20)
		fail_msg("%s is not sparse: %ld bytes on disk", path, (long)st.st_blocks * 512);
}

static uint64_t last_done, last_total;

static void on_update(void *arg, const char *what, uint64_t done, uint64_t total)
{
	assert_true(done >= last_done && done <= total);
	last_done = done;
	last_total = total;
}

static void test_decompress_each_kind_is_whole_and_sparse(void **state)
{
	const struct progress progress = { .update = on_update };

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		scoped_free char *from = in_tmp(kinds[i].name), *to = in_tmp("out");
		struct error err = ERROR_NONE;
		enum compression kind;

		compress(from, kinds[i].add_filter, IMAGE_BYTES);
		assert_int_equal(decompress_probe(from, kinds[i].name, &kind, &err), 0);
		assert_int_equal(kind, kinds[i].kind);
		assert_int_equal(decompress_probe(from, NULL, &kind, &err), 0);
		assert_int_equal(kind, kinds[i].kind);
		last_done = last_total = 0;
		if (decompress_file(from, to, "x", &progress, &err) < 0)
			fail_msg("%s: %s", kinds[i].name, err.msg);
		assert_is_image(to);
		assert_int_equal(last_done, last_total);
		unlink(to);
	}
}

static void test_decompress_plain_file_is_none(void **state)
{
	scoped_free char *path = in_tmp("plain");
	struct error err = ERROR_NONE;
	enum compression kind;

	assert_int_equal(path_write_file(path, "x", 1, 0600, &err), 0);
	assert_int_equal(decompress_probe(path, "plain.qcow2", &kind, &err), 0);
	assert_int_equal(kind, COMPRESSION_NONE);
	assert_int_equal(decompress_probe(path, "plain.img.xz", &kind, &err), -EBADMSG);
	assert_string_equal(err.msg, "`plain.img.xz` is called .xz but is not xz data");
}

static void test_decompress_damaged_leaves_nothing(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		scoped_free char *from = in_tmp("cut"), *to = in_tmp("out");
		struct error err = ERROR_NONE;
		struct stat st;

		compress(from, kinds[i].add_filter, IMAGE_BYTES);
		assert_int_equal(stat(from, &st), 0);
		assert_int_equal(truncate(from, st.st_size / 2), 0);
		if (decompress_file(from, to, "x", NULL, &err) != -EBADMSG)
			fail_msg("%s: %d %s", kinds[i].name, err.code, err.msg);
		assert_false(path_exists(to));
	}
}

/* In a child: RLIMIT_FSIZE stands in for a full file system. */
static void run_limited(int (*fn)(struct error *err))
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		struct rlimit lim = { 1 << 20, 1 << 20 };
		struct error err = ERROR_NONE;

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &lim);
		_exit(fn(&err) == -EFBIG && strstr(err.msg, "write ") && !strchr(err.msg, '\n')
			      ? 0
			      : 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
}

static int decompress_limited(struct error *err)
{
	scoped_free char *from = in_tmp("x.img.gz"), *to = in_tmp("limited");

	return decompress_file(from, to, "x", NULL, err);
}

static int copy_limited(struct error *err)
{
	scoped_free char *from = in_tmp("full"), *to = in_tmp("limited");

	return sparse_copy_file(from, to, false, "x", NULL, err);
}

static void test_decompress_and_copy_without_space_leave_nothing(void **state)
{
	scoped_free char *limited = in_tmp("limited"), *full = in_tmp("full");
	scoped_free char *gz = in_tmp("x.img.gz");
	struct error err;

	compress(gz, archive_write_add_filter_gzip, IMAGE_BYTES);
	run_limited(decompress_limited);
	assert_false(path_exists(limited));
	assert_int_equal(path_write_file(full, image, IMAGE_BYTES, 0600, &err), 0);
	run_limited(copy_limited);
	assert_false(path_exists(limited));
}

static void test_sparse_space_is_checked_before(void **state)
{
	scoped_free char *path = in_tmp("x");
	struct error err = ERROR_NONE;

	assert_int_equal(sparse_check_space(path, 1, &err), 0);
	assert_int_equal(sparse_check_space(path, 1ULL << 60, &err), -ENOSPC);
	assert_non_null(strstr(err.msg, "no space left on device ("));
	assert_non_null(strstr(err.msg, "MiB free): make room there"));
}

static void test_sparse_copy_finds_zeros_and_keeps_holes(void **state)
{
	scoped_free char *full = in_tmp("full"), *a = in_tmp("a"), *b = in_tmp("b");
	struct error err = ERROR_NONE;

	assert_int_equal(path_write_file(full, image, IMAGE_BYTES, 0600, &err), 0);
	assert_int_equal(sparse_copy_file(full, a, true, "x", NULL, &err), 0);
	assert_is_image(a);
	assert_int_equal(sparse_copy_file(a, b, false, "x", NULL, &err), 0);
	assert_is_image(b);
	assert_int_equal(sparse_copy_file(a, b, false, "x", NULL, &err), -EEXIST);
	assert_is_image(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decompress_each_kind_is_whole_and_sparse),
		cmocka_unit_test(test_decompress_plain_file_is_none),
		cmocka_unit_test(test_decompress_damaged_leaves_nothing),
		cmocka_unit_test(test_decompress_and_copy_without_space_leave_nothing),
		cmocka_unit_test(test_sparse_space_is_checked_before),
		cmocka_unit_test(test_sparse_copy_finds_zeros_and_keeps_holes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
