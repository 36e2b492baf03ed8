#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/error.h"

static void test_error_sys_reads_outside_in(void **state)
{
	struct error err = { 0 };

	assert_int_equal(error_sys(&err, -ENOENT, "open %s", "/x"), -ENOENT);
	assert_int_equal(error_wrap(&err, "start %s", "dev"), -ENOENT);
	assert_string_equal(err.msg, "start dev: open /x: no such file or directory");
}

static void test_error_cause_survives_truncation(void **state)
{
	struct error err = { 0 };
	char longname[2000];

	memset(longname, 'a', sizeof(longname) - 1);
	longname[sizeof(longname) - 1] = 0;
	error_sys(&err, -EACCES, "open %s", longname);
	assert_true(strlen(err.msg) < sizeof(err.msg));
	assert_non_null(strstr(err.msg, ": permission denied"));
	for (int i = 0; i < 50; i++)
		error_wrap(&err, "a fairly long piece of context, number %d", i);
	assert_non_null(strstr(err.msg, ": permission denied"));
	assert_ptr_equal(strstr(err.msg, "a fairly long piece of context, number 49"), err.msg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_error_sys_reads_outside_in),
		cmocka_unit_test(test_error_cause_survives_truncation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
