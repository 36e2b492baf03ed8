/* GetInfo, events, the clock, and a guest that does not play by the rules. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "test/mock/proto_world.h"

static int set_up(void **state)
{
	struct world *w = xnew(struct world);

	world_init(w);
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	world_done(*state);
	free(*state);
	return 0;
}

static void test_client_greets(void **state)
{
	struct world *w = *state;

	world_connect(w);
	assert_int_equal(guest_client_features(w->client),
			 GUEST_FEATURE_SNAPSHOT | GUEST_FEATURE_TUNNEL_KINDS |
				 GUEST_FEATURE_BOOT_PROGRESS | GUEST_FEATURE_TIME_RTT);
}

struct synced {
	bool done;
	int64_t drift_ms;
	bool adjusted;
	struct error err;
};

static void on_synced(void *arg, int64_t drift_ms, bool adjusted, const struct error *err)
{
	struct synced *s = arg;

	*s = (struct synced){ true, drift_ms, adjusted, *err };
}

static void test_client_syncs_time_with_round_trip(void **state)
{
	struct world *w = *state;
	struct synced s = { 0 };

	world_connect(w);
	guest_client_sync_time(w->client, on_synced, &s);
	assert_false(s.done);
	WORLD_WAIT(w, s.done);
	assert_int_equal(s.err.code, 0);
	assert_int_equal(s.drift_ms, -1234);
	assert_true(s.adjusted);
	assert_true(w->last_rtt_ns > 0 && w->last_rtt_ns < 5000000000);
}

static void test_client_close_ends_calls_under_way(void **state)
{
	struct world *w = *state;
	struct synced s = { 0 };

	world_connect(w);
	guest_client_sync_time(w->client, on_synced, &s);
	world_stop_client(w);
	assert_true(s.done);
	assert_int_equal(s.err.code, -ECANCELED);
}

/* --- events ------------------------------------------------------------------ */

static void publish_port(struct world *w, uint64_t revision, int port)
{
	IPPort p = IPPORT__INIT, *list[] = { &p };
	Event e = EVENT__INIT;

	p.protocol = "tcp";
	p.ip = "127.0.0.1";
	p.port = port;
	e.revision = revision;
	e.n_added_local_ports = 1;
	e.added_local_ports = list;
	guest_server_publish(w->server, &e);
}

static void test_events_snapshot_then_all_in_order(void **state)
{
	struct world *w = *state;
	enum { N = 200 };

	world_connect(w);
	for (int i = 1; i <= N; i++)
		publish_port(w, (uint64_t)i, i);
	WORLD_WAIT(w, w->last_revision == N);
	assert_int_equal(w->snapshots, 1);
	assert_int_equal(w->events, 1 + N);
	assert_int_equal(w->ports_seen, N);
}

static uint64_t expected_revision;
static bool gap;

/* As a host agent keeps track: a snapshot sets the revision, others add one. */
static void follow_revisions(struct world *w, const Event *event)
{
	if (!event->snapshot && event->revision != expected_revision + 1)
		gap = true;
	expected_revision = event->revision;
}

/* A publisher faster than the listener: the queue is bounded, and what fell out
 * is covered by a new snapshot, so the listener ends where the publisher is. */
static void test_events_overflow_gives_a_snapshot(void **state)
{
	struct world *w = *state;
	Event snapshot = EVENT__INIT;
	enum { N = 100000 };

	snapshot.snapshot = true;
	w->snapshot = &snapshot;
	w->on_event = follow_revisions;
	expected_revision = 0;
	gap = false;
	world_connect(w);
	for (int i = 1; i <= N; i++) {
		snapshot.revision = (uint64_t)i;
		publish_port(w, (uint64_t)i, 1 + i % 65535);
	}
	WORLD_WAIT(w, w->last_revision == N);
	assert_false(gap);
	assert_true(w->snapshots >= 2);
	assert_true(w->events < 2000);
}

/* An agent that leaves an event out: asked for all there is, over the same link. */
static void test_events_gap_gives_a_snapshot(void **state)
{
	struct world *w = *state;
	Event snapshot = EVENT__INIT;

	snapshot.snapshot = true;
	w->snapshot = &snapshot;
	w->on_event = follow_revisions;
	expected_revision = 0;
	gap = false;
	world_connect(w);
	publish_port(w, 1, 80);
	WORLD_WAIT(w, w->last_revision == 1);
	snapshot.revision = 3;
	publish_port(w, 3, 82);
	publish_port(w, 4, 83);
	snapshot.revision = 4;
	WORLD_WAIT(w, w->last_revision == 4);
	assert_int_equal(w->snapshots, 2);
	publish_port(w, 5, 84);
	WORLD_WAIT(w, w->last_revision == 5);
	assert_int_equal(w->snapshots, 2);
	assert_false(gap);
	assert_false(w->lost);
}

/* One whose events never add up keeps nobody busy. */
static void test_events_gap_after_gap_loses_the_link(void **state)
{
	struct world *w = *state;
	uint64_t revision = 1;

	world_connect(w);
	while (!w->lost) {
		unsigned snapshots = w->snapshots;

		revision += 2;
		publish_port(w, revision, 80);
		WORLD_WAIT(w, w->lost || w->snapshots > snapshots);
	}
	assert_int_equal(w->lost_why.code, -EPROTO);
	assert_true(w->snapshots <= 3);
}

static void test_events_nothing_lost_over_reconnects(void **state)
{
	struct world *w = *state;
	Event snapshot = EVENT__INIT;
	uint64_t revision = 0;

	snapshot.snapshot = true;
	w->snapshot = &snapshot;
	w->on_event = follow_revisions;
	gap = false;
	for (int round = 0; round < 20; round++) {
		world_connect(w);
		assert_int_equal(w->last_revision, revision);
		for (int i = 0; i < 10; i++) {
			snapshot.revision = ++revision;
			publish_port(w, revision, 80);
		}
		if (round % 2)
			WORLD_WAIT(w, w->last_revision == revision);
		world_stop_client(w);
		for (int i = 0; i < 3; i++) {	/* while nobody listens */
			snapshot.revision = ++revision;
			publish_port(w, revision, 81);
		}
	}
	assert_false(gap);
}

static void test_events_two_listeners(void **state)
{
	struct world *a = *state, b;
	struct error err = { 0 };
	int fds[2];

	world_connect(a);
	world_init(&b);		/* a host with a loop of its own */
	world_socketpair(fds);
	assert_int_equal(guest_server_serve_fd(a->server, fds[0], NULL, &err), 0);
	world_start_client(&b, fds[1], NULL, 0);
	WORLD_WAIT(a, ({ uv_run(&b.loop.uv, UV_RUN_NOWAIT); b.snapshots == 1; }));
	publish_port(a, 1, 80);
	WORLD_WAIT(a, ({ uv_run(&b.loop.uv, UV_RUN_NOWAIT); a->events == 2 && b.events == 2; }));
	world_done(&b);
}

static void test_events_bad_entries_are_dropped(void **state)
{
	struct world *w = *state;
	IPPort good = IPPORT__INIT, bad[3], *list[4] = { &bad[0], &good, &bad[1], &bad[2] };
	Event e = EVENT__INIT;

	for (int i = 0; i < 3; i++)
		bad[i] = (IPPort)IPPORT__INIT;
	good.protocol = bad[1].protocol = bad[2].protocol = "tcp";
	bad[0].protocol = "\033[2J";
	good.ip = bad[0].ip = bad[1].ip = "127.0.0.1";
	bad[2].ip = "$(reboot)";
	good.port = bad[0].port = bad[2].port = 8080;
	bad[1].port = 65536;
	e.revision = 1;
	e.n_added_local_ports = 4;
	e.added_local_ports = list;
	world_connect(w);
	guest_server_publish(w->server, &e);
	WORLD_WAIT(w, w->last_revision == 1);
	assert_int_equal(w->ports_seen, 1);
	assert_false(w->lost);
}

/* Lima's agent: what Info lists stands in for the snapshot it does not send. */
static void test_events_lima_ports_from_info(void **state)
{
	struct world *w = *state;
	IPPort p = IPPORT__INIT, *list[] = { &p };
	Event not_one = EVENT__INIT;

	p.protocol = "tcp";
	p.ip = "0.0.0.0";
	p.port = 2222;
	w->lima = true;
	w->info.n_local_ports = 1;
	w->info.local_ports = list;
	w->snapshot = &not_one;		/* Lima's first event is no snapshot */
	world_connect(w);
	assert_int_equal(guest_client_features(w->client), 0);
	assert_int_equal(w->snapshots, 1);
	assert_int_equal(w->ports_seen, 1);
}

/* --- who does not play by the rules -------------------------------------------- */

static void lost_after(struct world *w, const void *bytes, size_t len)
{
	int fds[2];

	world_socketpair(fds);
	world_start_client(w, fds[1], NULL, 5000);
	assert_int_equal(write(fds[0], bytes, len), len);
	WORLD_WAIT(w, w->lost);
	assert_false(w->ready);
	assert_true(w->lost_why.code < 0);
	world_stop_client(w);
	close(fds[0]);
}

static void test_client_loses_hostile_peers(void **state)
{
	struct world *w = *state;
	static const char ssh[] = "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n";
	static const char http1[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
	uint8_t noise[4096];

	memset(noise, 0xff, sizeof(noise));
	lost_after(w, ssh, strlen(ssh));
	lost_after(w, http1, strlen(http1));
	lost_after(w, noise, sizeof(noise));
}

static void test_client_silence_times_out(void **state)
{
	struct world *w = *state;
	int fds[2];

	world_socketpair(fds);
	world_start_client(w, fds[1], NULL, 100);
	WORLD_WAIT(w, w->lost);
	assert_int_equal(w->lost_why.code, -ETIMEDOUT);
	world_stop_client(w);
	close(fds[0]);
}

/* More than the 4 MiB that are received. */
static void test_client_loses_oversized_event(void **state)
{
	struct world *w = *state;
	scoped_free char *big = xmalloc(6 << 20);
	Event e = EVENT__INIT;
	char *errors[] = { big };

	memset(big, 'x', (6 << 20) - 1);
	big[(6 << 20) - 1] = 0;
	e.n_errors = 1;
	e.errors = errors;
	world_connect(w);
	w->snapshot = &e;	/* the queue is too small for it: it goes as snapshot */
	guest_server_publish(w->server, &e);
	WORLD_WAIT(w, w->lost);
	w->snapshot = NULL;
}

/* --- a guest that does not answer ------------------------------------------------ */

#define BOTH_WAIT(guest, w, cond) \
	WORLD_WAIT(guest, ({ uv_run(&(w)->loop.uv, UV_RUN_NOWAIT); cond; }))

/* A guest with a loop of its own, which stands still when it is not turned. */
static void start_guest(struct world *guest, struct world *w)
{
	struct error err = { 0 };
	int near[2];

	world_init(guest);
	world_start_server(guest);
	world_socketpair(near);
	assert_int_equal(guest_server_serve_fd(guest->server, near[0], NULL, &err), 0);
	world_start_client(w, near[1], NULL, 0);
	BOTH_WAIT(guest, w, w->snapshots == 1);
}

/* The agent stopped answering while somebody waits for a connection. Who waits may
 * have it on another lane: the code is one that means that (lane.h). */
static void test_client_finds_dead_agent_when_asked(void **state)
{
	struct world *w = *state;
	struct world guest;
	struct app a = { 0 };
	uint64_t start;

	w->patience_ms = 2000;
	start_guest(&guest, w);
	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	start = clock_mono_ms();
	WORLD_WAIT(w, w->lost);
	assert_int_equal(w->lost_why.code, -ETIMEDOUT);
	assert_true(a.closed);
	assert_int_equal(a.why.code, -ENOTCONN);
	assert_in_range(clock_mono_ms() - start, 2000, 12000);
	world_stop_client(w);
	world_done(&guest);
}

static void ignore_sync(void *arg, int64_t drift_ms, bool adjusted, const struct error *err)
{
}

/* Nobody waits, but the clock is set now and then. */
static void test_client_finds_dead_agent_by_the_clock(void **state)
{
	struct world *w = *state;
	struct world guest;

	w->patience_ms = 500;
	start_guest(&guest, w);
	guest_client_sync_time(w->client, ignore_sync, NULL);
	WORLD_WAIT(w, w->lost);
	assert_int_equal(w->lost_why.code, -ETIMEDOUT);
	world_stop_client(w);
	world_done(&guest);
}

/* Paused by QMP, by a full disk or for a snapshot, however long: what is open stays,
 * what waits goes on waiting. Then the patience begins anew. */
static void test_client_waits_while_the_machine_is_paused(void **state)
{
	/* looked after 1 s, and PATIENCE_MS later all was over; that is long for a stall of
	 * this thread, in which guest and host are both */
	enum { PATIENCE_MS = 3000, PAUSED_MS = 5500 };
	struct app open = { .to_send = 1000, .check = true }, waiting = { 0 }, late = { 0 };
	struct world *w = *state;
	struct world guest;
	uint64_t until;

	w->patience_ms = PATIENCE_MS;
	start_guest(&guest, w);
	app_start(&open, w, IPPROTO_TCP, FAR_ECHO);
	BOTH_WAIT(&guest, w, open.received == 1000);
	app_start(&waiting, w, IPPROTO_TCP, FAR_ECHO);
	guest_client_set_paused(w->client, true);
	app_start(&late, w, IPPROTO_UDP, FAR_ECHO);
	guest_client_sync_time(w->client, ignore_sync, NULL);
	until = clock_mono_ms() + PAUSED_MS;
	WORLD_WAIT(w, clock_mono_ms() > until);
	assert_false(w->lost || open.closed || waiting.closed || late.closed);
	guest_client_set_paused(w->client, false);
	BOTH_WAIT(&guest, w, waiting.opened && late.opened);
	open.to_send = 2000;
	app_send_more(&open);
	BOTH_WAIT(&guest, w, open.received == 2000);
	assert_false(w->lost || open.corrupt);
	app_start(&(struct app){ 0 }, w, IPPROTO_TCP, FAR_ECHO);	/* and dies now */
	WORLD_WAIT(w, w->lost);
	world_stop_client(w);
	world_done(&guest);
}

static void test_server_survives_noise_and_half_calls(void **state)
{
	struct world *w = *state;
	struct app a = { .to_send = 1000, .eof_when_sent = true, .check = true };
	struct error err = { 0 };
	uint32_t x = 3;

	world_connect(w);
	for (int i = 0; i < 100; i++) {
		/* the client preface of RFC 9113 3.4, then noise */
		uint8_t bytes[512] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
		int fds[2];

		for (size_t k = i % 3 ? 24 : 0; k < sizeof(bytes); k++)
			bytes[k] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		world_socketpair(fds);
		assert_int_equal(guest_server_serve_fd(w->server, fds[0], NULL, &err), 0);
		assert_int_equal(write(fds[1], bytes, sizeof(bytes)), sizeof(bytes));
		close(fds[1]);
	}
	app_start(&a, w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(w, a.closed);
	assert_int_equal(a.received, 1000);
}

/* --- the guest's socket --------------------------------------------------------- */

static void test_server_unix_socket(void **state)
{
	struct world *w = *state;
	char dir[] = "/tmp/lima-proto-XXXXXX";
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct error err = { 0 };
	struct stat st;
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/ga.sock", dir);
	/* a stale socket of an agent before us goes, a file that is none stays */
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	world_start_server(w);
	assert_int_equal(guest_server_listen_unix(w->server, addr.sun_path, getuid(), &err), 0);
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	world_start_client(w, fd, NULL, 5000);
	WORLD_WAIT(w, w->snapshots == 1);
	world_stop_client(w);
	unlink(addr.sun_path);
	fd = open(addr.sun_path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(guest_server_listen_unix(w->server, addr.sun_path, getuid(), &err),
			 -EEXIST);
	unlink(addr.sun_path);
	rmdir(dir);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_client_greets),
		T(test_client_syncs_time_with_round_trip),
		T(test_client_close_ends_calls_under_way),
		T(test_events_snapshot_then_all_in_order),
		T(test_events_overflow_gives_a_snapshot),
		T(test_events_gap_gives_a_snapshot),
		T(test_events_gap_after_gap_loses_the_link),
		T(test_events_nothing_lost_over_reconnects),
		T(test_events_two_listeners),
		T(test_events_bad_entries_are_dropped),
		T(test_events_lima_ports_from_info),
		T(test_client_loses_hostile_peers),
		T(test_client_silence_times_out),
		T(test_client_loses_oversized_event),
		T(test_client_finds_dead_agent_when_asked),
		T(test_client_finds_dead_agent_by_the_clock),
		T(test_client_waits_while_the_machine_is_paused),
		T(test_server_survives_noise_and_half_calls),
		T(test_server_unix_socket),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
