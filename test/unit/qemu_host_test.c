/* What the driver makes of the machine: KVM or not, firmware, MAC,
 * versions. Every fact comes from files the test wrote. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "drivers/driver.h"
#include "drivers/mac.h"
#include "drivers/qemu/accel.h"
#include "drivers/qemu/binary.h"
#include "drivers/qemu/endpoint.h"
#include "drivers/qemu/firmware.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[64];

static int make_dir(void **state)
{
	strcpy(dir, "/tmp/lima-qemu-host.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	struct error err;

	return path_remove_tree(dir, &err);
}

/* Writes @len bytes to DIR/@name and returns the path, which the next call but
 * three overwrites. */
static const char *put(const char *name, const void *data, size_t len)
{
	static char paths[4][256];
	static unsigned next;
	char *path = paths[next++ % 4];
	struct error err = ERROR_NONE;

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	scoped_free char *parent = xstrdup(path);
	*strrchr(parent, '/') = 0;
	assert_int_equal(path_mkdir_all(parent, 0755, &err), 0);
	assert_int_equal(path_write_file(path, data, len, 0600, &err), 0);
	return path;
}

static const char *put_text(const char *name, const char *text)
{
	return put(name, text, strlen(text));
}

/* --- KVM or TCG ------------------------------------------------------------- */

static int api_12(int fd)
{
	return 12;
}

static int api_none(int fd)
{
	return -1;
}

static int vm_ok(int fd)
{
	return 0;
}

static int vm_busy(int fd)
{
	return -EBUSY;
}

#define FLAGS_SVM   "processor\t: 0\nflags\t\t: fpu vme svm sse\n"
#define FLAGS_VMX   "processor\t: 0\nflags\t\t: fpu vmx\n"
#define FLAGS_NONE  "processor\t: 0\nflags\t\t: fpu vme svme avmx\nbugs\t: vmx\n"

static void test_accel_table(void **state)
{
	const char *kvm = put_text("kvm", "");
	const struct {
		enum arch guest, host;
		const char *cpuinfo;
		int (*api)(int fd);
		int (*vm)(int fd);
		enum qemu_accel_kind want;
		const char *reason;	/* part of it */
	} cases[] = {
		{ ARCH_X86_64, ARCH_X86_64, FLAGS_SVM, api_12, vm_ok, QEMU_KVM, "" },
		{ ARCH_X86_64, ARCH_X86_64, FLAGS_VMX, api_12, vm_ok, QEMU_KVM, "" },
		{ ARCH_AARCH64, ARCH_AARCH64, "", api_12, vm_ok, QEMU_KVM, "" },
		{ ARCH_X86_64, ARCH_X86_64, FLAGS_NONE, api_12, vm_ok, QEMU_TCG,
		  "exists but this CPU shows neither vmx nor svm" },
		{ ARCH_X86_64, ARCH_X86_64, "", api_12, vm_ok, QEMU_TCG, "neither vmx nor svm" },
		{ ARCH_X86_64, ARCH_X86_64, FLAGS_SVM, api_none, vm_ok, QEMU_TCG, "API version" },
		{ ARCH_X86_64, ARCH_X86_64, FLAGS_SVM, api_12, vm_busy, QEMU_TCG,
		  "another hypervisor" },
		{ ARCH_AARCH64, ARCH_X86_64, FLAGS_SVM, api_12, vm_ok, QEMU_TCG,
		  "the guest is aarch64, this machine x86_64" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct qemu_accel_probe probe = { cases[i].host, kvm, cases[i].api, cases[i].vm,
							put_text("cpuinfo", cases[i].cpuinfo) };
		struct qemu_accel got = qemu_accel_choose(cases[i].guest, &probe);

		assert_int_equal(got.kind, cases[i].want);
		assert_non_null(strstr(got.reason, cases[i].reason));
		assert_true((got.kind == QEMU_KVM) == !*got.reason);
	}
}

static void test_accel_says_why_kvm_does_not_open(void **state)
{
	struct qemu_accel_probe probe = { ARCH_X86_64, "/nonexistent/kvm", api_12, vm_ok,
					  put_text("cpuinfo", FLAGS_SVM) };

	assert_non_null(strstr(qemu_accel_choose(ARCH_X86_64, &probe).reason,
			       "there is no /nonexistent/kvm"));
	probe.kvm_path = dir;
	assert_non_null(strstr(qemu_accel_choose(ARCH_X86_64, &probe).reason, "is a directory"));
	probe.kvm_path = put_text("forbidden", "");
	if (geteuid() == 0)
		return;	/* root opens everything */
	assert_int_equal(chmod(probe.kvm_path, 0), 0);
	assert_non_null(strstr(qemu_accel_choose(ARCH_X86_64, &probe).reason,
			       "usermod -aG kvm"));
}

/* --- firmware ------------------------------------------------------------------ */

static void assert_firmware(const struct qemu_firmware_search *where, enum arch arch,
			    const char *want, bool flash)
{
	struct qemu_firmware got = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(qemu_firmware_find(arch, where, &got, &err), 0);
	assert_string_equal(got.path, want);
	assert_int_equal(got.flash, flash);
	free(got.path);
}

static void test_firmware_order(void **state)
{
	scoped_free char *root = xasprintf("%s/root", dir), *home = xasprintf("%s/home", dir);
	scoped_free char *prefix = xasprintf("%s/prefix", dir);
	scoped_free char *own = xasprintf("%s/qemu-efi-code.fd", dir);
	const struct qemu_firmware_search where = { own, home, prefix, root };
	struct qemu_firmware got = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(qemu_firmware_find(ARCH_X86_64, &where, &got, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "apt install ovmf"));
	assert_int_equal(qemu_firmware_find(ARCH_AARCH64, &where, &got, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "apt install qemu-efi-aarch64"));

	/* each one that is added comes before those that are there */
	assert_firmware(&where, ARCH_X86_64, put_text("root/usr/share/OVMF/OVMF_CODE_4M.fd", "x"), true);
	assert_firmware(&where, ARCH_X86_64, put_text("root/usr/share/OVMF/OVMF_CODE.fd", "x"), true);
	assert_firmware(&where, ARCH_X86_64, put_text("prefix/share/qemu/edk2-x86_64-code.fd", "x"), true);
	assert_firmware(&where, ARCH_X86_64,
			put_text("home/.local/share/qemu/edk2-x86_64-code.fd", "x"), true);
	assert_firmware(&where, ARCH_AARCH64,
			put_text("root/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "x"), false);
	assert_firmware(&where, ARCH_AARCH64, put_text("root/usr/share/AAVMF/AAVMF_CODE.fd", "x"), true);
	assert_firmware(&where, ARCH_X86_64, put_text("qemu-efi-code.fd", "x"), true);
}

/* --- versions and programs ----------------------------------------------------------- */

static void test_version_table(void **state)
{
	const struct {
		const char *text;
		bool ok;
		struct qemu_version want;
	} cases[] = {
		{ "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright", true, { 7, 2, 22 } },
		{ "QEMU emulator version 10.0.0", true, { 10, 0, 0 } },
		{ "QEMU emulator version 8.2.50 (v8.2.0-1)", true, { 8, 2, 50 } },
		{ "6.2", true, { 6, 2, 0 } },
		{ "hello", false, { 0, 0, 0 } },
		{ "", false, { 0, 0, 0 } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct qemu_version got = { 0 };

		assert_int_equal(qemu_version_parse(cases[i].text, &got), cases[i].ok);
		assert_int_equal(qemu_version_compare(&got, &cases[i].want), 0);
	}
}

static void test_version_floors(void **state)
{
	const struct qemu_version v31 = { 3, 1, 0 }, v52 = { 5, 2, 0 }, v72 = { 7, 2, 22 };
	struct config c = { .arch = ARCH_X86_64 };
	scoped_strv struct strv warnings = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(qemu_binary_check_version(&v31, &c, &warnings, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "QEMU 3.1.0 is too old: at least 4.0.0"));
	assert_int_equal(warnings.len, 0);
	assert_int_equal(qemu_binary_check_version(&v52, &c, &warnings, &err), 0);
	assert_int_equal(warnings.len, 1);
	assert_int_equal(qemu_binary_check_version(&v72, &c, &warnings, &err), 0);
	assert_int_equal(warnings.len, 1);
	c.qemu_minimum_version = (char *)"8.2.1";
	assert_int_equal(qemu_binary_check_version(&v72, &c, &warnings, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "minimumVersion is 8.2.1"));
}

static void test_binary_from_environment(void **state)
{
	scoped_strv struct strv program = { 0 };
	struct error err = ERROR_NONE;

	setenv("QEMU_SYSTEM_X86_64", "/bin/true -d guest_errors", 1);
	assert_int_equal(qemu_binary_find(ARCH_X86_64, &program, &err), 0);
	assert_int_equal(program.len, 3);
	assert_string_equal(program.items[0], "/bin/true");
	assert_string_equal(program.items[2], "guest_errors");
	setenv("QEMU_SYSTEM_X86_64", "/nonexistent/qemu", 1);
	assert_int_equal(qemu_binary_find(ARCH_X86_64, &program, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "$QEMU_SYSTEM_X86_64 names `/nonexistent/qemu`"));
	unsetenv("QEMU_SYSTEM_X86_64");
	scoped_free char *path = xstrdup(getenv("PATH"));
	setenv("PATH", dir, 1);
	assert_int_equal(qemu_binary_find(ARCH_AARCH64, &program, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "sudo apt install qemu-system-arm"));
	setenv("PATH", path, 1);
}

static void test_binary_answer(void **state)
{
	scoped_strv struct strv program = { 0 };
	struct error err = ERROR_NONE;
	struct qemu_version v = { 0 };
	bool retry;

	strv_add(&program, "/usr/bin/q");
	assert_int_equal(qemu_binary_answer(&program, 1, "", "q: -sandbox support is not enabled in "
					    "this QEMU binary\n", true, &retry, &v, &err), 0);
	assert_true(retry);
	assert_int_equal(qemu_binary_answer(&program, 0, "QEMU emulator version 7.2.22\n", "", false,
					    &retry, &v, &err), 0);
	assert_false(retry);
	assert_int_equal(v.micro, 22);
	assert_int_equal(qemu_binary_answer(&program, 127, "", "error while loading shared libraries\n",
					    true, &retry, &v, &err), -ENOEXEC);
	assert_non_null(strstr(err.msg, "shared libraries"));
}

/* --- the rest ---------------------------------------------------------------------------- */

static void test_mac_is_stable_and_of_the_directory(void **state)
{
	char a[DRIVER_MAC_SIZE], b[DRIVER_MAC_SIZE];
	struct error err = ERROR_NONE;

	/* printf 'abc/x' | sha256sum */
	assert_int_equal(driver_mac_from("abc", "/x", a, &err), 0);
	assert_string_equal(a, "52:55:55:b7:71:7e");
	assert_int_equal(driver_mac("/x", a, &err), 0);
	assert_int_equal(driver_mac("/y", b, &err), 0);
	assert_string_not_equal(a, b);
	assert_int_equal(driver_mac("/x", b, &err), 0);
	assert_string_equal(a, b);
}

static void test_endpoint_connects_only_where_somebody_listens(void **state)
{
	scoped_free char *path = xasprintf("%s/s.sock", dir);
	scoped_fd int listener = -1, client = -1;
	struct error err = ERROR_NONE;
	char longpath[300];
	struct stat st;
	int fd;

	assert_int_equal(endpoint_connect(path, &fd, &err), -ENOENT);
	assert_int_equal(endpoint_listen(path, &listener, &err), 0);
	assert_int_equal(endpoint_connect(path, &client, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	memset(longpath, 'x', sizeof(longpath));
	longpath[sizeof(longpath) - 1] = 0;
	assert_int_equal(endpoint_connect(longpath, &fd, &err), -ENAMETOOLONG);
}

static void test_registry(void **state)
{
	assert_non_null(driver_find("qemu"));
	assert_null(driver_find("vz"));
	assert_ptr_equal(driver_all()[0], driver_find("qemu"));
	assert_null(driver_all()[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accel_table),
		cmocka_unit_test(test_accel_says_why_kvm_does_not_open),
		cmocka_unit_test(test_firmware_order),
		cmocka_unit_test(test_version_table),
		cmocka_unit_test(test_version_floors),
		cmocka_unit_test(test_binary_from_environment),
		cmocka_unit_test(test_binary_answer),
		cmocka_unit_test(test_mac_is_stable_and_of_the_directory),
		cmocka_unit_test(test_endpoint_connects_only_where_somebody_listens),
		cmocka_unit_test(test_registry),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
