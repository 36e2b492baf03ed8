#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/vsock_fx.h"

static struct fx fx;

static void test_vsock_echo_comes_back_after_half_close(void **state)
{
	static const uint64_t off[] = { 0, 1u << 28, 1u << 29, 3u << 28 };

	for (size_t i = 0; i < ARRAY_SIZE(off); i++) {	/* indirect, event_idx: each without */
		fx_open(&fx, NULL);
		fx.guest.features_off = off[i];
		vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
		assert_true(until(&fx, is_up, &fx));
		echo_with(&fx, GUEST_ECHO);
		fx_stop(&fx);
	}
}

static void test_vsock_prologue_is_not_the_clients(void **state)
{
	struct client c = { 0 }, refused = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_RELAY);
	far_end(&c, send_and_read_back);
	assert_int_equal(c.judged, 1);
	finish(&c, 0);
	client_connect(&fx, &refused, GUEST_RELAY_REFUSE);	/* and closes right behind */
	finish(&refused, -111);
	assert_int_equal(refused.judged, 1);
	fx_stop(&fx);
}

static void read_reset(struct client *c)
{
	char b[64];
	ssize_t n;

	if (send(c->far, "x", 1, MSG_NOSIGNAL) < 0) {	/* it was there already */
		c->reset = errno == ECONNRESET || errno == EPIPE;
		return;
	}
	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		;
	c->reset = n < 0 && errno == ECONNRESET;
}

static void test_vsock_refused_reset_closed_by_the_guest(void **state)
{
	static const struct { enum guest_service service; int code; } rows[] = {
		{ GUEST_REFUSE, -ECONNREFUSED },
		{ GUEST_RESET, -ECONNRESET },
		{ GUEST_CLOSE, -ECONNRESET },
		{ GUEST_GREEDY, -ECONNRESET },
		{ GUEST_LATE, -ECONNRESET },
		{ GUEST_FULL_CREDIT, -ECONNRESET },
	};

	fx_start(&fx, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct client c = { 0 };

		client_connect(&fx, &c, rows[i].service);
		far_end(&c, read_reset);
		/* one that went on after its end was believed that end */
		assert_true(c.reset || rows[i].service == GUEST_LATE);
		finish(&c, rows[i].code);
	}
	echo_with(&fx, GUEST_ECHO);	/* none of it hurt the device */
	fx_stop(&fx);
}

static void test_vsock_a_silent_guest_times_out(void **state)
{
	struct vsock_limits limits = { .connect_ms = 100 };
	struct client c = { 0 };

	fx_start(&fx, &limits);
	client_connect(&fx, &c, GUEST_SILENT);
	finish(&c, -ETIMEDOUT);
	fx_stop(&fx);
}

static bool never(void *arg)
{
	return false;
}

/* One that lingers, for longer, waits on the same timer. */
static void test_vsock_a_silent_guest_times_out_beside_one_that_lingers(void **state)
{
	struct vsock_limits limits = { .connect_ms = 100, .close_ms = 20000 };
	struct client lingers = { 0 }, silent = { 0 };

	fx_start(&fx, &limits);
	client_connect(&fx, &lingers, GUEST_KEEP);
	shutdown(lingers.far, SHUT_WR);
	assert_true(until(&fx, has_ended, &lingers));
	assert_int_equal(lingers.code, 0);
	until_ms(&fx, never, NULL, 3 * limits.connect_ms);	/* the timer is for lingering now */
	client_connect(&fx, &silent, GUEST_SILENT);
	assert_true(until_ms(&fx, has_ended, &silent, limits.close_ms / 2));
	assert_int_equal(silent.code, -ETIMEDOUT);
	close(lingers.far);
	close(silent.far);
	fx_stop(&fx);
}

static bool guest_was_reset(void *arg)
{
	return fx.guest.resets > 0;
}

static void test_vsock_client_reset_reaches_an_idle_guest(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_STUCK);
	assert_true(until(&fx, has_opened, &c));
	reset_on_close(c.far);
	close(c.far);
	c.far = -1;
	finish(&c, -ECONNRESET);
	assert_true(until(&fx, guest_was_reset, NULL));
	fx_stop(&fx);
}

static void fill(struct client *c)
{
	static char block[65536];
	struct timeval t = { 0, 300000 };

	setsockopt(c->far, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	while (send(c->far, block, sizeof(block), MSG_NOSIGNAL) > 0)
		;
}

static void test_vsock_no_credit_holds_one_and_not_others(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_STUCK);
	far_end(&c, fill);
	assert_int_equal(c.to_guest, 256 << 10);	/* what the guest's socket holds */
	/* others go on … */
	struct client d = { 0 };
	client_connect(&fx, &d, GUEST_ECHO);
	far_end(&d, send_and_read_back);
	assert_true(until(&fx, has_ended, &d));
	close(d.far);
	/* … and a reset is noticed while it waits */
	reset_on_close(c.far);
	close(c.far);
	c.far = -1;
	finish(&c, -ECONNRESET);
	fx_stop(&fx);
}

static void ask_for_much(struct client *c)
{
	uint64_t n = 64 << 20;

	assert_int_equal(send(c->far, &n, 8, 0), 8);
}

static bool buffered(void *arg)
{
	struct vsock_stats st;

	vsock_get_stats(fx.v, &st);
	return st.buffered > 0;
}

static void read_slowly(struct client *c)
{
	static char b[1 << 20];
	uint64_t got = 0;
	ssize_t n;

	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		got += (uint64_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, 64 << 20);
	shutdown(c->far, SHUT_WR);
}

static void test_vsock_slow_client_costs_a_window_and_no_more(void **state)
{
	struct client c = { 0 };
	struct vsock_stats st;

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_SOURCE);
	far_end(&c, ask_for_much);
	assert_true(until(&fx, buffered, NULL));
	{	/* others go on */
		struct client d = { 0 };

		client_connect(&fx, &d, GUEST_ECHO);
		far_end(&d, send_and_read_back);
		assert_true(until(&fx, has_ended, &d));
		close(d.far);
	}
	vsock_get_stats(fx.v, &st);
	assert_true(st.buffered <= 1 << 20);
	far_end(&c, read_slowly);
	finish(&c, 0);
	fx_stop(&fx);
}

/* --- a guest that has closed before the client has it all ------------------- */

static uint32_t sent_before_close;	/* the guest's; read when it is done */

/* Sends as long as it has credit; the credit is in whatever @p the host said last. */
static uint32_t use_credit(struct vsock_guest *g, const struct vsock_packet *p,
			   struct vsock_packet *head)
{
	static const uint8_t block[4096];
	uint32_t alloc = p->buf_alloc, fwd = p->fwd_cnt, sent = 0;
	const uint8_t *data;

	for (;;) {
		if (alloc - (sent - fwd) >= sizeof(block)) {
			vsock_guest_send(g, head, block);
			sent += sizeof(block);
		} else if ((p = vsock_guest_receive(g, &data, 500))) {
			alloc = p->buf_alloc;
			fwd = p->fwd_cnt;
		} else {
			return sent;
		}
	}
}

static void closes_and_resets(struct vsock_guest *g, void *arg)
{
	struct vsock_packet head = { .src_cid = VSOCK_GUEST_CID, .dst_cid = VSOCK_CID_HOST,
				     .len = 4096, .type = VSOCK_STREAM, .op = VSOCK_OP_RW,
				     .buf_alloc = 1 << 18 };
	const struct vsock_packet *p;
	const uint8_t *data;

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_REQUEST);
	head.src_port = p->dst_port;
	head.dst_port = p->src_port;
	vsock_guest_say(g, VSOCK_OP_RESPONSE, head.src_port, head.dst_port, 0);
	while ((p = vsock_guest_receive(g, &data, DEADLINE_MS)) && p->op != VSOCK_OP_SHUTDOWN)
		;
	assert_non_null(p);
	sent_before_close = use_credit(g, p, &head);
	vsock_guest_say(g, VSOCK_OP_SHUTDOWN, head.src_port, head.dst_port, VSOCK_SHUTDOWN_SEND);
	vsock_guest_say(g, VSOCK_OP_SHUTDOWN, head.src_port, head.dst_port,
			VSOCK_SHUTDOWN_SEND | VSOCK_SHUTDOWN_RCV);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_RST);
	vsock_guest_say(g, VSOCK_OP_RST, head.src_port, head.dst_port, 0);	/* its 8 s were over */
	vsock_guest_say(g, VSOCK_OP_CREDIT_REQUEST, head.src_port, head.dst_port, 0);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_RST);
	vsock_guest_hang_up(g);
}

static void end_first(struct client *c)
{
	shutdown(c->far, SHUT_WR);
}

static void read_all_of_it(struct client *c)
{
	static char b[1 << 16];
	uint64_t got = 0;
	ssize_t n;

	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		got += (uint64_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, sent_before_close);
}

static void test_vsock_a_reset_after_the_guests_close_takes_nothing(void **state)
{
	struct client c = { 0 };

	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, closes_and_resets, NULL);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	far_end(&c, end_first);
	assert_true(until_ms(&fx, script_done, &fx, 2 * DEADLINE_MS));
	assert_true(sent_before_close > 0);
	far_end(&c, read_all_of_it);
	finish(&c, 0);
	fx_stop(&fx);
}

static void test_vsock_owner_resets_in_every_state(void **state)
{
	fx_start(&fx, NULL);
	for (int i = 0; i < 3; i++) {
		struct client c = { .hold = i == 1 };

		client_connect(&fx, &c, i == 0 ? GUEST_SILENT : GUEST_ECHO);
		if (i)
			assert_true(until(&fx, has_opened, &c));
		vsock_conn_reset(c.conn);
		close(c.fd);
		close(c.far);
		assert_true(until(&fx, nothing_left, &fx));
		assert_int_equal(c.ended, 0);
	}
	fx_stop(&fx);
}

static void test_vsock_thousands_at_once_and_nothing_stays(void **state)
{
	struct rlimit rl;
	/* the loop stands still while the clients connect */
	struct vsock_limits limits = { .connect_ms = DEADLINE_MS };
	size_t n, opened = 0;
	struct client *all;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	n = MIN((rl.rlim_cur - 64) / 2, (rlim_t)10000);
	all = xcalloc(n, sizeof(*all));
	fx_start(&fx, &limits);
	for (size_t i = 0; i < n; i++)
		client_connect(&fx, &all[i], GUEST_ECHO);
	for (size_t i = 0; i < n; i++) {
		assert_true(until(&fx, has_opened, &all[i]));
		opened += all[i].opened;
		assert_int_equal(send(all[i].far, &i, sizeof(i), 0), sizeof(i));
		shutdown(all[i].far, SHUT_WR);
	}
	assert_int_equal(opened, n);
	for (size_t i = 0; i < n; i++) {
		size_t back = 0;

		assert_true(until(&fx, has_ended, &all[i]));
		assert_int_equal(all[i].code, 0);
		assert_int_equal(recv(all[i].far, &back, sizeof(back), MSG_WAITALL), sizeof(back));
		assert_int_equal(back, i);
		close(all[i].far);
	}
	assert_true(until(&fx, nothing_left, &fx));
	assert_true(uv_is_active((uv_handle_t *)&fx.loop.quiet));	/* memory goes back */
	free(all);
	fx_stop(&fx);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vsock_echo_comes_back_after_half_close),
		cmocka_unit_test(test_vsock_prologue_is_not_the_clients),
		cmocka_unit_test(test_vsock_refused_reset_closed_by_the_guest),
		cmocka_unit_test(test_vsock_a_silent_guest_times_out),
		cmocka_unit_test(test_vsock_a_silent_guest_times_out_beside_one_that_lingers),
		cmocka_unit_test(test_vsock_client_reset_reaches_an_idle_guest),
		cmocka_unit_test(test_vsock_no_credit_holds_one_and_not_others),
		cmocka_unit_test(test_vsock_slow_client_costs_a_window_and_no_more),
		cmocka_unit_test(test_vsock_a_reset_after_the_guests_close_takes_nothing),
		cmocka_unit_test(test_vsock_owner_resets_in_every_state),
		cmocka_unit_test(test_vsock_thousands_at_once_and_nothing_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
