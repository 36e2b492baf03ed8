#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/digest.h"
#include "lib/store/disk.h"
#include "lib/store/image.h"
#include "lib/store/iso.h"
#include "lib/store/layout.h"

static char tmp[] = "/tmp/lima-image-XXXXXX";
static char *inst; /* instance directory */
static struct strv notes;

static char *in_tmp(const char *name)
{
	return xasprintf("%s/%s", tmp, name);
}

static char *in_inst(enum instance_file f)
{
	return layout_instance_file(inst, f);
}

static void write_file(const char *path, const char *text)
{
	struct error err;

	assert_int_equal(path_write_file(path, text, strlen(text), 0600, &err), 0);
}

static int setup(void **state)
{
	interrupt_install();
	if (!mkdtemp(tmp) || chdir(tmp) < 0)
		return -1;
	inst = in_tmp("inst");
	setenv("XDG_CACHE_HOME", tmp, 1);
	unsetenv("http_proxy");
	unsetenv("all_proxy");
	unsetenv("ALL_PROXY");
	return system("qemu-img create -q -f qcow2 good.qcow2 8M && "
		      "qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw evil.qcow2 8M && "
		      "printf 0123456789abcdef > small.img && truncate -s 4M small.img && "
		      "gzip -k small.img");
}

static int teardown(void **state)
{
	struct error err;

	free(inst);
	strv_done(&notes);
	return path_remove_tree(tmp, &err);
}

static int fresh_instance(void **state)
{
	struct error err;

	strv_done(&notes);
	return path_remove_tree(inst, &err) < 0 ? -1 : mkdir(inst, 0700);
}

static void on_note(void *arg, const char *text)
{
	strv_add(&notes, text);
}

/* Prepares from @images; 0 or the error's code. */
static int prepare(struct config_image *images, size_t n, struct image_info *info,
		   struct error *err)
{
	const struct progress progress = { .note = on_note };
	struct config config = {
		.arch = ARCH_X86_64,
		.images = images,
		.n_images = n,
		.disk_bytes = 16 << 20,
	};

	return image_prepare(inst, &config, &progress, info, err);
}

static struct config_image image_at(char *location)
{
	return (struct config_image){ .file = { .location = location, .arch = ARCH_X86_64 } };
}

/* Names in the instance directory, sorted by readdir of a few: joined set test. */
static void assert_files(const char *const *want, size_t n)
{
	scoped_dir DIR *dir = opendir(inst);
	struct dirent *de;
	size_t found = 0;

	while ((de = readdir(dir))) {
		bool known = de->d_name[0] == '.';

		for (size_t i = 0; i < n; i++)
			known |= streq(want[i], de->d_name);
		if (!known)
			fail_msg("%s should not be there", de->d_name);
		found += de->d_name[0] != '.';
	}
	assert_int_equal(found, n);
}
#define ASSERT_FILES(...)                                  \
	assert_files((const char *const[]){ __VA_ARGS__ }, \
		     sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(char *))

static void test_image_local_with_digest(void **state)
{
	scoped_free char *path = in_tmp("good.qcow2"), *disk = in_inst(FILE_DISK);
	struct config_image img = image_at(path);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;
	scoped_digest struct digest *d = NULL;
	char digest[DIGEST_TEXT_SIZE];
	struct stat st;

	assert_int_equal(digest_new("sha256", &d, &err), 0);
	assert_int_equal(digest_update_file(d, path, "", NULL, &err), 0);
	img.file.digest = (char *)digest_final(d, digest);
	if (prepare(&img, 1, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(info.name, "good");
	assert_false(info.direct_kernel);
	image_info_done(&info);
	ASSERT_FILES("disk", "image-name");
	assert_int_equal(stat(disk, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* again: what is there stays */
	write_file(disk, "used");
	assert_int_equal(prepare(&img, 1, &info, &err), 0);
	assert_true(info.cached);
	assert_string_equal(info.name, "good");
	image_info_done(&info);
	assert_int_equal(stat(disk, &st), 0);
	assert_int_equal(st.st_size, 4);
}

static void test_image_compressed_file_url(void **state)
{
	scoped_free char *url = xasprintf("file://%s/small.img.gz", tmp);
	scoped_free char *disk = in_inst(FILE_DISK);
	struct config_image img = image_at(url);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;
	struct stat st;

	if (prepare(&img, 1, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(info.name, "small");
	image_info_done(&info);
	assert_int_equal(stat(disk, &st), 0);
	assert_int_equal(st.st_size, 4 << 20);
	assert_true(st.st_blocks * 512 < 1 << 20);
}

static void test_image_kernel_and_initrd(void **state)
{
	scoped_free char *path = in_tmp("good.qcow2"), *kernel = in_tmp("vmlinuz");
	scoped_free char *initrd = in_tmp("initrd.gz"), *got = in_inst(FILE_INITRD);
	scoped_free char *cmdline = in_inst(FILE_KERNEL_CMDLINE);
	struct config_image img = image_at(path);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;
	scoped_buf struct buf b = { 0 }, c = { 0 };

	write_file(kernel, "kernel");
	write_file(initrd, "\x1f\x8b as it is");
	img.kernel.location = kernel;
	img.initrd.location = initrd;
	img.kernel_cmdline = (char *)"root=/dev/vda";
	if (prepare(&img, 1, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_true(info.direct_kernel);
	image_info_done(&info);
	ASSERT_FILES("disk", "image-name", "kernel", "initrd", "kernel.cmdline");
	assert_int_equal(path_read_file(got, 100, &b, &err), 0);
	assert_string_equal(buf_str(&b), "\x1f\x8b as it is");
	assert_int_equal(path_read_file(cmdline, 100, &c, &err), 0);
	assert_string_equal(buf_str(&c), "root=/dev/vda");
}

static void test_image_next_is_tried(void **state)
{
	scoped_free char *good = in_tmp("good.qcow2"), *kernel = in_tmp("vmlinuz");
	struct config_image imgs[] = { image_at(good), image_at(good) };
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	imgs[0].file.digest =
		(char *)"sha256:"
			"0000000000000000000000000000000000000000000000000000000000000000";
	if (prepare(imgs, 2, &info, &err) < 0)
		fail_msg("%s", err.msg);
	image_info_done(&info);
	assert_int_equal(notes.len, 1);
	assert_non_null(strstr(notes.items[0], "digest mismatch: expected sha256:000"));
	assert_non_null(strstr(notes.items[0], "; trying the next one"));
	/* a kernel that is missing takes the whole image with it */
	fresh_instance(state);
	unlink(kernel);
	imgs[0].file.digest = NULL;
	imgs[0].kernel.location = kernel;
	assert_int_equal(prepare(imgs, 2, &info, &err), 0);
	assert_false(info.direct_kernel);
	image_info_done(&info);
	ASSERT_FILES("disk", "image-name");
}

static void test_image_none_works(void **state)
{
	scoped_free char *evil = in_tmp("evil.qcow2"), *missing = in_tmp("missing.img");
	struct config_image imgs[] = { image_at(evil), image_at(missing),
				       image_at((char *)"ftp://x/y.img") };
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	assert_true(prepare(imgs, 3, &info, &err) < 0);
	assert_non_null(strstr(err.msg, "no image works: evil: "));
	assert_non_null(strstr(err.msg, "names another file of this machine"));
	assert_non_null(strstr(err.msg, "; missing: "));
	assert_non_null(strstr(err.msg, "; y: `ftp://x/y.img`: only http"));
	assert_int_equal(notes.len, 2);
	assert_int_equal(rmdir(inst), 0); /* nothing was left */
	mkdir(inst, 0700);
	assert_true(prepare(imgs, 1, &info, &err) < 0);
	assert_int_equal(strncmp(err.msg, "image `evil`: ", 14), 0);
	assert_int_equal(rmdir(inst), 0);
}

static void test_image_choice_by_arch_and_variant(void **state)
{
	scoped_free char *good = in_tmp("good.qcow2");
	struct config_image imgs[] = { image_at((char *)"/no/arm.img"),
				       image_at((char *)"/no/minimal.img"), image_at(good),
				       image_at((char *)"/no/minimal2.img") };
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	imgs[0].file.arch = ARCH_AARCH64;
	imgs[1].variant = imgs[3].variant = (char *)"minimal";
	assert_true(prepare(imgs, 4, &info, &err) < 0);
	assert_null(strstr(err.msg, "arm"));
	assert_null(strstr(err.msg, "good"));
	assert_non_null(strstr(err.msg, "minimal: "));
	assert_non_null(strstr(err.msg, "minimal2: "));
	assert_int_equal(prepare(imgs, 1, &info, &err), -ENOENT);
	assert_string_equal(err.msg, "images: none is for arch x86_64");
}

static void test_image_iso_gets_an_empty_disk(void **state)
{
	const struct iso_file file = { .path = "x", .data = "x", .len = 1, .mode = 0644 };
	scoped_free char *iso = in_tmp("live.iso"), *got = in_inst(FILE_ISO);
	scoped_free char *disk = in_inst(FILE_DISK);
	struct config_image img = image_at(iso);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;
	struct disk_info di;

	assert_int_equal(iso_write(iso, "live", &file, 1, &err), 0);
	if (prepare(&img, 1, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(info.name, "live");
	image_info_done(&info);
	ASSERT_FILES("disk", "iso", "image-name");
	assert_true(disk_is_iso(got));
	assert_int_equal(disk_inspect(disk, &di, &err), 0);
	assert_string_equal(di.format, "qcow2");
	assert_int_equal(di.virtual_bytes, 16 << 20);
}

static void test_image_after_a_crash_begins_anew(void **state)
{
	scoped_free char *good = in_tmp("good.qcow2"), *kernel = in_inst(FILE_KERNEL);
	scoped_free char *stage = in_inst(FILE_PREPARE_DIR), *junk = NULL;
	struct config_image img = image_at(good);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	/* died while moving: a kernel is there already, the disk is not */
	write_file(kernel, "of another image");
	assert_int_equal(mkdir(stage, 0700), 0);
	junk = xasprintf("%s/disk", stage);
	write_file(junk, "half");
	if (prepare(&img, 1, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_false(info.direct_kernel);
	image_info_done(&info);
	ASSERT_FILES("disk", "image-name");
}

static void test_image_of_lima_is_taken_over(void **state)
{
	scoped_free char *image = in_inst(FILE_IMAGE), *kernel = in_inst(FILE_KERNEL);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(link("good.qcow2", image), 0);
	write_file(kernel, "kernel");
	if (prepare(NULL, 0, &info, &err) < 0)
		fail_msg("%s", err.msg);
	assert_true(info.direct_kernel);
	image_info_done(&info);
	ASSERT_FILES("disk", "kernel");
	fresh_instance(state);
	assert_int_equal(link("evil.qcow2", image), 0);
	assert_int_equal(prepare(NULL, 0, &info, &err), -EPERM);
	ASSERT_FILES("image");
}

static void test_image_interrupted_leaves_nothing(void **state)
{
	scoped_free char *good = in_tmp("good.qcow2");
	struct config_image imgs[] = { image_at(good), image_at(good) };
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		struct image_info info;
		struct error err = ERROR_NONE;

		raise(SIGINT);
		_exit(prepare(imgs, 2, &info, &err) == -ECANCELED && notes.len == 0 ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	assert_int_equal(rmdir(inst), 0);
}

static void test_image_server_that_is_away_is_asked_once(void **state)
{
	scoped_free char *a = NULL, *b = NULL;
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct image_info info = { 0 };
	struct error err = ERROR_NONE;

	/* bound but not listening: refused */
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	getsockname(fd, (struct sockaddr *)&addr, &len);
	a = xasprintf("http://127.0.0.1:%d/a.img", ntohs(addr.sin_port));
	b = xasprintf("http://127.0.0.1:%d/b.img", ntohs(addr.sin_port));
	struct config_image imgs[] = { image_at(a), image_at(b) };
	assert_int_equal(prepare(imgs, 2, &info, &err), -ENETUNREACH);
	assert_non_null(strstr(err.msg, "did not answer a moment ago"));
	close(fd);
}

static void test_image_names_for_people(void **state)
{
	static const struct {
		const char *location, *name;
	} cases[] = {
		{ "https://x/a/debian-13-genericcloud-amd64.qcow2",
		  "debian-13-genericcloud-amd64" },
		{ "https://x/a.raw.xz?token=1/2", "a" },
		{ "/x/y.iso", "y" },
		{ "mmdebstrap:trixie?include=a,b", "mmdebstrap:trixie" },
		{ "https://x/plain", "plain" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_free char *name = image_name(cases[i].location);

		assert_string_equal(name, cases[i].name);
	}
}

#define TEST(fn) cmocka_unit_test_setup(fn, fresh_instance)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_image_local_with_digest),
		TEST(test_image_compressed_file_url),
		TEST(test_image_kernel_and_initrd),
		TEST(test_image_next_is_tried),
		TEST(test_image_none_works),
		TEST(test_image_choice_by_arch_and_variant),
		TEST(test_image_iso_gets_an_empty_disk),
		TEST(test_image_after_a_crash_begins_anew),
		TEST(test_image_of_lima_is_taken_over),
		TEST(test_image_interrupted_leaves_nothing),
		TEST(test_image_server_that_is_away_is_asked_once),
		TEST(test_image_names_for_people),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
