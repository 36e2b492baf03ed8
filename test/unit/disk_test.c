#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/child.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"

/* A comma and a colon, which QEMU's option syntax takes for its own. */
static char tmp[] = "/tmp/lima,disk:x-XXXXXX";

enum { MIB = 1 << 20 };

static int setup(void **state)
{
	return mkdtemp(tmp) && chdir(tmp) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err;

	return path_remove_tree(tmp, &err);
}

static char *in_tmp(const char *name)
{
	return xasprintf("%s/%s", tmp, name);
}

/* Runs in tmp, so that names here are short and without odd characters. */
static void qemu_img(const char *args)
{
	scoped_free char *cmd = xasprintf("qemu-img %s >/dev/null", args);

	assert_int_equal(system(cmd), 0);
}

static void write_file(const char *name, const void *data, size_t len)
{
	struct error err;

	assert_int_equal(path_write_file(name, data, len, 0600, &err), 0);
}

static void test_disk_good_ones_pass(void **state)
{
	scoped_free char *qcow2 = in_tmp("good.qcow2"), *raw = in_tmp("good.raw");
	scoped_free char *old = in_tmp("old.qcow2");
	struct error err = ERROR_NONE;
	struct disk_info info;

	qemu_img("create -f qcow2 good.qcow2 64M");
	qemu_img("create -f qcow2 -o compat=0.10 old.qcow2 32M");
	qemu_img("create -f raw good.raw 3M");
	if (disk_check_untrusted(qcow2, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(info.format, "qcow2");
	assert_int_equal(info.virtual_bytes, 64 * MIB);
	assert_true(info.actual_bytes < MIB);
	assert_int_equal(disk_check_untrusted(old, &info, &err), 0);
	assert_int_equal(info.virtual_bytes, 32 * MIB);
	assert_int_equal(disk_check_untrusted(raw, &info, &err), 0);
	assert_string_equal(info.format, "raw");
	assert_int_equal(info.virtual_bytes, 3 * MIB);
}

static void refused(const char *name, const char *why)
{
	scoped_free char *path = in_tmp(name);
	struct error err = ERROR_NONE;
	struct disk_info info;

	if (disk_check_untrusted(path, &info, &err) >= 0)
		fail_msg("%s should be refused", name);
	if (!strstr(err.msg, why))
		fail_msg("%s: `%s` is not in `%s`", name, why, err.msg);
}

static void test_disk_that_names_other_files_is_refused(void **state)
{
	write_file("secret", "secret", 6);
	qemu_img("create -f qcow2 -u -b /etc/passwd -F raw backing.qcow2 1M");
	refused("backing.qcow2", "names another file of this machine");
	qemu_img("create -f qcow2 -o data_file=ext.raw,data_file_raw=on ext.qcow2 1M");
	refused("ext.qcow2", "names another file of this machine");
	/* nor is it opened later, when a guest wrote such a header into its disk */
	scoped_free char *path = in_tmp("ext.qcow2");
	struct error err = ERROR_NONE;
	assert_int_equal(disk_grow(path, 16 * MIB, &err), -EPERM);
}

static void test_disk_of_other_formats_is_refused(void **state)
{
	static const char *const formats[] = { "vmdk", "vdi", "vhdx", "qed", "qcow" };

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		scoped_free char *args = xasprintf("create -f %s x.%s 8M", formats[i], formats[i]);
		scoped_free char *name = xasprintf("x.%s", formats[i]);

		qemu_img(args);
		refused(name, streq(formats[i], "qcow") ? "version 1 is not supported"
							: "is not supported; convert it");
	}
	write_file("text.vmdk", "# Disk DescriptorFile\nversion=1\n", 32);
	refused("text.vmdk", "format vmdk is not supported");
}

static void test_disk_damaged_is_refused(void **state)
{
	uint8_t head[512] = "QFI\xfb\0\0\0\3";

	write_file("empty", "", 0);
	refused("empty", "the image is empty");
	write_file("page", "<html>Please log in</html>", 26);
	refused("page", "is no disk image: its 26 bytes");
	write_file("cut", head, 40);
	refused("cut", "cut off");
	write_file("bits", head, sizeof(head));
	refused("bits", "damaged (cluster bits 0)");
	head[23] = 16;
	head[31] = 1; /* 1 byte of disk, tables at 0 */
	head[35] = 1;
	write_file("crypt", head, sizeof(head));
	refused("crypt", "encrypted");
	head[35] = 0;
	head[79] = 1 << 6; /* an incompatible feature that nobody knows */
	head[103] = 104;
	write_file("future", head, sizeof(head));
	refused("future", "qemu-img");
	refused("missing", "no such file");
	refused(".", "is not a file");
}

static void test_disk_grows_and_never_shrinks(void **state)
{
	scoped_free char *path = in_tmp("grow.qcow2"), *raw = in_tmp("grow.raw");
	struct error err = ERROR_NONE;
	struct disk_info info;

	assert_int_equal(disk_create(path, 8 * MIB, &err), 0);
	if (disk_grow(path, 16 * MIB, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(disk_inspect(path, &info, &err), 0);
	assert_string_equal(info.format, "qcow2");
	assert_int_equal(info.virtual_bytes, 16 * MIB);
	assert_int_equal(disk_grow(path, 16 * MIB, &err), 0);
	assert_int_equal(disk_grow(path, 8 * MIB, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "shrink"));
	qemu_img("create -f raw grow.raw 1M");
	assert_int_equal(disk_grow(raw, 2 * MIB, &err), 0);
	assert_int_equal(disk_inspect(raw, &info, &err), 0);
	assert_int_equal(info.virtual_bytes, 2 * MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_disk_good_ones_pass),
		cmocka_unit_test(test_disk_that_names_other_files_is_refused),
		cmocka_unit_test(test_disk_of_other_formats_is_refused),
		cmocka_unit_test(test_disk_damaged_is_refused),
		cmocka_unit_test(test_disk_grows_and_never_shrinks),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
