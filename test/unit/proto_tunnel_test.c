/* Tunnels between a guest_client and a guest_server over a socket pair: what a
 * forwarded connection can do, with our own kinds and as with Lima's peers. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "test/mock/proto_world.h"

static const uint64_t MIB = 1 << 20;

static int set_up(void **state, bool lima)
{
	struct world *w = xnew(struct world);

	world_init(w);
	w->lima = lima;
	world_connect(w);
	*state = w;
	return 0;
}

static int set_up_kinds(void **state)
{
	return set_up(state, false);
}

static int set_up_lima(void **state)
{
	return set_up(state, true);
}

static int tear_down(void **state)
{
	world_done(*state);
	free(*state);
	return 0;
}

/* --- with both kinds of peers ------------------------------------------------ */

static void test_tunnel_echo_64_mib(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 64 * MIB, .eof_when_sent = true, .check = true };

	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT_MS(w, a.closed, 60000);
	assert_int_equal(a.why.code, 0);
	assert_false(a.corrupt);
	assert_true(a.eof);
	assert_int_equal(a.received, a.to_send);
	WORLD_WAIT(w, w->far_open == 0);
	assert_int_equal(w->far_last_end, 0);
}

/* The client half-closes first, the answer comes after. */
static void test_tunnel_client_half_close_keeps_answer(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 3 * MIB, .eof_when_sent = true };
	uint64_t count;

	app_start(&a, w, IPPROTO_TCP, FAR_SINK);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.why.code, 0);
	assert_int_equal(a.received, sizeof(count));
	memcpy(&count, a.last, sizeof(count));
	assert_int_equal(count, 3 * MIB);
	assert_true(a.eof);
}

static void test_tunnel_refused_says_so(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 0 };

	app_start(&a, w, IPPROTO_TCP, FAR_REFUSED);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.why.code, -ECONNREFUSED);
	assert_false(a.eof);
	WORLD_WAIT(w, w->far_open == 0);
	assert_int_equal(w->far_last_end, -ECONNREFUSED);
}

static void test_tunnel_guest_resets(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 1 };

	app_start(&a, w, IPPROTO_TCP, FAR_RESET);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.why.code, -ECONNRESET);
	assert_false(a.eof);	/* a reset must not look like a clean end */
}

static void test_tunnel_client_resets(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 1000 };

	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, a.received == 1000);
	guest_tunnel_reset(a.tunnel);
	WORLD_WAIT(w, w->far_open == 0);
	assert_int_equal(w->far_resets, 1);
	assert_false(a.closed);	/* no callback after reset */
}

static void test_tunnel_udp_datagrams_stay_whole(void **state)
{
	struct world *w = *state;
	struct app a = { .check = false };
	const size_t sizes[] = { 1, 0, 1024, 1025, 1472, 32769, 65507, 0, 512 };

	app_start(&a, w, IPPROTO_UDP, FAR_ECHO);
	WORLD_WAIT(w, a.opened);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned before = a.pieces;

		guest_tunnel_write(a.tunnel, pattern_make(i, sizes[i]), sizes[i]);
		WORLD_WAIT(w, a.pieces == before + 1);
		assert_int_equal(a.last_len, sizes[i]);
		assert_true(pattern_matches(i, a.last, MIN(sizes[i], sizeof(a.last))));
	}
	guest_tunnel_close(a.tunnel);
	WORLD_WAIT(w, w->far_open == 0);
	assert_int_equal(w->far_last_end, 0);
}

static void test_tunnel_500_at_once(void **state)
{
	struct world *w = *state;
	enum { N = 500 };
	struct app *apps = xcalloc(N, sizeof(*apps));
	unsigned done = 0;

	for (int i = 0; i < N; i++) {
		apps[i].to_send = 20000 + (uint64_t)i;
		apps[i].eof_when_sent = apps[i].check = true;
		app_start(&apps[i], w, IPPROTO_TCP, FAR_ECHO);
	}
	WORLD_WAIT_MS(w, ({
		for (done = 0; done < N && apps[done].closed;)
			done++;
		done == N;
	}), 60000);
	for (int i = 0; i < N; i++) {
		assert_int_equal(apps[i].why.code, 0);
		assert_int_equal(apps[i].received, apps[i].to_send);
		assert_false(apps[i].corrupt);
	}
	free(apps);
}

static void test_tunnel_stalled_reader_holds_up_nobody(void **state)
{
	struct world *w = *state;
	struct app stalled[4] = { 0 };
	struct app a = { .to_send = 8 * MIB, .eof_when_sent = true, .check = true };
	uint64_t at_pause;

	w->source_bytes = 16 * MIB;
	for (int i = 0; i < 4; i++) {
		stalled[i].check = true;
		app_start(&stalled[i], w, IPPROTO_TCP, FAR_SOURCE);
		WORLD_WAIT(w, stalled[i].received > 0);
		guest_tunnel_pause(stalled[i].tunnel);
		stalled[i].paused = true;
	}
	at_pause = stalled[0].received;
	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.received, a.to_send);
	assert_int_equal(stalled[0].received, at_pause);
	for (int i = 0; i < 4; i++) {
		assert_false(stalled[i].data_after_pause);
		assert_false(stalled[i].eof);
		stalled[i].paused = false;
		guest_tunnel_resume(stalled[i].tunnel);
		guest_tunnel_eof(stalled[i].tunnel);
	}
	for (int i = 0; i < 4; i++) {
		WORLD_WAIT(w, stalled[i].closed);
		assert_int_equal(stalled[i].received, w->source_bytes);
		assert_true(stalled[i].eof && !stalled[i].corrupt);
		assert_int_equal(stalled[i].why.code, 0);
	}
}

/* A crowd of clients that read nothing: what waits for all of them is bounded as well,
 * and each gets all of it when it reads. */
static void test_tunnel_stalled_crowd_is_bounded(void **state)
{
	enum { N = 1200, PIPE = 100 << 10 };	/* HTTP/2 has a window for each */
	struct world *w = *state;
	scoped_free struct app *apps = xcalloc(N, sizeof(*apps));
	uint64_t before, until;

	w->source_bytes = 400 << 10;
	for (int i = 0; i < N; i++) {
		apps[i].check = true;
		app_start(&apps[i], w, IPPROTO_TCP, FAR_SOURCE);
		guest_tunnel_pause(apps[i].tunnel);
	}
	WORLD_WAIT(w, w->far_total == N);
	do {	/* until nothing moves */
		before = w->far_written;
		until = clock_mono_ms() + 300;
		WORLD_WAIT(w, clock_mono_ms() > until);
	} while (w->far_written > before);
	print_message("held for %d: %llu MiB\n", N, (unsigned long long)w->far_written >> 20);
	assert_true(w->far_written < 80 * MIB + (uint64_t)N * PIPE);
	for (int i = 0; i < N; i++) {
		guest_tunnel_resume(apps[i].tunnel);
		guest_tunnel_eof(apps[i].tunnel);
	}
	for (int i = 0; i < N; i++) {
		WORLD_WAIT(w, apps[i].closed);
		assert_int_equal(apps[i].received, w->source_bytes);
		assert_false(apps[i].corrupt);
	}
}

/* The far end takes nothing: what we hold for it is bounded. */
static void test_tunnel_stalled_guest_bounds_the_sender(void **state)
{
	struct world *w = *state;
	struct app stalled = { .to_send = 256 * MIB };
	struct app a = { .to_send = 4 * MIB, .eof_when_sent = true, .check = true };

	app_start(&stalled, w, IPPROTO_TCP, FAR_STALLED);
	WORLD_WAIT(w, stalled.blocked);
	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, a.closed);
	assert_true(stalled.blocked);
	print_message("held for a stalled guest: %llu KiB\n",
		      (unsigned long long)stalled.sent >> 10);
	assert_true(stalled.sent < 1 * MIB);
	guest_tunnel_reset(stalled.tunnel);
	WORLD_WAIT(w, w->far_open == 0);
}

static void test_tunnel_open_ones_end_when_client_closes(void **state)
{
	struct world *w = *state;
	struct app a[3] = { 0 };

	for (int i = 0; i < 3; i++)
		app_start(&a[i], w, i == 2 ? IPPROTO_UDP : IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, w->far_open == 3);
	guest_client_close(steal_ptr(&w->client), NULL, NULL);
	for (int i = 0; i < 3; i++) {
		assert_true(a[i].closed);	/* before close returned */
		assert_int_equal(a[i].why.code, -ECANCELED);
	}
	w->client_gone = true;
	WORLD_WAIT(w, w->far_open == 0);
}

static void test_tunnel_open_ones_end_when_link_breaks(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 100 };

	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, a.received == 100);
	world_stop_server(w);
	WORLD_WAIT(w, w->lost);
	assert_true(a.closed);	/* before `lost` */
	assert_true(a.why.code < 0);
	assert_int_equal(guest_tunnel_open(w->client, IPPROTO_TCP, "127.0.0.1:7",
					   &(struct guest_tunnel_callbacks){ 0 }, &a.tunnel,
					   &w->lost_why), -ENOTCONN);
}

/* --- only with kinds ---------------------------------------------------------- */

/* The guest's server ends first; what the client sends later still arrives. */
static void test_tunnel_guest_half_close_keeps_upload(void **state)
{
	struct world *w = *state;
	struct app a = { .check = true };

	w->source_bytes = 1 * MIB;
	app_start(&a, w, IPPROTO_TCP, FAR_SOURCE);
	WORLD_WAIT(w, a.eof);
	assert_int_equal(a.received, 1 * MIB);
	assert_false(a.closed);
	a.to_send = 2 * MIB;
	a.eof_when_sent = true;
	app_send_more(&a);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.why.code, 0);
	assert_int_equal(w->far_last_end, 0);
}

/* A connect() that takes its time neither opens nor loses the link. */
static void test_tunnel_slow_connect_is_probed(void **state)
{
	struct world *w = *state;
	struct app a = { 0 };
	uint64_t start = clock_mono_ms();

	app_start(&a, w, IPPROTO_TCP, FAR_SILENT);
	WORLD_WAIT(w, clock_mono_ms() - start > 1500);
	assert_false(a.opened || a.closed || w->lost);
	guest_tunnel_reset(a.tunnel);
	WORLD_WAIT(w, w->far_open == 0);
}

static void test_tunnel_as_many_as_may_be_then_refused(void **state)
{
	struct world *w = *state;
	enum { N = RPC_TUNNELS_MAX };
	struct app *apps = xcalloc(N, sizeof(*apps));
	struct guest_tunnel *t;
	struct error err = { 0 };
	unsigned seen;

	for (int i = 0; i < N; i++)
		app_start(&apps[i], w, IPPROTO_TCP, FAR_ECHO);
	assert_int_equal(guest_tunnel_open(w->client, IPPROTO_TCP, "127.0.0.1:7",
					   &(struct guest_tunnel_callbacks){ 0 }, &t, &err),
			 -EMFILE);
	while ((seen = w->far_open) < N)	/* each deadline is for some more */
		WORLD_WAIT_MS(w, w->far_open > seen, 30000);
	WORLD_WAIT_MS(w, apps[N - 1].opened && apps[0].opened, 30000);
	for (int i = 0; i < N; i++)
		guest_tunnel_reset(apps[i].tunnel);
	while ((seen = w->far_open) > 0)
		WORLD_WAIT_MS(w, w->far_open < seen, 30000);
	free(apps);
}

/* --- a link that tears messages apart ------------------------------------------ */

/* One byte at a time between two descriptors, until either ends. */
static void *pump(void *arg)
{
	const int *fds = arg;
	struct pollfd p[2] = { { .fd = fds[0], .events = POLLIN },
			       { .fd = fds[1], .events = POLLIN } };
	bool end = false;

	while (!end && poll(p, 2, -1) > 0) {
		for (int i = 0; i < 2 && !end; i++) {
			char byte;

			if (!p[i].revents)
				continue;
			end = read(fds[i], &byte, 1) <= 0;
			while (!end && send(fds[1 - i], &byte, 1, MSG_NOSIGNAL) < 0) {
				end = errno != EAGAIN;
				poll(&(struct pollfd){ fds[1 - i], POLLOUT, 0 }, 1, -1);
			}
		}
	}
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

static void test_tunnel_small_messages_stay_whole(void **state)
{
	enum { MESSAGES = 64, LEN = 600 };
	struct app a = { .to_send = MESSAGES * LEN, .chunk = LEN, .check = true,
			 .eof_when_sent = true };
	static int between[2];	/* the thread's, also after a failure here */
	int near[2], far[2];
	struct world w;
	pthread_t thread;

	world_init(&w);
	world_socketpair(near);
	world_socketpair(far);
	between[0] = near[1];
	between[1] = far[1];
	assert_int_equal(pthread_create(&thread, NULL, pump, between), 0);
	world_connect_fds(&w, near[0], far[0]);
	app_start(&a, &w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(&w, a.closed);
	assert_false(a.corrupt);
	assert_int_equal(a.received, a.to_send);
	assert_int_equal(a.pieces, MESSAGES);	/* there and back */
	world_done(&w);
	pthread_join(thread, NULL);
}

#define BOTH(f) cmocka_unit_test_setup_teardown(f, set_up_kinds, tear_down), \
		{ #f "_lima", f, set_up_lima, tear_down, NULL }

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_tunnel_echo_64_mib),
		BOTH(test_tunnel_client_half_close_keeps_answer),
		BOTH(test_tunnel_refused_says_so),
		BOTH(test_tunnel_guest_resets),
		BOTH(test_tunnel_client_resets),
		BOTH(test_tunnel_udp_datagrams_stay_whole),
		BOTH(test_tunnel_500_at_once),
		BOTH(test_tunnel_stalled_reader_holds_up_nobody),
		BOTH(test_tunnel_stalled_guest_bounds_the_sender),
		BOTH(test_tunnel_open_ones_end_when_client_closes),
		BOTH(test_tunnel_open_ones_end_when_link_breaks),
		cmocka_unit_test_setup_teardown(test_tunnel_guest_half_close_keeps_upload,
						set_up_kinds, tear_down),
		cmocka_unit_test_setup_teardown(test_tunnel_stalled_crowd_is_bounded, set_up_kinds,
						tear_down),
		cmocka_unit_test_setup_teardown(test_tunnel_slow_connect_is_probed, set_up_kinds,
						tear_down),
		cmocka_unit_test(test_tunnel_small_messages_stay_whole),
		cmocka_unit_test_setup_teardown(test_tunnel_as_many_as_may_be_then_refused, set_up_kinds,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
