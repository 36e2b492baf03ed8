/* An address of each instance's own: kept, and no other instance's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "hostagent/loopback.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char home[] = "/tmp/lima-loopback-XXXXXX";

static void make_instance(const char *name, const char *address)
{
	scoped_free char *dir = xasprintf("%s/%s", home, name);
	scoped_free char *yaml = xasprintf("%s/lima.yaml", dir);
	scoped_free char *file = xasprintf("%s/loopback", dir);
	struct error err = ERROR_NONE;

	assert_int_equal(path_mkdir_all(dir, 0700, &err), 0);
	assert_int_equal(path_write_file(yaml, "", 0, 0600, &err), 0);
	if (address)
		assert_int_equal(path_write_file(file, address, strlen(address), 0600, &err), 0);
}

static unsigned choose(const char *name)
{
	struct in6_addr ip;
	struct error err = ERROR_NONE;

	if (loopback_choose(home, name, &ip, &err) < 0)
		return 0;
	assert_memory_equal(ip.s6_addr + 10, "\xff\xff\x7f\0\0", 5);
	return ip.s6_addr[15];
}

static void test_loopback_is_kept_and_no_others(void **state)
{
	bool seen[256] = { false };

	for (int i = 0; i < 60; i++) {
		char name[16];
		unsigned last;

		snprintf(name, sizeof(name), "i%d", i);
		make_instance(name, NULL);
		last = choose(name);
		assert_in_range(last, 2, 254);
		assert_true(last != 53 && last != 54);
		assert_false(seen[last]);
		seen[last] = true;
		assert_int_equal(choose(name), last);
	}
}

static void test_loopback_full_and_nonsense(void **state)
{
	make_instance("odd", "127.0.0.1\n"); /* everybody's: not taken */
	assert_in_range(choose("odd"), 2, 254);
	for (unsigned last = 2; last <= 254; last++) {
		scoped_free char *name = xasprintf("full%u", last);
		scoped_free char *text = xasprintf("127.0.0.%u\n", last);

		make_instance(name, text);
	}
	make_instance("late", NULL);
	assert_int_equal(choose("late"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loopback_is_kept_and_no_others),
		cmocka_unit_test(test_loopback_full_and_nonsense),
	};
	struct error err = ERROR_NONE;
	int rc;

	if (!mkdtemp(home))
		return 1;
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	path_remove_tree(home, &err);
	return rc;
}
