/* TunnelMessage by hand against protobuf-c, statuses, and the cleaning of what a
 * guest sends. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "proto/message.h"
#include "proto/rpc_queue.h"
#include "proto/status.h"
#include "proto/tunnel_wire.h"

/* @bytes cut into slices of @step bytes. Inlined ones and, from 24 on, others. */
static size_t cut(const uint8_t *bytes, size_t len, size_t step, grpc_slice *out)
{
	size_t n = 0;

	for (size_t at = 0; at < len; at += step)
		out[n++] = grpc_slice_from_copied_buffer((const char *)bytes + at,
							 MIN(step, len - at));
	return n;
}

static void unref_all(grpc_slice *slices, size_t n)
{
	for (size_t i = 0; i < n; i++)
		grpc_slice_unref(slices[i]);
}

static int read_bytes(const uint8_t *bytes, size_t len, struct tunnel_head *head)
{
	grpc_slice slice = grpc_slice_from_copied_buffer((const char *)bytes, len);
	struct tunnel_data data;
	struct error err = { 0 };
	int rc = tunnel_wire_read(&slice, 1, head, &data, &err);

	assert_true(rc == 0 || err.msg[0]);
	grpc_slice_unref(slice);
	return rc;
}

static void test_wire_head_is_what_protobuf_reads(void **state)
{
	struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__REFUSED, .id = "tcp-1",
				    .protocol = "tcp", .guest_addr = "[::1]:80",
				    .error = "connection refused", .error_number = 111 };
	grpc_slice slice = tunnel_wire_head(&head, 5);
	uint8_t bytes[512];
	size_t len = GRPC_SLICE_LENGTH(slice);
	TunnelMessage *m;

	memcpy(bytes, GRPC_SLICE_START_PTR(slice), len);
	memcpy(bytes + len, "hello", 5);
	m = tunnel_message__unpack(NULL, len + 5, bytes);
	assert_non_null(m);
	assert_int_equal(m->kind, TUNNEL_MESSAGE__KIND__REFUSED);
	assert_string_equal(m->id, "tcp-1");
	assert_string_equal(m->protocol, "tcp");
	assert_string_equal(m->guest_addr, "[::1]:80");
	assert_string_equal(m->error, "connection refused");
	assert_int_equal(m->error_number, 111);
	assert_int_equal(m->data.len, 5);
	assert_memory_equal(m->data.data, "hello", 5);
	tunnel_message__free_unpacked(m, NULL);
	grpc_slice_unref(slice);
}

/* What a Lima peer sends has no kind field at all. */
static void test_wire_data_has_no_kind(void **state)
{
	struct tunnel_head head = { 0 };
	grpc_slice slice = tunnel_wire_head(&head, 300);
	const uint8_t expected[] = { 0x1a, 0xac, 0x02 };	/* field 3, length 300 */

	assert_int_equal(GRPC_SLICE_LENGTH(slice), sizeof(expected));
	assert_memory_equal(GRPC_SLICE_START_PTR(slice), expected, sizeof(expected));
	grpc_slice_unref(slice);
}

static void test_wire_reads_what_protobuf_writes_in_any_slices(void **state)
{
	TunnelMessage m = TUNNEL_MESSAGE__INIT;
	uint8_t payload[400], bytes[1024], got[400];
	grpc_slice slices[1024];

	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)(i * 7);
	m.id = "udp-2";
	m.protocol = "udp";
	m.guest_addr = "127.0.0.1:53";
	m.udp_target_addr = "unused";
	m.kind = TUNNEL_MESSAGE__KIND__OPEN;
	m.error_number = -5;
	m.data.data = payload;
	m.data.len = sizeof(payload);
	for (size_t step = 1; step < 450; step++) {
		size_t len = tunnel_message__pack(&m, bytes);
		size_t n = cut(bytes, len, step, slices), part, at = 0;
		struct tunnel_head head;
		struct tunnel_data data;
		struct error err = { 0 };
		const uint8_t *piece;

		assert_int_equal(tunnel_wire_read(slices, n, &head, &data, &err), 0);
		assert_string_equal(head.id, "udp-2");
		assert_string_equal(head.guest_addr, "127.0.0.1:53");
		assert_int_equal(head.kind, TUNNEL_MESSAGE__KIND__OPEN);
		assert_int_equal(head.error_number, -5);
		assert_int_equal(data.len, sizeof(payload));
		for (; tunnel_wire_next(slices, &data, &piece, &part); at += part)
			memcpy(got + at, piece, part);
		assert_int_equal(at, sizeof(payload));
		assert_memory_equal(got, payload, sizeof(payload));
		unref_all(slices, n);
	}
}

static void test_wire_empty_message_is_empty_data(void **state)
{
	struct tunnel_head head;
	struct tunnel_data data;
	struct error err = { 0 };
	const uint8_t *piece;
	size_t len;

	assert_int_equal(tunnel_wire_read(NULL, 0, &head, &data, &err), 0);
	assert_int_equal(head.kind, TUNNEL_MESSAGE__KIND__DATA);
	assert_false(tunnel_wire_next(NULL, &data, &piece, &len));
}

static void test_wire_refuses_what_is_broken(void **state)
{
	static const struct {
		const char *why;
		uint8_t bytes[16];
		size_t len;
	} bad[] = {
		{ "length beyond the end", { 0x1a, 0x05, 'a' }, 3 },
		{ "huge length", { 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f }, 10 },
		{ "endless varint", { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
				      0xff, 0xff }, 12 },
		{ "key without value", { 0x1a }, 1 },
		{ "group", { 0x1b }, 1 },
		{ "fixed64 cut", { 0x19, 1, 2, 3 }, 4 },
		{ "zero byte in a text", { 0x12, 0x03, 't', 0, 'p' }, 5 },
		{ "protocol too long", { 0x12, 0x09, 't', 't', 't', 't', 't', 't', 't', 't', 't' }, 11 },
	};
	struct tunnel_head head;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		print_message("%s\n", bad[i].why);
		assert_true(read_bytes(bad[i].bytes, bad[i].len, &head) < 0);
	}
}

/* No input makes it crash or read outside (the sanitizers look). */
static void test_wire_survives_noise(void **state)
{
	uint8_t bytes[64];
	grpc_slice slices[64];
	uint32_t x = 7;

	for (int round = 0; round < 200000; round++) {
		size_t len = (size_t)(round % 64) + 1, n;
		struct tunnel_head head;
		struct tunnel_data data;
		struct error err = { 0 };
		const uint8_t *piece;

		for (size_t i = 0; i < len; i++) {
			x = x * 1664525 + 1013904223;
			bytes[i] = (uint8_t)(x >> 24);
			if (i % 3 == 0)	/* often a valid key */
				bytes[i] = (uint8_t[]){ 0x0a, 0x12, 0x1a, 0x22 }[x >> 30];
		}
		n = cut(bytes, len, 1 + (size_t)(round % 7), slices);
		if (tunnel_wire_read(slices, n, &head, &data, &err) == 0)
			while (tunnel_wire_next(slices, &data, &piece, &len))
				assert_true(len > 0);
		unref_all(slices, n);
	}
}

/* --- status ------------------------------------------------------------------ */

static void test_status_keeps_errno_by_wire_number(void **state)
{
	const int codes[] = { -ECONNREFUSED, -EHOSTUNREACH, -ENETUNREACH, -ETIMEDOUT, -ECONNRESET,
			      -EACCES, -EMFILE };

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
		assert_int_equal(status_errno_from_wire(status_errno_to_wire(codes[i])), codes[i]);
		assert_int_not_equal(status_from_errno(codes[i]), GRPC_STATUS_OK);
		/* a peer that only has our text gets it right too */
		assert_int_equal(status_to_errno(status_from_errno(codes[i]), error_text(codes[i])),
				 codes[i]);
	}
	assert_int_equal(status_errno_from_wire(0), -EIO);
	assert_int_equal(status_errno_from_wire(-111), -EIO);
	assert_int_equal(status_errno_from_wire(99999), -EIO);
}

static void test_status_reads_go_texts(void **state)
{
	static const struct {
		const char *text;
		int code;
	} go[] = {
		{ "dial tcp 127.0.0.1:80: connect: connection refused", -ECONNREFUSED },
		{ "dial tcp 10.0.0.9:80: connect: no route to host", -EHOSTUNREACH },
		{ "dial tcp 10.0.0.9:80: i/o timeout", -ETIMEDOUT },
		{ "read tcp 1.2.3.4:5->6.7.8.9:10: read: connection reset by peer", -ECONNRESET },
		{ "something new", -EIO },
	};

	for (size_t i = 0; i < ARRAY_SIZE(go); i++)
		assert_int_equal(status_to_errno(GRPC_STATUS_UNKNOWN, go[i].text), go[i].code);
	assert_int_equal(status_to_errno(GRPC_STATUS_OK, NULL), 0);
	assert_int_equal(status_to_errno((grpc_status_code)77, NULL), -EIO);
}

static void test_status_text_of_peer_is_escaped(void **state)
{
	struct error err = { 0 };

	status_set_error(&err, GRPC_STATUS_INTERNAL, "\033[2Jgone\n");
	assert_int_equal(err.code, -EPROTO);
	assert_null(strchr(err.msg, '\033'));
	assert_null(strchr(err.msg, '\n'));
}

static void test_status_does_not_say_it_twice(void **state)
{
	struct error err = { 0 };

	status_set_error(&err, GRPC_STATUS_UNKNOWN, "dial tcp [::1]:80: connection refused");
	assert_int_equal(err.code, -ECONNREFUSED);
	assert_string_equal(err.msg, "dial tcp [::1]:80: connection refused");
	status_set_error(&err, GRPC_STATUS_INTERNAL, "odd");
	assert_string_equal(err.msg, "odd: protocol error");
}

/* --- messages ---------------------------------------------------------------- */

static void test_message_ports_are_checked(void **state)
{
	static const struct {
		char *protocol, *ip;
		int port;
		bool valid;
	} rows[] = {
		{ "tcp", "127.0.0.1", 80, true },   { "udp", "::", 65535, true },
		{ "tcp", "0.0.0.0", 1, true },	    { "tcp", "127.0.0.1", 0, false },
		{ "tcp", "127.0.0.1", 65536, false }, { "tcp", "127.0.0.1", -1, false },
		{ "sctp", "127.0.0.1", 80, false }, { "", "127.0.0.1", 80, false },
		{ "tcp", "", 80, false },	    { "tcp", "localhost", 80, false },
		{ "tcp", "127.0.0.1/8", 80, false }, { "tcp", "fe80::1%eth0", 80, false },
		{ "TCP", "127.0.0.1", 80, false },  { "tcp", "1.2.3", 80, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		IPPort p = IPPORT__INIT;

		p.protocol = rows[i].protocol;
		p.ip = rows[i].ip;
		p.port = rows[i].port;
		assert_int_equal(message_port_valid(&p), rows[i].valid);
	}
}

static void test_message_texts_are_made_printable(void **state)
{
	static const struct {
		const char *in, *out;
		size_t max;
	} rows[] = {
		{ "plain", "plain", 100 },
		{ "a\033[31mb\nc\x7f", "a?[31mb?c?", 100 },
		{ "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f", 100 },
		{ "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc", 5 },	/* not half a character */
		{ "bad \xff\xc3", "bad ??", 100 },
		{ "c1 \xc2\x9b" "2J", "c1 ??2J", 100 },
		{ "turned \xe2\x80\xae" "exe", "turned ???exe", 100 },
		{ "\xe2\x81\xa6\xef\xbb\xbf\xe2\x80\x8f", "?????????", 100 },
		{ "\xe2\x80\xa6 \xef\xbb\xbe", "\xe2\x80\xa6 \xef\xbb\xbe", 100 },	/* an ellipsis stays */
		{ "\xd8\x9c\xe2\x80\xaf", "??\xe2\x80\xaf", 100 }, /* 061C; 202F is a space */
		{ "\xe2\x80\xaa\xe2\x81\xa9", "??????", 100 },	/* 202A, 2069 */
		{ "one\xe2\x80\xa8" "two\xe2\x80\xa9three\xc2\x85", "one???two???three??", 100 },
		{ "ro\xe2\x80\x8bot\xe2\x81\xa0\xc2\xad", "ro???ot?????", 100 },
		{ "\xf3\xa0\x81\x81\xf0\x9f\x90\xa7", "????\xf0\x9f\x90\xa7", 100 }, /* a tag, a penguin */
		{ "\xe2\x80\x8c\xe2\x80\x8d", "\xe2\x80\x8c\xe2\x80\x8d", 100 }, /* joiners stay */
		{ "12345", "123", 3 },
		{ "", "", 3 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *s = xstrdup(rows[i].in);

		message_clean_text(s, rows[i].max);
		assert_string_equal(s, rows[i].out);
	}
}

/* Two bytes on the wire, a hundred in memory: the budget ends it. */
static void test_message_budget_stops_amplification(void **state)
{
	size_t n = 2 << 20;
	scoped_free uint8_t *bytes = xcalloc(n, 2);
	struct error err = { 0 };
	grpc_byte_buffer *bb;
	grpc_slice slice;

	for (size_t i = 0; i < n; i++)
		bytes[2 * i] = 0x12;	/* added_local_ports, empty */
	slice = grpc_slice_from_static_buffer(bytes, 2 * n);
	bb = grpc_raw_byte_buffer_create(&slice, 1);
	assert_null(message_unpack(&event__descriptor, bb, &err));
	assert_int_equal(err.code, -EPROTO);
	grpc_byte_buffer_destroy(bb);
}

static void test_message_all_ports_fit(void **state)
{
	enum { N = 2 * 65535 };
	Event event = EVENT__INIT, *got;
	IPPort *ports = xcalloc(N, sizeof(*ports));
	IPPort **list = xcalloc(N, sizeof(*list));
	struct error err = { 0 };
	grpc_byte_buffer *bb;

	for (int i = 0; i < N; i++) {
		ports[i] = (IPPort)IPPORT__INIT;
		ports[i].protocol = i & 1 ? "udp" : "tcp";
		ports[i].ip = "127.0.0.1";
		ports[i].port = 1 + i / 2;
		list[i] = &ports[i];
	}
	event.n_added_local_ports = N;
	event.added_local_ports = list;
	bb = message_pack(&event.base);
	assert_true(grpc_byte_buffer_length(bb) < 4 << 20);	/* the receive limit */
	got = message_unpack(&event__descriptor, bb, &err);
	assert_non_null(got);
	message_clean_event(got);
	assert_int_equal(got->n_added_local_ports, N);
	event__free_unpacked(got, NULL);
	grpc_byte_buffer_destroy(bb);
	free(list);
	free(ports);
}

static int int_arg(const grpc_channel_args *args, const char *key)
{
	for (size_t i = 0; i < args->num_args; i++) {
		if (args->args[i].type == GRPC_ARG_INTEGER && streq(args->args[i].key, key))
			return args->args[i].value.integer;
	}
	return -1;
}

/* Lima's guest agent is a grpc-go server: it hangs up on a client that pings more
 * often than every 5 minutes (keepalive.EnforcementPolicy, MinTime), with all
 * tunnels. A paused machine answers none, and gRPC would hang up itself. */
static void test_nobody_pings(void **state)
{
	const grpc_channel_args *sides[] = { rpc_client_args(), rpc_server_args() };

	for (size_t i = 0; i < ARRAY_SIZE(sides); i++) {
		assert_int_equal(int_arg(sides[i], GRPC_ARG_KEEPALIVE_TIME_MS), INT_MAX);
		assert_int_equal(int_arg(sides[i], GRPC_ARG_HTTP2_BDP_PROBE), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wire_head_is_what_protobuf_reads),
		cmocka_unit_test(test_wire_data_has_no_kind),
		cmocka_unit_test(test_wire_reads_what_protobuf_writes_in_any_slices),
		cmocka_unit_test(test_wire_empty_message_is_empty_data),
		cmocka_unit_test(test_wire_refuses_what_is_broken),
		cmocka_unit_test(test_wire_survives_noise),
		cmocka_unit_test(test_status_keeps_errno_by_wire_number),
		cmocka_unit_test(test_status_reads_go_texts),
		cmocka_unit_test(test_status_text_of_peer_is_escaped),
		cmocka_unit_test(test_status_does_not_say_it_twice),
		cmocka_unit_test(test_message_ports_are_checked),
		cmocka_unit_test(test_message_texts_are_made_printable),
		cmocka_unit_test(test_message_budget_stops_amplification),
		cmocka_unit_test(test_message_all_ports_fit),
		cmocka_unit_test(test_nobody_pings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
