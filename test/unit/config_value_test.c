/* The small parts: {{…}}, sizes, versions, "did you mean". */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/config/expr.h"
#include "lib/config/near.h"
#include "lib/config/size.h"
#include "lib/config/version.h"

static int expand(const char *text, char **ret, struct error *err)
{
	struct expr_vars v = { 0 };
	int rc;

	expr_vars_add(&v, "Name", "dev");
	expr_vars_add(&v, "Home", "/home/ada");
	expr_vars_add(&v, "Param.x", "1");
	expr_vars_add(&v, "Param.empty", "");
	rc = expr_expand(text, &v, ret, NULL, err);
	expr_vars_done(&v);
	return rc;
}

static void test_expr_expands(void **state)
{
	static const char *const rows[][2] = {
		{ "{{.Name}}", "dev" },
		{ "a {{ .Home }}/b", "a /home/ada/b" },
		{ "a\n {{- .Name -}} \n b", "adevb" },
		{ "a{{/* nothing */}}b", "ab" },
		{ "{{if .Param.x}}yes{{else}}no{{end}}", "yes" },
		{ "{{if .Param.empty}}yes{{else}}no{{end}}", "no" },
		{ "{{if .Param.none}}yes{{end}}", "" },
		{ "{{if eq .Param.x \"2\"}}two{{else if eq .Param.x `1`}}one{{else}}none{{end}}", "one" },
		{ "{{if and .Param.x (not .Param.empty)}}{{if ne .Name \"dev\"}}a{{else}}b{{end}}{{end}}",
		  "b" },
		{ "{{or .Param.empty .Name}}", "dev" },
		{ "{{eq .Name \"a\" \"dev\"}}", "true" },
		{ "{{\"lit \\\"q\\\" }}\"}}", "lit \"q\" }}" },
		{ "} } { {x", NULL },
		{ "plain", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *out = NULL;
		struct error err = ERROR_NONE;

		if (expand(rows[i][0], &out, &err) < 0)
			fail_msg("%s: %s", rows[i][0], err.msg);
		if (rows[i][1])
			assert_string_equal(out, rows[i][1]);
		else
			assert_null(out);
	}
}

static void test_expr_refuses(void **state)
{
	static const char *const rows[] = {
		"{{.Nope}}", "{{", "{{}}", "{{.Name", "{{if .Name}}x", "{{end}}", "{{else}}", "{{.Name}",
		"{{range .Name}}{{end}}", "{{.Name | quote}}", "{{\"open}}", "{{(.Name}}", "{{eq .Name}}",
		"{{if .Name}}{{else}}{{else}}{{end}}", "{{template \"x\"}}", "{{.}}", "{{not}}",
		"{{((((((((((((((((((((((((((((((((((((((((.Name}}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *out = NULL;
		struct error err = ERROR_NONE;

		if (expand(rows[i], &out, &err) == 0)
			fail_msg("%s became %s", rows[i], out);
		assert_null(out);
	}
}

static void test_size_parse(void **state)
{
	static const struct { const char *text; uint64_t bytes; } rows[] = {
		{ "4GiB", 4ULL << 30 }, { "4G", 4ULL << 30 }, { "4g", 4ULL << 30 },
		{ "4gb", 4ULL << 30 }, { "4 GB", 4ULL << 30 }, { "1.5k", 1536 }, { "10", 10 },
		{ "10b", 10 }, { "0.5MiB", 512 << 10 }, { "2P", 2ULL << 50 }, { "1tib", 1ULL << 40 },
		{ "1.938GiB", 2080911654 },
	};
	static const char *const bad[] = { "", "GiB", "-1G", "4X", "4GiBs", "1..5G", ".5G", "4  G",
					   "99999999999999999999G", "8192P", "1e3", " 1" };
	uint64_t got;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_true(size_parse(rows[i].text, &got));
		assert_int_equal(got, rows[i].bytes);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (size_parse(bad[i], &got))
			fail_msg("`%s` was taken for a size", bad[i]);
}

static void test_size_format(void **state)
{
	char out[SIZE_TEXT_SIZE];

	assert_string_equal(size_format(4ULL << 30, out), "4GiB");
	assert_string_equal(size_format(100ULL << 30, out), "100GiB");
	assert_string_equal(size_format(2080911654, out), "1.938GiB");
	assert_string_equal(size_format(1000, out), "1000B");
	assert_string_equal(size_format(1023ULL << 20, out), "1023MiB");
}

static void test_version_order(void **state)
{
	static const char *const ascending[] = { "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.2",
						 "1.0.0-beta.11", "1.0.0", "1.0.1", "1.2", "v2.0.0",
						 "2.0.10", "10.0.0" };

	for (size_t i = 0; i < ARRAY_SIZE(ascending); i++) {
		assert_true(version_valid(ascending[i]));
		assert_int_equal(version_compare(ascending[i], ascending[i]), 0);
		for (size_t j = i + 1; j < ARRAY_SIZE(ascending); j++) {
			assert_true(version_compare(ascending[i], ascending[j]) < 0);
			assert_true(version_compare(ascending[j], ascending[i]) > 0);
		}
	}
	assert_int_equal(version_compare("1.0.0+a", "1.0.0+b"), 0);
	assert_false(version_valid("two"));
	assert_false(version_valid("1.x"));
	assert_false(version_valid("1.0.0-"));
}

static const char *nearest(const char *wanted)
{
	static const char *const names[] = { "cpus", "memory", "portForwards", "hostResolver", "os" };
	struct near n = { .wanted = wanted };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		near_offer(&n, names[i]);
	return n.best;
}

static void test_near_offers_only_what_is_close(void **state)
{
	assert_string_equal(nearest("cpu"), "cpus");
	assert_string_equal(nearest("CPUS"), "cpus");
	assert_string_equal(nearest("memroy"), "memory");
	assert_string_equal(nearest("portForwarding"), "portForwards");
	assert_null(nearest("x"));
	assert_null(nearest("completelyElse"));
	assert_null(nearest(""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_expr_expands),
		cmocka_unit_test(test_expr_refuses),
		cmocka_unit_test(test_size_parse),
		cmocka_unit_test(test_size_format),
		cmocka_unit_test(test_version_order),
		cmocka_unit_test(test_near_offers_only_what_is_close),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
