/* Whole command lines, compared with test/unit/args/NAME.args (one word a line).
 * LIMA_UPDATE=1 writes them anew: read the diff then. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "drivers/qemu/args.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

struct fixture {
	struct config config;
	struct strv program;
	struct qemu_firmware firmware;
	struct qemu_args_input in;
};

static void fixture_init(struct fixture *f)
{
	*f = (struct fixture){
		.config = { .arch = ARCH_X86_64, .cpus = 4, .memory_bytes = UINT64_C(4) << 30 },
		.firmware = { (char *)"/usr/share/OVMF/OVMF_CODE.fd", true },
	};
	strv_add(&f->program, "/usr/bin/qemu-system-x86_64");
	f->in = (struct qemu_args_input){
		.name = "dev", .config = &f->config, .program = &f->program,
		.version = { 7, 2, 22 }, .accel = QEMU_KVM, .sandbox = true,
		.mac = "52:55:55:01:02:03", .ssh_port = 43022,
		.disk = "disk", .disk_format = "qcow2", .cidata = "cidata.iso",
		.serial_log = "serial.log", .pid_file = "qemu.pid",
	};
}

static void make_cloud_image(struct fixture *f)
{
	f->in.firmware = &f->firmware;
}

static void make_direct_kernel_tcg(struct fixture *f)
{
	f->in.accel = QEMU_TCG;
	f->in.kernel = "kernel";
	f->in.initrd = "initrd";
	f->in.cmdline = "root=/dev/vda rw console=ttyS0 x=\"a, b\"";
}

static void make_legacy_raw_iso(struct fixture *f)
{
	f->in.disk_format = "raw";
	f->in.iso = "iso";
	f->in.sandbox = false;
	f->config.cpus = 1;
	f->config.memory_bytes = (UINT64_C(512) << 20) + 4097;	/* rounded down to MiB */
	f->config.qemu_cpu_type = (char *)"Haswell-v4";
}

static void make_commas(struct fixture *f)
{
	f->firmware.path = (char *)"/home/a,b/.local/share/qemu/edk2,,x86_64-code.fd";
	f->in.firmware = &f->firmware;
	f->in.disk = "/vm,1/disk";
	f->in.cidata = "/vm,1/cidata.iso";
	f->in.serial_log = "/vm,1/serial.log";
	f->in.pid_file = "/vm,1/qemu.pid";
	strv_add_all(&f->program, "-d", "guest_errors", NULL);
}

static void make_aarch64_tcg(struct fixture *f)
{
	f->config.arch = ARCH_AARCH64;
	f->in.accel = QEMU_TCG;
	f->firmware.path = (char *)"/usr/share/AAVMF/AAVMF_CODE.fd";
	f->in.firmware = &f->firmware;
}

static void make_aarch64_bios(struct fixture *f)
{
	f->config.arch = ARCH_AARCH64;
	f->firmware = (struct qemu_firmware){ (char *)"/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
					      false };
	f->in.firmware = &f->firmware;
}

static void make_vsock(struct fixture *f)
{
	make_direct_kernel_tcg(f);
	f->in.vsock_socket = "vsock.sock";
}

static void make_aarch64_vsock_ssh(struct fixture *f)
{
	make_aarch64_tcg(f);
	f->in.vsock_socket = "/vm,1/vsock.sock";
	f->in.ssh_port = 0;
}

static const struct {
	const char *name;
	void (*make)(struct fixture *f);
} cases[] = {
	{ "cloud-image-kvm", make_cloud_image },
	{ "direct-kernel-tcg", make_direct_kernel_tcg },
	{ "legacy-raw-iso", make_legacy_raw_iso },
	{ "commas", make_commas },
	{ "aarch64-tcg", make_aarch64_tcg },
	{ "aarch64-bios", make_aarch64_bios },
	{ "vsock", make_vsock },
	{ "aarch64-vsock-ssh", make_aarch64_vsock_ssh },
};

static void test_args_golden(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_free char *path = xasprintf("%s/unit/args/%s.args", TEST_DIR, cases[i].name);
		scoped_strv struct strv argv = { 0 };
		scoped_buf struct buf want = { 0 };
		struct error err = ERROR_NONE;
		struct fixture f;

		fixture_init(&f);
		cases[i].make(&f);
		assert_int_equal(qemu_args_build(&f.in, &argv, &err), 0);
		strv_add(&argv, "");
		scoped_free char *got = strv_join(&argv, "\n");
		if (getenv("LIMA_UPDATE"))
			assert_int_equal(path_write_file(path, got, strlen(got), 0644, &err), 0);
		assert_int_equal(path_read_file(path, 65536, &want, &err), 0);
		assert_string_equal(got, buf_str(&want));
		strv_done(&f.program);
	}
}

/* Word after @option that contains @part, or NULL. */
static const char *value_of(const struct strv *argv, const char *option, const char *part)
{
	for (size_t i = 0; i + 1 < argv->len; i++)
		if (streq(argv->items[i], option) && strstr(argv->items[i + 1], part))
			return argv->items[i + 1];
	return NULL;
}

static void test_args_comma_stays_in_its_path(void **state)
{
	scoped_strv struct strv argv = { 0 };
	struct error err = ERROR_NONE;
	struct fixture f;

	fixture_init(&f);
	f.in.disk = "a,file=/etc/shadow";
	assert_int_equal(qemu_args_build(&f.in, &argv, &err), 0);
	assert_string_equal(value_of(&argv, "-blockdev", "shadow"),
			    "driver=file,node-name=disk-file,filename=a,,file=/etc/shadow,"
			    "discard=unmap");
	strv_done(&f.program);
}

static void test_args_refuse_what_cannot_run(void **state)
{
	scoped_strv struct strv argv = { 0 };
	struct error err = ERROR_NONE;
	struct fixture f;

	fixture_init(&f);
	f.config.arch = ARCH_S390X;
	assert_int_equal(qemu_args_build(&f.in, &argv, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "s390x"));
	f.config.arch = ARCH_X86_64;
	f.config.memory_bytes = 1 << 20;
	assert_int_equal(qemu_args_build(&f.in, &argv, &err), -EINVAL);
	assert_int_equal(argv.len, 0);
	strv_done(&f.program);
}

static void test_args_vsock_by_version(void **state)
{
	assert_false(qemu_args_know_vsock(&(struct qemu_version){ 5, 0, 1 }));
	assert_true(qemu_args_know_vsock(&(struct qemu_version){ 5, 1, 0 }));
	assert_true(qemu_args_know_vsock(&(struct qemu_version){ 10, 0, 3 }));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_args_golden),
		cmocka_unit_test(test_args_comma_stays_in_its_path),
		cmocka_unit_test(test_args_refuse_what_cannot_run),
		cmocka_unit_test(test_args_vsock_by_version),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
