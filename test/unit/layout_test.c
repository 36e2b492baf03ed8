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
#include "lib/base/strv.h"
#include "lib/store/layout.h"

static char tmp[] = "/tmp/lima-layout-XXXXXX";

static int setup(void **state)
{
	return mkdtemp(tmp) ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err;

	return path_remove_tree(tmp, &err);
}

static void test_layout_names_are_judged(void **state)
{
	static const struct {
		const char *name;
		bool ok;
	} cases[] = {
		{ "default", true }, { "a", true },      { "a.b_c-d9", true }, { "0", true },
		{ "", false },       { "-a", false },    { "a-", false },      { "a--b", false },
		{ "a._b", false },   { ".a", false },    { "_config", false }, { "a/b", false },
		{ "../x", false },   { "a b", false },   { "a\n", false },     { "ä", false },
		{ "x.yaml", false }, { "x.yml", false }, { "yaml", true },
	};
	char name[78];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct error err = ERROR_NONE;
		int rc = layout_check_name(cases[i].name, &err);

		if ((rc == 0) != cases[i].ok)
			fail_msg("name `%s`: %d %s", cases[i].name, rc, err.msg);
	}
	memset(name, 'a', sizeof(name));
	name[77] = 0;
	assert_int_equal(layout_check_name(name, &(struct error){ 0 }), -EINVAL);
	name[76] = 0;
	assert_int_equal(layout_check_name(name, &(struct error){ 0 }), 0);
}

static void test_layout_hostname_has_dashes_only(void **state)
{
	scoped_free char *host = layout_hostname("a.b_c-d");

	assert_string_equal(host, "lima-a-b-c-d");
}

static void test_layout_socket_paths_fit_sun_path(void **state)
{
	struct error err = ERROR_NONE;
	char dir[108];

	/* 107 usable bytes - "/ga-ssh.sock" - ".XXXXXXXXXXXXXXXX" */
	memset(dir, 'd', sizeof(dir));
	dir[107 - 12 - 17] = 0;
	assert_int_equal(layout_check_socket_paths(dir, &err), 0);
	dir[107 - 12 - 17] = 'd';
	dir[107 - 12 - 16] = 0;
	assert_int_equal(layout_check_socket_paths(dir, &err), -ENAMETOOLONG);
	assert_non_null(strstr(err.msg, "1 bytes too long"));
}

static void test_layout_lima_home_resolves_links(void **state)
{
	scoped_free char *real = xasprintf("%s/real", tmp);
	scoped_free char *link = xasprintf("%s/link", tmp);
	scoped_free char *below = xasprintf("%s/link/not/yet", tmp);
	scoped_free char *want = xasprintf("%s/real/not/yet", tmp);
	scoped_free char *home = NULL, *home2 = NULL, *home3 = NULL;
	struct error err = ERROR_NONE;

	assert_int_equal(mkdir(real, 0700), 0);
	assert_int_equal(symlink("real", link), 0);
	setenv("LIMA_HOME", link, 1);
	assert_int_equal(layout_lima_home(&home, &err), 0);
	assert_string_equal(home, real);
	setenv("LIMA_HOME", below, 1);
	assert_int_equal(layout_lima_home(&home2, &err), 0);
	assert_string_equal(home2, want);
	assert_false(path_exists(want));
	unsetenv("LIMA_HOME");
	setenv("HOME", link, 1);
	assert_int_equal(layout_lima_home(&home3, &err), 0);
	free(want);
	want = xasprintf("%s/real/.lima", tmp);
	assert_string_equal(home3, want);
	unsetenv("HOME");
	free(home3);
	home3 = NULL;
	assert_int_equal(layout_lima_home(&home3, &err), -ENOENT);
}

static void test_layout_cache_dir_follows_xdg(void **state)
{
	scoped_free char *a = NULL, *b = NULL;

	setenv("HOME", "/home/u", 1);
	setenv("XDG_CACHE_HOME", "/cache", 1);
	a = layout_cache_dir();
	assert_string_equal(a, "/cache/lima");
	setenv("XDG_CACHE_HOME", "relative", 1);
	b = layout_cache_dir();
	assert_string_equal(b, "/home/u/.cache/lima");
	unsetenv("XDG_CACHE_HOME");
}

static void test_layout_share_dir_in_a_build_tree(void **state)
{
	scoped_strv struct strv dirs = { 0 };
	scoped_free char *share = NULL;
	struct error err = ERROR_NONE;

	unsetenv("LIMA_SHARE");
	unsetenv("LIMA_TEMPLATES_PATH");
	share = layout_share_dir(&err); /* this test runs from BUILD/test/unit */
	assert_non_null(share);
	assert_non_null(strstr(share, "/share/lima"));
	assert_int_equal(layout_template_dirs("/lh", &dirs, &err), 0);
	assert_int_equal(dirs.len, 2);
	assert_string_equal(dirs.items[0], "/lh/_templates");
	assert_non_null(strstr(dirs.items[1], "/share/lima/templates"));
	assert_true(path_exists(dirs.items[1]));
}

static void test_layout_share_dir_by_environment(void **state)
{
	scoped_free char *agent = xasprintf("%s/lima-guestagent.Linux-x86_64", tmp);
	scoped_free char *found = NULL;
	struct error err = ERROR_NONE;

	setenv("LIMA_SHARE", tmp, 1);
	assert_null(layout_guest_agent("x86_64", &err));
	assert_non_null(strstr(err.msg, "no guest agent for x86_64: "));
	assert_int_equal(path_write_file(agent, "x", 1, 0755, &err), 0);
	found = layout_guest_agent("x86_64", &err);
	assert_string_equal(found, agent);
	setenv("LIMA_SHARE", "/does/not/exist", 1);
	assert_null(layout_share_dir(&err));
	unsetenv("LIMA_SHARE");
}

static void test_layout_template_path_replaces_the_rest(void **state)
{
	scoped_strv struct strv dirs = { 0 };
	struct error err = ERROR_NONE;

	setenv("LIMA_TEMPLATES_PATH", "/a:/b", 1);
	assert_int_equal(layout_template_dirs("/lh", &dirs, &err), 0);
	assert_int_equal(dirs.len, 2);
	assert_string_equal(dirs.items[1], "/b");
	unsetenv("LIMA_TEMPLATES_PATH");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout_names_are_judged),
		cmocka_unit_test(test_layout_hostname_has_dashes_only),
		cmocka_unit_test(test_layout_socket_paths_fit_sun_path),
		cmocka_unit_test(test_layout_lima_home_resolves_links),
		cmocka_unit_test(test_layout_cache_dir_follows_xdg),
		cmocka_unit_test(test_layout_share_dir_in_a_build_tree),
		cmocka_unit_test(test_layout_share_dir_by_environment),
		cmocka_unit_test(test_layout_template_path_replaces_the_rest),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
