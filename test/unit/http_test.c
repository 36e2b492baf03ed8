#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "hostagent/http.h"
#include "lib/base/mem.h"

static void test_http_requests(void **state)
{
	static const struct {
		const char *text;
		int want;	/* 1: taken whole; 0: more; < 0: refused */
		const char *method, *path;
		bool keep;
	} rows[] = {
		{ "GET /v1/info HTTP/1.1\r\nHost: lima-hostagent\r\n\r\n", 1, "GET", "/v1/info", true },
		{ "GET /v1/info?a=b%20c HTTP/1.1\r\n\r\n", 1, "GET", "/v1/info", true },
		{ "HEAD / HTTP/1.0\r\nX: y\r\n\r\n", 1, "HEAD", "/", false },
		{ "GET /a HTTP/1.1\r\nconnection:  CLOSE \r\n\r\n", 1, "GET", "/a", false },
		{ "POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1, "POST", "/a", true },
		{ "GET /v1/info HTTP/1.1\r\nHost: x\r\n", .want = 0 },
		{ "GET", .want = 0 },
		{ "", .want = 0 },
		{ "GET /a HTTP/1.1\n\n", .want = 0 },	/* never ends: the timeout's business */
		{ "\x16\x03\x01", .want = -400 },	/* TLS */
		{ "get /a HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET  /a HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET /a\r\n\r\n", .want = -400 },
		{ "GET a HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET http://h/a HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET /a b HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET /a HTTP/2.0\r\n\r\n", .want = -505 },
		{ "GET /a HTTP/1.1 \r\n\r\n", .want = -400 },
		{ "GET /\x01 HTTP/1.1\r\n\r\n", .want = -400 },
		{ "GET /a HTTP/1.1\r\nno colon\r\n\r\n", .want = -400 },
		{ "GET /a HTTP/1.1\r\nA : b\r\n\r\n", .want = -400 },	/* space before the colon */
		{ "GET /a HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", .want = -400 },
		{ "GET /a HTTP/1.1\r\nA: \x01\r\n\r\n", .want = -400 },
		{ "POST /a HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", .want = -413 },
		{ "POST /a HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", .want = -413 },
		{ "POST /a HTTP/1.1\r\nContent-Length:\r\n\r\n", .want = -400 },
		{ "POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n", .want = -400 },
		{ "POST /a HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", .want = -400 },
		{ "POST /a HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", .want = -400 },
		{ "POST /a HTTP/1.1\r\nExpect: the worst\r\n\r\n", .want = -417 },
		{ "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", .want = -501 },
		{ "AVERYLONGMETHODNAME / HTTP/1.1\r\n\r\n", .want = -501 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct http_request r = { .method = "?" };
		int got = http_parse(rows[i].text, strlen(rows[i].text), &r);

		if (rows[i].want > 0) {
			assert_int_equal(got, strlen(rows[i].text));
			assert_string_equal(r.method, rows[i].method);
			assert_string_equal(r.path, rows[i].path);
			assert_int_equal(r.keep_alive, rows[i].keep);
		} else {
			assert_int_equal(got, rows[i].want);
			assert_string_equal(r.method, "?");	/* untouched */
		}
	}
}

static void test_http_body_is_announced(void **state)
{
	static const char text[] = "POST /a HTTP/1.1\r\nContent-Length: 65536\r\ncontent-length: 65536\r\n"
				   "Expect: 100-Continue\r\n\r\nhello";
	struct http_request r;

	assert_int_equal(http_parse(text, strlen(text), &r), strlen(text) - strlen("hello"));
	assert_int_equal(r.body_len, HTTP_BODY_MAX_BYTES);
	assert_true(r.expects_continue);
	assert_true(http_parse("GET /a HTTP/1.1\r\n\r\n", 19, &r) > 0);
	assert_int_equal(r.body_len, 0);
	assert_false(r.expects_continue);
}

/* Each cut of a good request asks for more; what follows it is left alone. */
static void test_http_pieces(void **state)
{
	static const char two[] = "GET /a HTTP/1.1\r\nA: b\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
	size_t first = (size_t)(strstr(two, "\r\n\r\n") - two) + 4;
	struct http_request r;

	for (size_t n = 0; n < first; n++)
		assert_int_equal(http_parse(two, n, &r), 0);
	for (size_t n = first; n < sizeof(two); n++)
		assert_int_equal(http_parse(two, n, &r), first);
	assert_string_equal(r.path, "/a");
}

static void test_http_oversized(void **state)
{
	static char big[HTTP_HEAD_MAX_BYTES];
	char path[400] = "GET /";
	struct http_request r;

	memset(big, 'A', sizeof(big));
	assert_int_equal(http_parse(big, sizeof(big) - 1, &r), 0);
	assert_int_equal(http_parse(big, sizeof(big), &r), -431);
	memset(path + 5, 'p', 300);
	strcpy(path + 305, " HTTP/1.1\r\n\r\n");
	assert_int_equal(http_parse(path, strlen(path), &r), -414);
}

static void test_http_responses(void **state)
{
	scoped_buf struct buf b = { 0 };

	http_add_response(&b, 200, "application/json", "{}", 2, true, false);
	assert_string_equal(buf_str(&b), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
					 "Content-Length: 2\r\n\r\n{}");
	buf_reset(&b);
	http_add_error(&b, 405, "GET, HEAD", "only \"GET\"", false);
	assert_string_equal(buf_str(&b),
			    "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"
			    "Content-Type: application/json\r\nContent-Length: 49\r\n"
			    "Connection: close\r\n\r\n"
			    "{\"error\":\"only \\\"GET\\\"\",\"message\":\"only \\\"GET\\\"\"}");
	buf_reset(&b);
	http_add_stream_piece(&b, "0123456789abcdef", 16, true);
	assert_string_equal(buf_str(&b), "10\r\n0123456789abcdef\r\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_http_requests),
		cmocka_unit_test(test_http_body_is_announced),
		cmocka_unit_test(test_http_pieces),
		cmocka_unit_test(test_http_oversized),
		cmocka_unit_test(test_http_responses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
