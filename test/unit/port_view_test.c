/* What `limactl port list` makes of the host agent's JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/limactl/port_model.h"
#include "lib/base/mem.h"

#define ROW(guest, host, state, error, more) \
	"{\"protocol\":\"tcp\",\"guestAddr\":\"" guest "\",\"hostAddr\":\"" host "\",\"state\":\"" state \
	"\",\"error\":\"" error "\"" more "}"

static void test_port_view_table(void **state)
{
	static const char *const rows[] = {
		ROW("127.0.0.1:80", "127.0.0.1:8080", "forwarding", "",
		    ",\"lane\":\"vsock\",\"connectionsNow\":3,\"connectionsTotal\":120,\"bytesIn\":1288490189,"
		    "\"bytesOut\":10,\"origin\":\"live\",\"rule\":\"live rule 7\",\"errorsTotal\":2"),
		ROW("0.0.0.0:5353", "127.0.0.1:5353", "waiting", "taken by avahi \\u001b[31m", ""),
	};
	static const char *const want[] = {
		"PROTO  GUEST         HOST            STATE       LANE   CONNS       IN   OUT  ERRORS  NOTE",
		"tcp    127.0.0.1:80  127.0.0.1:8080  forwarding  vsock  3/120  1.2 GiB  10 B       2  live rule 7",
		"tcp    0.0.0.0:5353  127.0.0.1:5353  waiting     –          –        –     –       –  "
		"taken by avahi \\x1b[31m",
	};
	scoped_text_table struct text_table t = { 0 };

	port_rows_begin(&t, 0);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *row = json_loads(rows[i], 0, NULL);

		port_rows_add(&t, 0, NULL, row, NULL);
		json_decref(row);
	}
	assert_int_equal(text_table_rows(&t), 3);
	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		scoped_buf struct buf line = { 0 }, narrow = { 0 };

		text_table_line(&t, i, 0, &line);
		assert_string_equal(buf_str(&line), want[i]);
		text_table_line(&t, i, 10, &narrow);
		assert_string_equal(buf_str(&narrow) + narrow.len - strlen("…"), "…");
		assert_memory_equal(buf_str(&narrow), want[i], narrow.len - strlen("…"));
	}
}

/* Somebody added a rule and asks where it is, though nobody listens yet. */
static void test_port_view_rule_without_listener(void **state)
{
	json_t *ports = json_loads("[" ROW("127.0.0.1:90", "127.0.0.1:90", "forwarding", "", ",\"ruleId\":3,\"rule\":\"live rule 3\"") "]",
				   0, NULL);
	json_t *rules = json_loads(
		"[{\"id\":3,\"origin\":\"live\"},"
		"{\"id\":4,\"origin\":\"live\",\"name\":\"live rule 4\",\"proto\":\"any\",\"guestIP\":\"127.0.0.1\","
		"\"guestPortRange\":[80,80],\"hostIP\":\"127.0.0.1\",\"hostPortRange\":[8080,8080]},"
		"{\"id\":5,\"origin\":\"live\",\"proto\":\"tcp\",\"guestIP\":\"127.0.0.1\","
		"\"guestPortRange\":[89,90],\"hostIP\":\"127.0.0.1\",\"hostPortRange\":[189,190]},"
		"{\"id\":1,\"origin\":\"file\",\"guestPortRange\":[1,2],\"hostPortRange\":[1,2]}]", 0, NULL);
	json_t *idle = port_rows_idle(ports, rules);
	scoped_free char *line = port_rows_line(json_array_get(idle, 0));
	scoped_free char *shadowed = port_rows_line(json_array_get(idle, 1));

	assert_int_equal(json_array_size(idle), 2);
	assert_string_equal(shadowed, "tcp 89-90 on 189-190: idle: live rule 3 decides about 127.0.0.1:90");
	assert_string_equal(line, "any 80 on 8080: idle: nothing listens on it in the guest");
	json_decref(ports);
	json_decref(rules);
	json_decref(idle);
}

struct seen {
	struct buf text;
};

static void on_changed(void *arg, const json_t *row, bool gone)
{
	struct seen *s = arg;
	scoped_free char *line = port_rows_line(row);

	buf_addf(&s->text, "%s%s|", gone ? "gone " : "", line);
}

static void take(struct port_model *m, const char *line, uint64_t at)
{
	struct error err = ERROR_NONE;

	if (port_model_take(m, line, at, &err) < 0)
		fail_msg("%s", err.msg);
}

static void test_port_view_model_follows_the_stream(void **state)
{
	struct seen seen = { 0 };
	struct port_model m = { .changed = on_changed, .arg = &seen };
	struct error err = ERROR_NONE;

	take(&m, "{\"type\":\"snapshot\",\"ports\":[" ROW("a", "x", "forwarding", "", "") ","
		 ROW("b", "y", "waiting", "nginx has it", "") "],\"rules\":[]}", 1000);
	assert_string_equal(buf_str(&seen.text), "tcp a on x: forwarding|tcp b on y: waiting: nginx has it|");
	buf_reset(&seen.text);

	take(&m, "{\"type\":\"change\",\"changed\":[" ROW("a", "x", "forwarding", "", ",\"bytesIn\":1000") "],"
		 "\"removed\":[]}", 1500);
	assert_int_equal(seen.text.len, 0);	/* only counters */
	assert_true(m.rows[0].rates.in == 2000);
	assert_true(port_model_age(&m, 2900));
	assert_false(port_model_age(&m, 3100));
	/* after a rest: since the last look, not since the rest began */
	take(&m, "{\"type\":\"change\",\"changed\":[" ROW("a", "x", "forwarding", "", ",\"bytesIn\":2000") "]}",
	     60000);
	assert_true(m.rows[0].rates.in == 2000);

	take(&m, "{\"type\":\"change\",\"changed\":[" ROW("b", "y", "forwarding", "", "") ","
		 ROW("c", "z", "forwarding", "", "") "],\"removed\":[{\"protocol\":\"tcp\",\"guestAddr\":\"a\","
		 "\"hostAddr\":\"x\"}]}", 61000);
	assert_string_equal(buf_str(&seen.text),
			    "gone tcp a on x: forwarding|tcp b on y: forwarding|tcp c on z: forwarding|");
	buf_reset(&seen.text);
	assert_int_equal(m.n, 2);

	/* a second snapshot: what is not in it went away */
	take(&m, "{\"type\":\"snapshot\",\"ports\":[" ROW("c", "z", "forwarding", "", "") "]}", 62000);
	assert_string_equal(buf_str(&seen.text), "gone tcp b on y: forwarding|");
	take(&m, "{\"type\":\"of the future\"}", 62000);
	assert_int_equal(m.n, 1);
	assert_true(port_model_take(&m, "nonsense", 62000, &err) < 0);
	assert_true(port_model_take(&m, "[]", 62000, &err) < 0);
	take(&m, "{\"type\":\"snapshot\",\"ports\":7,\"rules\":\"x\"}", 62000);
	assert_int_equal(m.n, 0);
	port_model_done(&m);
	buf_done(&seen.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_port_view_table),
		cmocka_unit_test(test_port_view_rule_without_listener),
		cmocka_unit_test(test_port_view_model_follows_the_stream),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
