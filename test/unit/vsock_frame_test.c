/* Frames, and a connection of the vsock that serves one client after another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/virtio/vsock_frame.h"
#include "test/mock/vsock_fx.h"

/* --- frames ------------------------------------------------------------------- */

static const uint8_t wire[] = { 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 1, 'd', 0, 0, 0, 0,
				0xff, 0xff, 0xff, 0xff };

/* The wire in pieces of @size: what comes out, 0 for an end and D for done. */
static void read_all(size_t size, unsigned max, char *ret)
{
	uint8_t bytes[sizeof(wire)];
	struct iovec pieces[sizeof(wire)], out[8], *in = pieces;
	struct frame_reader r = { 0 };
	unsigned n_in = 0, n;
	enum frame_event event;
	uint32_t heads, all_heads = 0;

	memcpy(bytes, wire, sizeof(wire));
	for (size_t at = 0; at < sizeof(wire); at += size)
		pieces[n_in++] = (struct iovec){ bytes + at, MIN(size, sizeof(wire) - at) };
	do {
		event = frame_read(&r, &in, &n_in, out, max, &n, &heads);
		assert_true(n <= max && event != FRAME_BAD);
		for (unsigned i = 0; i < n; i++) {
			memcpy(ret, out[i].iov_base, out[i].iov_len);
			ret += out[i].iov_len;
		}
		all_heads += heads;
		if (event == FRAME_IS_END || event == FRAME_IS_DONE)
			*ret++ = event == FRAME_IS_END ? '0' : 'D';
	} while (event != FRAME_ALL_READ);
	*ret = 0;
	assert_int_equal(all_heads, 16);
}

static void test_frame_read_in_pieces_of_every_size(void **state)
{
	char got[32];

	for (size_t size = 1; size <= sizeof(wire); size++)
		for (unsigned max = 1; max < 8; max++) {
			read_all(size, max, got);
			assert_string_equal(got, "abcd0D");
		}
}

static void test_frame_read_bounds_the_length(void **state)
{
	uint8_t most[] = { 1, 0, 0, 0 }, more[] = { 1, 0, 0, 1 };
	struct iovec in = { most, sizeof(most) }, *at = &in, out;
	struct frame_reader r = { 0 };
	unsigned n_in = 1, n;
	uint32_t heads;

	assert_int_equal(frame_read(&r, &at, &n_in, &out, 1, &n, &heads), FRAME_ALL_READ);
	assert_int_equal(r.left, FRAME_MAX);
	r = (struct frame_reader){ 0 };
	in = (struct iovec){ more, sizeof(more) };
	at = &in;
	n_in = 1;
	assert_int_equal(frame_read(&r, &at, &n_in, &out, 1, &n, &heads), FRAME_BAD);
}

/* --- the device --------------------------------------------------------------- */

enum { HELLO = 24, ROUNDS = 3 };

struct served {			/* the host's side of one connection */
	struct vsock_conn *conn;
	int far;		/* the client's other end */
	unsigned asked, opened, finished, idle, ended;
	int code;
	bool again;		/* the next client comes as soon as it is idle */
	bool moved;		/* anything of that one's, when it ended */
	struct vsock_relay relay;
};

static atomic_uint rounds_done;
static struct fx fx;
static const char *tail;	/* what the guest sends behind its answer */
static bool dies;		/* … and then it resets */

static void on_opened(void *arg)
{
	((struct served *)arg)->opened++;
}

static void on_finished(void *arg)
{
	struct served *s = arg;

	s->finished++;
	close(s->relay.fd);
}

static void ask(struct served *s);

static void on_idle(void *arg)
{
	struct served *s = arg;

	s->idle++;
	if (s->again)
		ask(s);
}

static void on_ended(void *arg, const struct error *why)
{
	struct served *s = arg;

	s->ended++;
	s->code = why->code;
	s->moved = vsock_conn_has_moved(s->conn);
	s->conn = NULL;
}

static int judge(void *arg, const uint8_t *bytes)
{
	return bytes[7];
}

static bool is_open(void *arg)
{
	return ((struct served *)arg)->opened;
}

static bool is_over(void *arg)
{
	struct served *s = arg;

	return s->idle == s->asked && s->finished == s->asked;
}

static bool is_served(void *arg)
{
	return ((struct served *)arg)->finished;
}

static bool guest_has_said_all(void *arg)
{
	return rounds_done;
}

static bool was_reset(void *arg)
{
	return ((struct served *)arg)->ended;
}

static const uint8_t *data;	/* the guest's: what it has yet to read of a packet */
static size_t left;

/* What comes next as payload, @len bytes of it. */
static void guest_reads(struct vsock_guest *g, void *bytes, size_t len)
{
	for (size_t at = 0; at < len;) {
		size_t n;

		while (left == 0) {
			const struct vsock_packet *p = vsock_guest_receive(g, &data, DEADLINE_MS);

			assert_non_null(p);
			left = p->op == VSOCK_OP_RW ? p->len : 0;
		}
		n = MIN(left, len - at);
		memcpy((uint8_t *)bytes + at, data, n);
		data += n;
		left -= n;
		at += n;
	}
}

static void guest_writes(struct vsock_guest *g, const struct vsock_packet *like, const void *bytes,
			 size_t len)
{
	struct vsock_packet p = *like;

	p.op = VSOCK_OP_RW;
	p.len = (uint32_t)len;
	vsock_guest_send(g, &p, bytes);
	vsock_guest_say(g, VSOCK_OP_CREDIT_UPDATE, p.src_port, p.dst_port, 0);	/* and a kick */
}

/* Accepts a connection; answers each hello and question. */
static void agent(struct vsock_guest *g, void *arg)
{
	static const char reply[] = "\0\0\0\0\0\0\0\0" "\0\0\0\6" "answer";
	unsigned rounds = tail[0] == 0 && tail[4] == (char)0xff && !dies ? ROUNDS : 1;
	struct vsock_packet like, last;
	const struct vsock_packet *p;
	uint8_t got[HELLO + 4 + 8];
	uint32_t end;

	left = rounds_done = 0;
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_int_equal(p->op, VSOCK_OP_REQUEST);
	like = (struct vsock_packet){ .src_cid = VSOCK_GUEST_CID, .dst_cid = 2,
				      .src_port = p->dst_port, .dst_port = p->src_port,
				      .type = VSOCK_STREAM, .buf_alloc = 1 << 20 };
	last = like;
	last.op = VSOCK_OP_RW;
	last.len = 4;
	vsock_guest_say(g, VSOCK_OP_RESPONSE, like.src_port, like.dst_port, 0);
	for (unsigned i = 0; i < rounds; i++) {
		guest_reads(g, got, sizeof(got));
		assert_memory_equal(got, "hello, 24 bytes of hello\0\0\0\10question", sizeof(got));
		guest_writes(g, &like, reply, sizeof(reply) - 1);
		guest_writes(g, &like, tail, 4);
		guest_reads(g, &end, sizeof(end));
		assert_int_equal(end, 0);
		if (dies)	/* both in one turn of the device's */
			vsock_guest_send(g, &last, tail + 4);
		else
			guest_writes(g, &like, tail + 4, 4);
		rounds_done++;
	}
	if (dies)
		vsock_guest_say(g, VSOCK_OP_RST, like.src_port, like.dst_port, 0);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}

static void ask(struct served *s)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	s->far = pair[1];
	s->relay = (struct vsock_relay){ .fd = pair[0], .hello = "hello, 24 bytes of hello",
					 .hello_len = HELLO, .prologue_len = 8, .prologue = judge,
					 .framed = true };
	assert_int_equal(send(s->far, "question", 8, 0), 8);
	s->asked++;
	vsock_conn_relay(s->conn, &s->relay);
}

static bool has_answer(void *arg)
{
	struct pollfd p = { ((struct served *)arg)->far, POLLIN, 0 };

	return poll(&p, 1, 0) > 0;
}

static bool has_end(void *arg)
{
	char byte;

	return recv(((struct served *)arg)->far, &byte, 1, MSG_DONTWAIT) == 0;
}

static void start(struct served *s, const char *how)
{
	struct vsock_conn_callbacks cb = { .opened = on_opened, .finished = on_finished,
					   .idle = on_idle, .ended = on_ended, .arg = s };
	struct error err = ERROR_NONE;

	tail = how;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, agent, NULL);
	assert_true(until(&fx, is_up, &fx));
	assert_int_equal(vsock_connect(fx.v, 1000, &cb, &s->conn, &err), 0);
	assert_true(until(&fx, is_open, s));
}

static void stop(struct served *s)
{
	if (s->conn)
		vsock_conn_reset(s->conn);
	vsock_guest_stop(&fx.guest);
	assert_true(until(&fx, script_done, &fx));
	fx_stop(&fx);
}

static void get_answer(struct served *s)
{
	char got[16] = "";

	assert_true(until(&fx, has_answer, s));
	assert_int_equal(recv(s->far, got, sizeof(got), 0), 6);
	assert_string_equal(got, "answer");
}

static void test_vsock_one_client_after_another(void **state)
{
	struct served s = { 0 };

	start(&s, "\0\0\0\0\xff\xff\xff\xff");
	for (unsigned i = 0; i < ROUNDS; i++) {
		ask(&s);
		get_answer(&s);
		assert_true(until(&fx, has_end, &s));
		close(s.far);
		assert_true(until(&fx, is_over, &s));
	}
	assert_int_equal(s.ended, 0);
	stop(&s);
}

/* The client is served, but until the guest is done the connection is not. */
static void test_vsock_rests_until_the_guest_is_done(void **state)
{
	struct served s = { 0 };

	start(&s, "\0\0\0\0\0\0\0\1");	/* and a byte that never comes */
	ask(&s);
	get_answer(&s);
	assert_true(until(&fx, has_end, &s));
	close(s.far);
	assert_true(until(&fx, is_served, &s));
	assert_true(until(&fx, guest_has_said_all, NULL));
	assert_false(until_ms(&fx, is_over, &s, 50));
	assert_int_equal(s.ended, 0);
	stop(&s);
}

static void test_vsock_bytes_behind_the_end_are_a_reset(void **state)
{
	struct served s = { 0 };

	start(&s, "\0\0\0\0\0\0\0\0");	/* a second end */
	ask(&s);
	get_answer(&s);
	assert_true(until(&fx, has_end, &s));
	close(s.far);
	assert_true(until(&fx, was_reset, &s));
	assert_int_equal(s.code, -ECONNRESET);
	stop(&s);
}

/* Who is given a connection that has ended by then has lost nothing to it. */
static void test_vsock_next_client_of_one_that_has_ended(void **state)
{
	struct served s = { .again = true };

	dies = true;
	start(&s, "\0\0\0\0\xff\xff\xff\xff");
	ask(&s);
	get_answer(&s);
	assert_true(until(&fx, has_end, &s));
	close(s.far);
	assert_true(until(&fx, was_reset, &s));
	assert_int_equal(s.asked, 2);
	assert_int_equal(s.code, -ECONNRESET);
	assert_false(s.moved);
	close(s.relay.fd);
	close(s.far);
	stop(&s);
	dies = false;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frame_read_in_pieces_of_every_size),
		cmocka_unit_test(test_frame_read_bounds_the_length),
		cmocka_unit_test(test_vsock_one_client_after_another),
		cmocka_unit_test(test_vsock_rests_until_the_guest_is_done),
		cmocka_unit_test(test_vsock_bytes_behind_the_end_are_a_reset),
		cmocka_unit_test(test_vsock_next_client_of_one_that_has_ended),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
