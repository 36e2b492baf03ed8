#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/limactl/port_spec.h"
#include "lib/base/mem.h"

static void test_port_spec_becomes_a_rule(void **state)
{
	static const struct {
		const char *spec, *rule;
	} rows[] = {
		{ "8080:80", "{\"hostPort\":8080,\"guestPort\":80}" },
		{ "3000", "{\"hostPort\":3000,\"guestPort\":3000}" },
		{ "3000/udp", "{\"hostPort\":3000,\"guestPort\":3000,\"proto\":\"udp\"}" },
		{ "8080:80/tcp", "{\"hostPort\":8080,\"guestPort\":80,\"proto\":\"tcp\"}" },
		{ "127.0.0.1:8080:80", "{\"hostIP\":\"127.0.0.1\",\"hostPort\":8080,\"guestPort\":80}" },
		{ "127.0.0.1:8080", "{\"hostIP\":\"127.0.0.1\",\"hostPort\":8080,\"guestPort\":8080}" },
		{ "[::1]:8080:80", "{\"hostIP\":\"::1\",\"hostPort\":8080,\"guestPort\":80}" },
		{ "[0:0::0:1]:8080:[fd00:0::1]:80/udp",
		  "{\"hostIP\":\"::1\",\"hostPort\":8080,\"guestIP\":\"fd00::1\",\"guestPort\":80,"
		  "\"proto\":\"udp\"}" },
		{ "8000-8010:9000-9010", "{\"hostPortRange\":[8000,8010],\"guestPortRange\":[9000,9010]}" },
		{ "8000-8010", "{\"hostPortRange\":[8000,8010],\"guestPortRange\":[8000,8010]}" },
		{ "auto:80", "{\"hostPort\":\"auto\",\"guestPort\":80}" },
		{ "0.0.0.0:auto:80", "{\"hostIP\":\"0.0.0.0\",\"hostPort\":\"auto\",\"guestPort\":80}" },
		{ "8080:10.0.0.7:80", "{\"hostPort\":8080,\"guestIP\":\"10.0.0.7\",\"guestPort\":80}" },
		{ "8080:*:80", "{\"hostPort\":8080,\"guestIP\":\"0.0.0.0\",\"guestIPMustBeZero\":false,"
			       "\"guestPort\":80}" },
		{ "/run/web.sock:80", "{\"hostSocket\":\"/run/web.sock\",\"guestPort\":80}" },
		{ "/tmp/d.sock:/run/docker.sock",
		  "{\"hostSocket\":\"/tmp/d.sock\",\"guestSocket\":\"/run/docker.sock\"}" },
		{ "/tmp/a:/srv/tcp", "{\"hostSocket\":\"/tmp/a\",\"guestSocket\":\"/srv/tcp\"}" },
		{ "8080:/run/docker.sock", "{\"hostPort\":8080,\"guestSocket\":\"/run/docker.sock\"}" },
		{ "1:65535", "{\"hostPort\":1,\"guestPort\":65535}" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_port_spec struct port_spec s = { 0 };
		struct error err = ERROR_NONE;

		if (port_spec_parse(rows[i].spec, &s, &err) < 0)
			fail_msg("%s: %s", rows[i].spec, err.msg);
		json_t *rule = port_spec_rule(&s);
		scoped_free char *text = json_dumps(rule, JSON_COMPACT);
		json_decref(rule);
		assert_string_equal(text, rows[i].rule);
	}
}

static void test_port_spec_mistakes_are_told(void **state)
{
#define FORM "write HOST:GUEST, as in 8080:80, 127.0.0.1:8080:80/udp or /path/web.sock:80"
	static const struct {
		const char *spec, *error;
	} rows[] = {
		{ "", "``: `` is missing; " FORM },
		{ ":", "`:`: `` is missing; " FORM },
		{ ":80", "`:80`: `` is missing; " FORM },
		{ "8080:", "`8080:`: `` is missing; " FORM },
		{ "0:80", "`0:80`: `0` is not a port (1–65535) or a range of them" },
		{ "65536", "`65536`: `65536` is not a port (1–65535) or a range of them" },
		{ "99999999999999999999:1",
		  "`99999999999999999999:1`: `99999999999999999999` is not a port (1–65535) or a range of them" },
		{ "80-", "`80-`: `80-` is not a port (1–65535) or a range of them" },
		{ "80-81-82", "`80-81-82`: `80-81-82` is not a port (1–65535) or a range of them" },
		{ "9-8", "`9-8`: `9-8` ends before it begins" },
		{ "1-3:4-7", "`1-3:4-7`: 3 ports of the host do not fit 4 of the guest" },
		{ "8080:80/sctp", "`8080:80/sctp`: `80/sctp` is neither a port nor an address; " FORM },
		{ "http:80", "`http:80`: `http` is neither a port nor an address; " FORM },
		{ "::1:8080:80", "`::1:8080:80`: `` is missing; " FORM },
		{ "[::1:8080", "`[::1:8080`: `[::1:8080` is neither a port nor an address; " FORM },
		{ "127.0.0.1", "`127.0.0.1`: a port is missing after `127.0.0.1`; " FORM },
		{ "127.0.0.256:80:80", "`127.0.0.256:80:80`: `127.0.0.256` is neither a port nor an address; " FORM },
		{ "1:2:3", "`1:2:3`: `3` is too much; " FORM },
		{ "auto", "`auto`: a port of the guest is missing: auto:80" },
		{ "80:auto", "`80:auto`: `auto` is neither a port nor an address; " FORM },
		{ "*:80:80", "`*:80:80`: `*` is for the guest; 0.0.0.0 is every address of the host" },
		{ "relative.sock:80", "`relative.sock:80`: `relative.sock` is neither a port nor an address; " FORM },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct port_spec s = { .proto = "untouched" };
		struct error err = ERROR_NONE;

		assert_true(port_spec_parse(rows[i].spec, &s, &err) < 0);
		assert_string_equal(err.msg, rows[i].error);
		assert_string_equal(s.proto, "untouched");
	}
}

static void test_port_spec_ignore(void **state)
{
	static const struct {
		const char *spec, *rule;	/* NULL: refused */
	} rows[] = {
		{ "80", "{\"guestIP\":\"0.0.0.0\",\"guestIPMustBeZero\":false,\"guestPort\":80,\"ignore\":true}" },
		{ "10.0.0.7:80/udp", "{\"guestIP\":\"10.0.0.7\",\"guestPort\":80,\"ignore\":true,\"proto\":\"udp\"}" },
		{ "80:80", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_port_spec struct port_spec s = { 0 };
		struct error err = ERROR_NONE;
		json_t *rule = NULL;

		assert_int_equal(port_spec_parse(rows[i].spec, &s, &err), 0);
		assert_int_equal(port_spec_ignore_rule(&s, &rule, &err) == 0, rows[i].rule != NULL);
		scoped_free char *text = rule ? json_dumps(rule, JSON_COMPACT) : NULL;
		json_decref(rule);
		if (rows[i].rule)
			assert_string_equal(text, rows[i].rule);
		else
			assert_non_null(strstr(err.msg, "--ignore"));
	}
}

/* Rules as GET /v1/rules shows them. */
#define TCP_80 "{\"guestIP\":\"127.0.0.1\",\"guestIPMustBeZero\":false,\"guestPortRange\":[80,80]," \
	       "\"hostIP\":\"127.0.0.1\",\"hostPortRange\":[8080,8080],\"hostPortAuto\":false,\"proto\":\"any\"}"
#define RANGE "{\"guestIP\":\"0.0.0.0\",\"guestIPMustBeZero\":false,\"guestPortRange\":[9000,9010]," \
	      "\"hostIP\":\"::\",\"hostPortRange\":[8000,8010],\"proto\":\"udp\"}"
#define SOCKETS "{\"guestSocket\":\"/run/docker.sock\",\"hostSocket\":\"/tmp/d.sock\",\"proto\":\"any\"}"
#define AUTO "{\"guestIP\":\"127.0.0.1\",\"guestPortRange\":[80,80],\"hostIP\":\"127.0.0.1\"," \
	     "\"hostPortRange\":[80,80],\"hostPortAuto\":true,\"proto\":\"tcp\"}"
#define IGNORE "{\"guestIP\":\"0.0.0.0\",\"guestIPMustBeZero\":false,\"guestPortRange\":[5432,5432]," \
	       "\"hostIP\":\"127.0.0.1\",\"hostPortRange\":[5432,5432],\"ignore\":true,\"proto\":\"any\"}"

static void test_port_spec_of_a_rule(void **state)
{
	static const struct {
		const char *rule, *spec;
	} rows[] = {
		{ TCP_80, "8080:80" },
		{ RANGE, "[::]:8000-8010:*:9000-9010/udp" },
		{ SOCKETS, "/tmp/d.sock:/run/docker.sock" },
		{ AUTO, "auto:80/tcp" },
		{ IGNORE, "5432" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *rule = json_loads(rows[i].rule, 0, NULL);
		scoped_free char *spec = port_spec_of_rule(rule);
		scoped_port_spec struct port_spec s = { 0 };
		struct error err = ERROR_NONE;

		assert_string_equal(spec, rows[i].spec);
		assert_int_equal(port_spec_parse(spec, &s, &err), 0);	/* and back */
		assert_true(port_spec_is_rule(&s, rule));
		json_decref(rule);
	}
}

static void test_port_spec_names_a_rule(void **state)
{
	static const struct {
		const char *spec, *rule;
		bool want;
	} rows[] = {
		{ "8080", TCP_80, true },
		{ "127.0.0.1:8080", TCP_80, true },
		{ "8080/tcp", TCP_80, false },
		{ "80", TCP_80, false },
		{ "8080:81", TCP_80, false },
		{ "[::1]:8080", TCP_80, false },
		{ "[::]:8000-8010", RANGE, true },
		{ "[::]:8000-8010/udp", RANGE, true },
		{ "[::]:8000", RANGE, false },
		{ "/tmp/d.sock", SOCKETS, true },
		{ "/run/docker.sock", SOCKETS, false },
		{ "auto:80", AUTO, true },
		{ "80:80", AUTO, false },
		{ "5432", IGNORE, true },
		{ "5432:5432", IGNORE, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *rule = json_loads(rows[i].rule, 0, NULL);
		scoped_port_spec struct port_spec s = { 0 };
		struct error err = ERROR_NONE;

		assert_int_equal(port_spec_parse(rows[i].spec, &s, &err), 0);
		if (port_spec_is_rule(&s, rule) != rows[i].want)
			fail_msg("%s %s", rows[i].spec, rows[i].rule);
		json_decref(rule);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_port_spec_becomes_a_rule),
		cmocka_unit_test(test_port_spec_mistakes_are_told),
		cmocka_unit_test(test_port_spec_ignore),
		cmocka_unit_test(test_port_spec_of_a_rule),
		cmocka_unit_test(test_port_spec_names_a_rule),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
