#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/limactl/view_filter.h"
#include "lib/base/mem.h"

static const char web[] =
	"{\"name\":\"web-1\",\"status\":\"Running\",\"cpus\":4,\"memory\":4294967296,\"protected\":true,"
	"\"config\":{\"cpus\":4,\"mounts\":[{\"location\":\"~\"}],\"a b\":\"c\",\"rate\":0.5},\"param\":{}}";

static bool holds(const char *text)
{
	json_t *view = json_loads(web, 0, NULL);
	struct error err = ERROR_NONE;
	bool is = false;

	if (view_filter(text, view, &is, &err) < 0)
		fail_msg("%s: %s", text, err.msg);
	json_decref(view);
	return is;
}

static void test_view_filter_chooses(void **state)
{
	static const char *const yes[] = {
		".status == \"Running\"", ".status!=\"Stopped\"", ".name == \"web*\"", ".name == \"w?b-1\"",
		".name == \"*1\"", ".cpus == 4", ".cpus >= 4 and .cpus <= 4", ".cpus > 3", ".config.rate < 1",
		".config.mounts[0].location == \"~\"", ".config[\"a b\"] == \"c\"", ".[\"name\"] == \"web-1\"",
		".protected", ".protected == true", "  ( .cpus == 1 ) or .protected ", ".nothing == null",
		".nothing.at.all == null", ".cpus == 1 or .cpus == 2 or .cpus == 4", ".cpus == 4.0",
		".cpus == 1 or (.cpus == 4 and .protected)", ".", "4 == .cpus", "\"\" == \"*\"",
		".name < \"wec\"", ".memory == 4294967296", ".cpus != null", "true", ".config.mounts",
		"(((.cpus == 4)))", ".name == \"**-*1*\"",
	};
	static const char *const no[] = {
		".status == \"Stopped\"", ".status == \"run*\"", ".name == \"web\"", ".name == \"?\"",
		".cpus > 4", ".cpus < 4", ".nothing", ".nothing > 1", ".nothing < 1", ".cpus == \"4\"",
		".config.mounts[1]", ".config.mounts[0].nothing", ".name.first", ".name[0]", "false", "null",
		".protected == false", ".protected and .nothing", ".param.role == \"db\"", ".name == \"\"",
		".cpus == null", ".config.mounts == \"~\"",
	};

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++)
		if (!holds(yes[i]))
			fail_msg("does not hold: %s", yes[i]);
	for (size_t i = 0; i < ARRAY_SIZE(no); i++)
		if (holds(no[i]))
			fail_msg("holds: %s", no[i]);
}

static void test_view_filter_says_what_is_wrong(void **state)
{
	static const struct {
		const char *text, *column;
	} rows[] = {
		{ "", "column 1: " },
		{ ".cpus ==", "column 9: " },
		{ ".cpus = 4", "column 7: " },
		{ ".status == Running", "column 12: " },
		{ ".status == 'Running'", "column 12: " },
		{ ".status == \"Running", "column 12: " },
		{ "(.cpus == 4", "column 12: " },
		{ ".cpus == 4)", "column 11: " },
		{ ".name | length", "column 7: " },
		{ ".cpus > 1 and .cpus < 3 or .protected", "column 24: " },
		{ ".cpus > \"many\"", "column 7: " },
		{ ".config.mounts[0", "column 17: " },
		{ ".config.mounts[-1]", "column 16: " },
		{ ".config.mounts[]", "column 16: " },
		{ ".cpus.[", "column 8: " },
		{ ".protected == trueish", "column 15: " },
		{ "..", "column 2: " },
		{ ".cpus == {}", "column 10: " },
		{ "status", "column 1: " },
		{ ".cpus == 4 and", "column 15: " },
	};
	json_t *view = json_loads(web, 0, NULL);

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct error err = ERROR_NONE;
		bool is = true;

		assert_int_equal(view_filter(rows[i].text, view, &is, &err), -EINVAL);
		if (strncmp(err.msg, rows[i].column, strlen(rows[i].column)) != 0)
			fail_msg("`%s`: %s", rows[i].text, err.msg);
		assert_true(is);
	}
	json_decref(view);
}

static void test_view_filter_of_any_length(void **state)
{
	char deep[20001];
	struct error err = ERROR_NONE;
	bool is;

	memset(deep, '(', sizeof(deep) - 1);
	deep[sizeof(deep) - 1] = 0;
	assert_int_equal(view_filter(deep, json_null(), &is, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "parentheses"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_view_filter_chooses),
		cmocka_unit_test(test_view_filter_says_what_is_wrong),
		cmocka_unit_test(test_view_filter_of_any_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
