#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/port_feed.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

/* A forward, its feed, and a reader that keeps every line. */
struct world {
	struct fx fx;
	struct port_feed *feed;
	struct strv lines;
	bool sleeps;		/* takes nothing */
	bool no_forward;
	size_t want;
};

static struct forward *forward_of(void *arg)
{
	struct world *w = arg;

	return w->no_forward ? NULL : w->fx.forward;
}

static void start(struct world *w)
{
	*w = (struct world){ 0 };
	fx_start(&w->fx, NULL, 0, NULL);
	w->feed = port_feed_new(&w->fx.loop, forward_of, w);
}

static void stop(struct world *w)
{
	port_feed_close(w->feed);
	fx_stop(&w->fx);
	strv_done(&w->lines);
}

static bool take_line(void *to, const char *line)
{
	struct world *w = to;

	if (w->sleeps)
		return false;
	strv_add(&w->lines, line);
	return true;
}

static bool has_lines(void *arg)
{
	struct world *w = arg;

	return w->lines.len >= w->want;
}

/* The newest line once there are @n. */
static json_t *line_at(struct world *w, size_t n)
{
	json_t *root;

	w->want = n;
	assert_true(fx_until(&w->fx, has_lines, w));
	assert_int_equal(w->lines.len, n);
	root = json_loads(w->lines.items[n - 1], 0, NULL);
	assert_non_null(root);
	return root;
}

static const char *text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

static void test_port_feed_snapshot_then_changes(void **state)
{
	uint16_t port = fx_free_port(), other = fx_free_port();
	scoped_free char *guest = xasprintf("127.0.0.1:%u", port);
	struct world w;
	const json_t *row;
	unsigned id;
	json_t *l;

	start(&w);
	fx_add(&w.fx, IPPROTO_TCP, "127.0.0.1", port);
	id = port_feed_subscribe(w.feed, take_line, &w);
	assert_true(id > 0);
	l = line_at(&w, 1);	/* at once */
	assert_string_equal(text(l, "type"), "snapshot");
	assert_int_equal(json_array_size(json_object_get(l, "ports")), 1);
	row = json_array_get(json_object_get(l, "ports"), 0);
	assert_string_equal(text(row, "guestAddr"), guest);
	assert_string_equal(text(row, "state"), "forwarding");
	json_decref(l);

	fx_add(&w.fx, IPPROTO_UDP, "127.0.0.1", other);
	port_feed_poke(w.feed);
	port_feed_poke(w.feed);
	l = line_at(&w, 2);	/* once, and only what changed */
	assert_string_equal(text(l, "type"), "change");
	assert_int_equal(json_array_size(json_object_get(l, "changed")), 1);
	assert_string_equal(text(json_array_get(json_object_get(l, "changed"), 0), "protocol"), "udp");
	assert_int_equal(json_array_size(json_object_get(l, "removed")), 0);
	json_decref(l);

	fx_remove(&w.fx, IPPROTO_TCP, "127.0.0.1", port);
	l = line_at(&w, 3);	/* nobody pokes: found all the same */
	assert_int_equal(json_array_size(json_object_get(l, "changed")), 0);
	row = json_array_get(json_object_get(l, "removed"), 0);
	assert_string_equal(text(row, "protocol"), "tcp");
	assert_string_equal(text(row, "guestAddr"), guest);
	assert_string_equal(text(row, "hostAddr"), guest);
	json_decref(l);

	fx_turn(&w.fx, 1200);	/* nothing changes, nothing is told */
	assert_int_equal(w.lines.len, 3);
	w.no_forward = true;	/* the link was undone */
	l = line_at(&w, 4);
	assert_int_equal(json_array_size(json_object_get(l, "removed")), 1);
	json_decref(l);
	port_feed_unsubscribe(w.feed, id);
	w.no_forward = false;
	fx_turn(&w.fx, 700);
	assert_int_equal(w.lines.len, 4);
	stop(&w);
}

static void connect_and_send(void *arg)
{
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", *(uint16_t *)arg);
	char back[5];

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "hello", 5), 5);
	assert_int_equal(read(fd, back, 5), 5);
	close(fd);
}

/* Counters are told without a poke, twice a second at most. */
static void test_port_feed_counters(void **state)
{
	uint16_t port = fx_free_port();
	struct world w;
	uint64_t began;
	json_int_t in = 0;

	start(&w);
	w.fx.lane.mode = MOCK_ECHO;
	fx_add(&w.fx, IPPROTO_TCP, "127.0.0.1", port);
	port_feed_subscribe(w.feed, take_line, &w);
	began = clock_mono_ms();
	for (int i = 0; i < 10; i++)
		assert_true(fx_client(&w.fx, connect_and_send, &port));
	fx_turn(&w.fx, 1100);
	assert_in_range(w.lines.len, 2, 2 + (clock_mono_ms() - began) / 500);
	for (size_t i = 1; i < w.lines.len; i++) {
		json_t *l = json_loads(w.lines.items[i], 0, NULL);
		const json_t *row = json_array_get(json_object_get(l, "changed"), 0);

		in = json_integer_value(json_object_get(row, "bytesIn"));
		json_decref(l);
	}
	assert_int_equal(in, 50);
	stop(&w);
}

/* Who was behind gets all of it again, not the middle. */
static void test_port_feed_reader_that_was_behind(void **state)
{
	struct world w;
	json_t *l;

	start(&w);
	port_feed_subscribe(w.feed, take_line, &w);
	json_decref(line_at(&w, 1));
	w.sleeps = true;
	fx_add(&w.fx, IPPROTO_TCP, "127.0.0.1", fx_free_port());
	fx_turn(&w.fx, 700);
	fx_add(&w.fx, IPPROTO_TCP, "127.0.0.1", fx_free_port());
	fx_turn(&w.fx, 700);
	assert_int_equal(w.lines.len, 1);
	w.sleeps = false;
	l = line_at(&w, 2);
	assert_string_equal(text(l, "type"), "snapshot");
	assert_int_equal(json_array_size(json_object_get(l, "ports")), 2);
	json_decref(l);
	fx_add(&w.fx, IPPROTO_TCP, "127.0.0.1", fx_free_port());
	l = line_at(&w, 3);
	assert_string_equal(text(l, "type"), "change");
	json_decref(l);
	stop(&w);
}

static void test_port_feed_live_rules(void **state)
{
	uint16_t port = fx_free_port();
	struct config_port_forward rule = {
		.guest_ip = fx_port(IPPROTO_TCP, "127.0.0.1", 1).ip,
		.host_ip = fx_port(IPPROTO_TCP, "127.0.0.1", 1).ip,
		.guest_port = { 80, 80 },
		.host_port = { port, port },
		.proto = L4_TCP,
	};
	struct error err = ERROR_NONE;
	const json_t *r;
	struct world w;
	unsigned id;
	json_t *l;

	start(&w);
	port_feed_subscribe(w.feed, take_line, &w);
	assert_int_equal(forward_add_rule(w.fx.forward, &rule, &id, &err), 0);
	port_feed_poke(w.feed);
	l = line_at(&w, 2);
	r = json_array_get(json_object_get(l, "rules"), 0);
	assert_int_equal(json_integer_value(json_object_get(r, "id")), id);
	assert_string_equal(text(r, "origin"), "live");
	assert_string_equal(text(r, "hostIP"), "127.0.0.1");
	assert_string_equal(text(r, "proto"), "tcp");
	assert_int_equal(json_integer_value(json_array_get(json_object_get(r, "hostPortRange"), 1)), port);
	json_decref(l);
	assert_int_equal(forward_remove_rule(w.fx.forward, id, &err), 0);
	l = line_at(&w, 3);
	assert_int_equal(json_array_size(json_object_get(l, "rules")), 0);
	json_decref(l);
	stop(&w);
}

/* Ten thousand listeners: a look must not hold up the loop. */
static void test_port_feed_many_listeners(void **state)
{
	enum { N = 10000 };
	struct guest_port *ports = xcalloc(N, sizeof(*ports));
	struct world w;
	uint64_t began;
	json_t *l;

	start(&w);
	for (unsigned i = 0; i < N; i++)	/* no rule forwards 10.x */
		ports[i] = fx_port(IPPROTO_TCP, i < N / 2 ? "10.0.0.1" : "10.0.0.2", (uint16_t)(1000 + i % (N / 2)));
	port_feed_subscribe(w.feed, take_line, &w);
	forward_set_ports(w.fx.forward, ports, N);
	l = line_at(&w, 2);
	assert_int_equal(json_array_size(json_object_get(l, "changed")), N);
	json_decref(l);
	began = clock_mono_ms();
	fx_turn(&w.fx, 2000);	/* looks, each finding nothing */
	assert_int_equal(w.lines.len, 2);
	assert_true(clock_mono_ms() - began < 2000 + 1500);
	forward_set_ports(w.fx.forward, ports, N - 1);
	l = line_at(&w, 3);
	assert_int_equal(json_array_size(json_object_get(l, "removed")), 1);
	json_decref(l);
	free(ports);
	stop(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_port_feed_snapshot_then_changes),
		cmocka_unit_test(test_port_feed_counters),
		cmocka_unit_test(test_port_feed_reader_that_was_behind),
		cmocka_unit_test(test_port_feed_live_rules),
		cmocka_unit_test(test_port_feed_many_listeners),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
