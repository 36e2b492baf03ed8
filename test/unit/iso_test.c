#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"
#include "lib/store/iso.h"

#define LONG_NAME "a-name-longer-than-ISO-level-2-allows.with.dots_and-Case.sh"

static char tmp[] = "/tmp/lima-iso-XXXXXX";
static char *source;

static int setup(void **state)
{
	struct error err;

	if (!mkdtemp(tmp))
		return -1;
	source = xasprintf("%s/source", tmp);
	return path_write_file(source, "from a file", 11, 0600, &err);
}

static int teardown(void **state)
{
	struct error err;

	free(source);
	return path_remove_tree(tmp, &err);
}

static const struct expect {
	const char *path, *text;
	mode_t mode;
} expected[] = {
	{ "boot.Linux", NULL, S_IFDIR | 0755 },
	{ "boot.Linux/" LONG_NAME, "#!/bin/sh\n", S_IFREG | 0755 },
	{ "empty", "", S_IFREG | 0644 },
	{ "lima-guestagent", "from a file", S_IFREG | 0755 },
	{ "lima.env", "A=b\n", S_IFREG | 0600 },
	{ "provision.system", NULL, S_IFDIR | 0755 },
	{ "provision.system/00000000", "x", S_IFREG | 0755 },
	{ "provision.system/00000001", "y", S_IFREG | 0755 },
	{ "user-data", "#cloud-config\n", S_IFREG | 0644 },
};

static const struct expect *find_expected(const char *path)
{
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++)
		if (streq(expected[i].path, path))
			return &expected[i];
	return NULL;
}

static void write_sample(const char *path)
{
	const struct iso_file files[] = {
		{ .path = "user-data", .data = "#cloud-config\n", .len = 14, .mode = 0644 },
		{ .path = "lima.env", .data = "A=b\n", .len = 4, .mode = 0600 },
		{ .path = "boot.Linux/" LONG_NAME, .data = "#!/bin/sh\n", .len = 10, .mode = 0755 },
		{ .path = "provision.system/00000000", .data = "x", .len = 1, .mode = 0755 },
		{ .path = "provision.system/00000001", .data = "y", .len = 1, .mode = 0755 },
		{ .path = "empty", .mode = 0644 },
		{ .path = "lima-guestagent", .source = source, .mode = 0755 },
	};
	struct error err = ERROR_NONE;

	if (iso_write(path, "cidata", files, ARRAY_SIZE(files), &err) < 0)
		fail_msg("%s", err.msg);
}

static void check_entry(struct archive *a, struct archive_entry *e)
{
	const struct expect *want = find_expected(archive_entry_pathname(e));
	char text[64] = "";

	if (!want)
		fail_msg("%s should not be there", archive_entry_pathname(e));
	assert_int_equal(archive_entry_mode(e), want->mode);
	assert_int_equal(archive_entry_uid(e), 0);
	assert_int_equal(archive_entry_mtime(e), 946684800);
	if (!want->text)
		return;
	assert_int_equal(archive_entry_size(e), strlen(want->text));
	assert_int_equal(archive_read_data(a, text, sizeof(text) - 1), strlen(want->text));
	assert_string_equal(text, want->text);
}

static void test_iso_names_modes_and_content(void **state)
{
	scoped_free char *path = xasprintf("%s/a.iso", tmp);
	struct archive *a = archive_read_new();
	struct archive_entry *e;
	struct stat st;
	size_t n = 0;

	write_sample(path);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	archive_read_support_format_iso9660(a);
	assert_int_equal(archive_read_open_filename(a, path, 65536), ARCHIVE_OK);
	while (archive_read_next_header(a, &e) == ARCHIVE_OK) {
		if (streq(archive_entry_pathname(e), "."))
			continue;
		check_entry(a, e);
		n++;
	}
	assert_int_equal(n, ARRAY_SIZE(expected));
	archive_read_free(a);
}

static void test_iso_label_is_lower_case(void **state)
{
	scoped_free char *path = xasprintf("%s/a.iso", tmp);
	scoped_buf struct buf b = { 0 };
	struct error err;

	write_sample(path);
	assert_true(disk_is_iso(path));
	assert_false(disk_is_iso(source));
	assert_int_equal(path_read_file(path, 1 << 20, &b, &err), 0);
	/* ECMA-119 8.4: volume identifier at 40 of sector 16 */
	assert_memory_equal(b.data + 16 * 2048 + 40, "cidata                          ", 32);
}

static void test_iso_missing_source_leaves_nothing(void **state)
{
	scoped_free char *path = xasprintf("%s/b.iso", tmp);
	scoped_free char *left = xasprintf("%s.tmp.%d", path, (int)getpid());
	const struct iso_file file = { .path = "x", .source = "/does/not/exist", .mode = 0644 };
	struct error err = ERROR_NONE;

	assert_int_equal(iso_write(path, "cidata", &file, 1, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/does/not/exist: no such file"));
	assert_false(path_exists(path));
	assert_false(path_exists(left));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_iso_names_modes_and_content),
		cmocka_unit_test(test_iso_label_is_lower_case),
		cmocka_unit_test(test_iso_missing_source_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
