#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/scoped.h"
#include "lib/store/build.h"
#include "lib/store/download.h"
#include "lib/store/prune.h"

static char tmp[] = "/tmp/lima-prune-XXXXXX";

static int setup(void **state)
{
	return mkdtemp(tmp) && setenv("XDG_CACHE_HOME", tmp, 1) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err;

	return path_remove_tree(tmp, &err);
}

static void put(const char *dir, const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);
	static const char some[8192];
	struct error err = ERROR_NONE;

	assert_int_equal(path_mkdir_all(dir, 0700, &err), 0);
	assert_int_equal(path_write_file(path, some, sizeof(some), 0600, &err), 0);
}

static bool has(const char *dir, const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);

	return path_exists(path);
}

static char *download(const char *url)
{
	struct error err = ERROR_NONE;
	char *dir = NULL;

	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	put(dir, "data");
	put(dir, "data.part");
	return dir;
}

static char *build(const char *location)
{
	struct error err = ERROR_NONE;
	char *dir = NULL;

	if (build_entry_dir(location, arch_host(), &dir, &err) < 0)
		fail_msg("%s", err.msg);
	put(dir, "disk.qcow2");
	return dir;
}

static void test_prune_leaves_what_is_kept_and_what_is_in_use(void **state)
{
	scoped_free char *a = download("https://example.com/a"), *b = download("https://example.com/b");
	scoped_free char *c = download("https://example.com/c"), *built = build("mmdebstrap:bookworm");
	scoped_free char *other = build("mmdebstrap:trixie"), *half = xasprintf("%s.tmp", other);
	scoped_fd int in_use = open(c, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	scoped_prune struct prune p = { 0 };
	struct error err = ERROR_NONE;

	put(half, "root");
	assert_int_equal(flock(in_use, LOCK_EX | LOCK_NB), 0);
	strv_add(&p.keep, b);
	strv_add(&p.keep, built);
	assert_int_equal(prune_cache(&p, &err), 0);
	assert_int_equal(p.removed, 3);
	assert_int_equal(p.busy, 1);
	assert_true(p.bytes >= 4 * 8192);
	assert_false(path_exists(a));
	assert_true(has(b, "data"));
	assert_false(has(b, "data.part"));
	assert_true(has(c, "data"));
	assert_true(has(built, "disk.qcow2"));
	assert_false(path_exists(other));
	assert_false(path_exists(half));
}

static void test_prune_empties_all(void **state)
{
	scoped_free char *a = download("https://example.com/a"), *built = build("mmdebstrap:bookworm");
	scoped_prune struct prune p = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(prune_cache(&p, &err), 0);
	assert_false(path_exists(a));
	assert_false(path_exists(built));
}

static void test_prune_without_a_cache(void **state)
{
	scoped_prune struct prune p = { 0 };
	struct error err = ERROR_NONE;

	assert_int_equal(path_remove_tree(tmp, &err), 0);
	assert_int_equal(prune_cache(&p, &err), 0);
	assert_int_equal(p.removed, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_prune_leaves_what_is_kept_and_what_is_in_use),
		cmocka_unit_test(test_prune_empties_all),
		cmocka_unit_test(test_prune_without_a_cache),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
