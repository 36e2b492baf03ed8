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
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/vsock_fx.h"

static struct fx fx;

/* A guest that does no more than @script; the device has to bear it. */
static void play(void (*script)(struct vsock_guest *g, void *arg))
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, script, NULL);
	assert_true(until(&fx, script_done, &fx));
	fx_stop(&fx);
}

/* … after the one whose script ends. */
static void another_guest_comes(void)
{
	assert_true(until(&fx, script_done, &fx));
	vsock_guest_done(&fx.guest);
	vsock_guest_init(&fx.guest, fx.path);
	fx.guest.service = by_port;
	vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
}

/* --- the life of the guest ------------------------------------------------ */

static atomic_int stage;

/* Sends until the ring's 16-bit counters are where they began, and all was taken. */
static void send_full_circle(struct vsock_guest *g)
{
	while (g->tx.added != 0 || g->tx.last_used != 0 || g->n_waiting) {
		if ((uint16_t)(g->tx.added + g->n_waiting) != 0 && g->n_waiting < VSOCK_GUEST_RING)
			vsock_guest_say(g, VSOCK_OP_RST, 77, 88, 0);	/* of no connection */
		else if (!vsock_guest_step(g))
			vsock_guest_wait(g, 1);
	}
	assert_true(g->rx.last_used != 0);
}

static void pause_and_go_on(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	while (stage == 0)
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	if (arg)
		send_full_circle(g);
	vsock_guest_pause(g);
	stage = 2;
	while (stage == 2)
		usleep(1000);
	vsock_guest_resume(g);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}

static bool stage_reached(void *arg)
{
	return stage == *(int *)arg;
}

static void pause_with_a_connection(void *full_circle)
{
	struct client c = { 0 };
	int paused = 2;

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, pause_and_go_on, full_circle);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	stage = 1;
	assert_true(until(&fx, stage_reached, &paused));
	assert_true(vsock_is_up(fx.v));
	stage = 3;
	far_end(&c, send_and_read_back);
	finish(&c, 0);
	assert_int_equal(fx.downs, 0);
	fx_stop(&fx);
}

static void test_vsock_a_pause_keeps_connections(void **state)
{
	pause_with_a_connection(NULL);
}

/* A driver that was started anew looks the same, as far as that ring goes. */
static void test_vsock_a_pause_after_a_full_circle_keeps_connections(void **state)
{
	pause_with_a_connection(&fx);
}

static void reboot(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	while (stage == 0)
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	vsock_guest_pause(g);
	vsock_guest_boot(g);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}

static void test_vsock_a_reboot_ends_connections(void **state)
{
	struct client c = { 0 };

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, reboot, NULL);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	stage = 1;
	finish(&c, -ECANCELED);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
	assert_int_equal(fx.downs, 1);
	fx_stop(&fx);
}

static bool is_down(void *arg)
{
	return ((struct fx *)arg)->downs > 0;
}

static void test_vsock_qemu_hangs_up_and_another_comes(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	vsock_guest_stop(&fx.guest);
	assert_true(until(&fx, is_down, &fx));
	assert_true(until(&fx, has_ended, &c));
	assert_int_equal(c.code, -ECANCELED);
	close(c.far);
	another_guest_comes();
	fx_stop(&fx);
}

/* --- what must be refused ------------------------------------------------- */

static void bad_messages(struct vsock_guest *g, void *arg)
{
	static const struct { uint32_t words[14]; size_t len; } rows[] = {
		{ { 99, 1, 0 }, 12 },				/* unknown */
		{ { 1, 2, 0 }, 12 },				/* version */
		{ { 2, 1, 4, 0 }, 16 },				/* too short */
		{ { 5, 1, 0xffffffff }, 12 },			/* too long */
		{ { 5, 1, 40, 1, 0, 0, 0, 1 }, 52 },		/* memory without descriptor */
		{ { 5, 1, 40, 9, 0, 0, 0, 1 }, 52 },		/* nine regions in one's room */
		{ { 8, 1, 8, 0, 100 }, 20 },			/* not a power of two */
		{ { 8, 1, 8, 5, 128 }, 20 },			/* no such ring */
		{ { 10, 1, 8, 0, 65536 }, 20 },
		{ { 12, 1, 8, 0, 0 }, 20 },			/* kick without descriptor */
		{ { 12, 1, 8, 0x100, 0 }, 20 },
		{ { 24, 1, 12, 0, 8, 0 }, 24 },			/* answer does not fit */
		{ { 2, 1, 8, 0xffffffff, 0xffffffff }, 20 },	/* features never offered */
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		vsock_guest_connect(g);
		vsock_guest_raw(g, rows[i].words, rows[i].len, NULL, 0);
		assert_true(vsock_guest_hung_up_on(g));
		vsock_guest_hang_up(g);
	}
}

static void test_vsock_bad_messages_end_the_connection(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, bad_messages, NULL);
	another_guest_comes();
	fx_stop(&fx);
}

static const struct { uint64_t addr; uint32_t len; uint16_t flags, next; } bad_chains[] = {
	{ 1ull << 40, 44, 0, 0 },		/* outside memory */
	{ UINT64_MAX - 10, 44, 0, 0 },
	{ VSOCK_GUEST_MEMORY - 4, 44, 0, 0 },	/* runs out of it */
	{ 0x100000, 44, 1, 5 },			/* descriptor 5 is its own next */
	{ 0x100000, 44, 1, 500 },
	{ 0x100000, 16, 4 | 1, 0 },		/* indirect and more */
	{ 0x100000, 17, 4, 0 },
	{ 0x100000, 0, 4, 0 },
	{ 0x100001, 16, 4, 0 },
};

static void bad_rings(struct vsock_guest *g, void *arg)
{
	for (size_t i = 0; i < ARRAY_SIZE(bad_chains); i++) {
		vsock_guest_connect(g);
		vsock_guest_boot(g);
		vsock_guest_offer(g, &g->tx, 5, bad_chains[i].addr, bad_chains[i].len,
				  bad_chains[i].flags, bad_chains[i].next);
		while (fx.downs == i)
			usleep(1000);
		vsock_guest_hang_up(g);
	}
}

static void test_vsock_bad_rings_stop_the_device(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, bad_rings, NULL);
	assert_true(until(&fx, script_done, &fx));
	assert_int_equal(fx.downs, ARRAY_SIZE(bad_chains));
	fx_stop(&fx);
}

static unsigned turns_in_200_ms(void)
{
	uint64_t until_ns = uv_hrtime() + 200 * 1000000ull;
	unsigned n = 0;

	for (; uv_hrtime() < until_ns; n++)
		uv_run(&fx.loop.uv, UV_RUN_ONCE);
	return n;
}

/* QEMU calls while there is no descriptor left: later, and meanwhile the loop rests. */
static void test_vsock_out_of_descriptors_qemu_waits(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct rlimit before, none;
	int caller = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), next;

	fx_open(&fx, NULL);
	strcpy(sa.sun_path, fx.path);
	assert_int_equal(connect(caller, (struct sockaddr *)&sa, sizeof(sa)), 0);
	getrlimit(RLIMIT_NOFILE, &before);
	none = before;
	next = dup(caller);
	none.rlim_cur = (rlim_t)next;
	close(next);
	setrlimit(RLIMIT_NOFILE, &none);
	assert_in_range(turns_in_200_ms(), 1, 1000);	/* the mock's tick makes 200 */
	setrlimit(RLIMIT_NOFILE, &before);
	close(caller);
	vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
	fx_stop(&fx);
}

static void broken_receive_ring(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_offer(g, &g->rx, 5, 0x100000, 4096, 2, 0);	/* one more than it holds */
	stage = 1;
	while (stage == 1)
		usleep(1000);
	vsock_guest_hang_up(g);
}

/* Until the guest starts anew there is nothing to do, and nothing is done. */
static void test_vsock_a_broken_receive_ring_leaves_the_loop_at_rest(void **state)
{
	struct client c = { 0 };
	int broken = 1;

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, broken_receive_ring, NULL);
	assert_true(until(&fx, stage_reached, &broken));
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, is_down, &fx));
	assert_int_equal(c.code, -ECANCELED);
	close(c.far);
	uv_timer_stop(&fx.tick);
	while (uv_run(&fx.loop.uv, UV_RUN_NOWAIT) && uv_backend_timeout(&fx.loop.uv) == 0)
		assert_true(c.opened++ < 100);
	uv_timer_start(&fx.tick, fx_tick, 1, 1);
	stage = 2;
	fx_stop(&fx);
}

static void test_vsock_a_guest_deaf_to_the_hello_is_reset(void **state)
{
	struct client deaf = { .hold = true, .relay = { .hello = "hello", .hello_len = 5 } };
	struct client behind = { .hold = true };

	fx_start(&fx, NULL);
	client_connect(&fx, &deaf, GUEST_DEAF);
	assert_true(until(&fx, has_opened, &deaf));
	client_connect(&fx, &behind, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &behind));	/* so the shutdown was heard before */
	vsock_conn_relay(deaf.conn, &deaf.relay);
	assert_true(until(&fx, has_ended, &deaf));
	vsock_conn_reset(behind.conn);
	close(behind.fd);
	close(behind.far);
	finish(&deaf, -EPIPE);
	fx_stop(&fx);
}

static void test_vsock_no_answer_before_the_end_is_a_reset(void **state)
{
	struct client c = { .relay = { .prologue_len = 8, .prologue = client_judge } };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_HALF);
	finish(&c, -ECONNRESET);
	fx_stop(&fx);
}

static void many_strays(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	for (unsigned i = 0; i < 5000; i++)
		vsock_guest_say(g, VSOCK_OP_SHUTDOWN, 77, 88, 2);
	for (unsigned i = 0; g->n_waiting; i++) {
		assert_true(i < DEADLINE_MS / 5);
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	}
	vsock_guest_hang_up(g);
}

/* A guest with much to say does not listen meanwhile (virtio_transport_more_replies). */
static void test_vsock_answers_nobody_takes_do_not_stop_the_device(void **state)
{
	play(many_strays);
}

static void other_interrupts(struct vsock_guest *g, void *arg)
{
	static const uint32_t set_vring_call[] = { 13, 1, 8, 0, 0 };
	struct pollfd p = { eventfd(0, EFD_CLOEXEC), POLLIN, 0 };

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_raw(g, set_vring_call, sizeof(set_vring_call), &p.fd, 1);
	assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
	close(p.fd);
	vsock_guest_hang_up(g);
}

/* QEMU swaps the descriptor to mask and unmask the interrupt, without waiting for us. */
static void test_vsock_a_new_interrupt_is_raised_once(void **state)
{
	play(other_interrupts);
}

static void lone_packet(struct vsock_guest *g, void *arg)
{
	struct pollfd p = { .events = POLLIN };
	const uint8_t *data;
	uint64_t n;

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_say(g, VSOCK_OP_REQUEST, 77, 88, 0);	/* refused: the rings run */
	assert_non_null(vsock_guest_receive(g, &data, DEADLINE_MS));
	p.fd = g->tx.call_fd;
	vsock_guest_want_sent(g);
	while (read(p.fd, &n, sizeof(n)) > 0)
		;
	vsock_guest_say(g, VSOCK_OP_RST, 77, 88, 0);	/* nothing answers that */
	assert_int_equal(poll(&p, 1, 5000), 1);
	vsock_guest_hang_up(g);
}

/* Interrupts for sent packets are put off (vring.h), but not for ever: a guest whose
 * ring is full has nothing else to wake it. */
static void test_vsock_sent_buffers_are_told_of(void **state)
{
	play(lone_packet);
}

static void stray_packets(struct vsock_guest *g, void *arg)
{
	const struct vsock_packet *p;
	const uint8_t *data;

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	for (unsigned op = 0; op < 12; op++) {
		vsock_guest_say(g, (enum vsock_op)op, 77, 88, 3);
		p = vsock_guest_receive(g, &data, op == VSOCK_OP_RST ? 100 : 10000);
		if (op == VSOCK_OP_RST) {
			assert_null(p);
		} else {
			assert_non_null(p);
			assert_int_equal(p->op, VSOCK_OP_RST);
			assert_int_equal(p->dst_port, 77);
			assert_int_equal(p->src_port, 88);
		}
	}
	vsock_guest_hang_up(g);
}

static void test_vsock_packets_of_no_connection_are_reset(void **state)
{
	play(stray_packets);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vsock_a_pause_keeps_connections),
		cmocka_unit_test(test_vsock_a_pause_after_a_full_circle_keeps_connections),
		cmocka_unit_test(test_vsock_a_reboot_ends_connections),
		cmocka_unit_test(test_vsock_qemu_hangs_up_and_another_comes),
		cmocka_unit_test(test_vsock_bad_messages_end_the_connection),
		cmocka_unit_test(test_vsock_bad_rings_stop_the_device),
		cmocka_unit_test(test_vsock_out_of_descriptors_qemu_waits),
		cmocka_unit_test(test_vsock_a_broken_receive_ring_leaves_the_loop_at_rest),
		cmocka_unit_test(test_vsock_a_guest_deaf_to_the_hello_is_reset),
		cmocka_unit_test(test_vsock_no_answer_before_the_end_is_a_reset),
		cmocka_unit_test(test_vsock_answers_nobody_takes_do_not_stop_the_device),
		cmocka_unit_test(test_vsock_a_new_interrupt_is_raised_once),
		cmocka_unit_test(test_vsock_sent_buffers_are_told_of),
		cmocka_unit_test(test_vsock_packets_of_no_connection_are_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
