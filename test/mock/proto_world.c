#include "test/mock/proto_world.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"

const char *world_where = "";

/* --- data ------------------------------------------------------------------ */

enum { PATTERN_SIZE = 1000003 };	/* a prime: no chunk size divides it */

static const uint8_t *pattern(void)
{
	static uint8_t table[PATTERN_SIZE];
	uint32_t x = 1;

	if (table[0])
		return table;
	for (size_t i = 0; i < PATTERN_SIZE; i++) {
		x = x * 1664525 + 1013904223;
		table[i] = (uint8_t)(x >> 24) | (i == 0);
	}
	return table;
}

uint8_t *pattern_make(uint64_t at, size_t len)
{
	uint8_t *data = xmalloc(len ? len : 1);

	for (size_t i = 0; i < len;) {
		size_t from = (size_t)((at + i) % PATTERN_SIZE);
		size_t n = MIN(len - i, PATTERN_SIZE - from);

		memcpy(data + i, pattern() + from, n);
		i += n;
	}
	return data;
}

bool pattern_matches(uint64_t at, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len;) {
		size_t from = (size_t)((at + i) % PATTERN_SIZE);
		size_t n = MIN(len - i, PATTERN_SIZE - from);

		if (memcmp(data + i, pattern() + from, n) != 0)
			return false;
		i += n;
	}
	return true;
}

/* --- the guest's network ----------------------------------------------------- */

struct far_stream {
	struct far_stream *next, **pprev;
	struct world *w;
	struct guest_stream *stream;
	enum far_end kind;
	uint64_t count, to_send;
	int reset_code;
};

static void far_free(struct far_stream *f)
{
	*f->pprev = f->next;
	if (f->next)
		f->next->pprev = f->pprev;
	f->w->far_open--;
	free(f);
}

static void far_send_source(struct far_stream *f)
{
	bool room = true;

	while (f->to_send > 0 && room) {
		size_t at_once = guest_stream_crowded(f->stream) ? 4096 : 65536;
		size_t n = (size_t)MIN(f->to_send, (uint64_t)at_once);

		room = guest_stream_write(f->stream, pattern_make(f->count, n), n);
		f->count += n;
		f->w->far_written += n;
		f->to_send -= n;
		if (f->to_send == 0)
			guest_stream_eof(f->stream);
	}
}

static void far_data(void *arg, const uint8_t *data, size_t len)
{
	struct far_stream *f = arg;
	uint8_t *copy;

	f->count += f->kind == FAR_SOURCE ? 0 : len;
	if (f->kind == FAR_RESET) {
		guest_stream_reset(f->stream, f->reset_code);
		far_free(f);
	} else if (f->kind == FAR_ECHO) {
		copy = xmalloc(len ? len : 1);
		if (len)
			memcpy(copy, data, len);
		if (!guest_stream_write(f->stream, copy, len))
			guest_stream_pause(f->stream);
	}
}

static void far_eof(void *arg)
{
	struct far_stream *f = arg;
	uint8_t *answer;

	if (f->kind == FAR_SINK) {
		answer = xmalloc(sizeof(f->count));
		memcpy(answer, &f->count, sizeof(f->count));
		guest_stream_write(f->stream, answer, sizeof(f->count));
	}
	if (f->kind != FAR_SOURCE)
		guest_stream_eof(f->stream);
}

static void far_writable(void *arg)
{
	struct far_stream *f = arg;

	if (f->kind == FAR_ECHO)
		guest_stream_resume(f->stream);
	else if (f->kind == FAR_SOURCE)
		far_send_source(f);
}

static void far_closed(void *arg, const struct error *why)
{
	struct far_stream *f = arg;

	f->w->far_last_end = why->code;
	if (why->code == -ECONNRESET)
		f->w->far_resets++;
	far_free(f);
}

static void on_tunnel(void *arg, struct guest_stream *s, int proto, const char *guest_addr)
{
	static const struct guest_stream_callbacks cb = { far_data, far_eof, far_writable,
							  far_closed, NULL };
	struct world *w = arg;
	struct far_stream *f = xnew(struct far_stream);
	struct guest_stream_callbacks mine = cb;

	f->w = w;
	f->stream = s;
	f->reset_code = proto == IPPROTO_UDP ? -ECONNREFUSED : -ECONNRESET;
	f->kind = (enum far_end)atoi(strrchr(guest_addr, ':') + 1);
	f->next = w->far_streams;
	f->pprev = &w->far_streams;
	if (f->next)
		f->next->pprev = &f->next;
	w->far_streams = f;
	w->far_open++;
	w->far_total++;
	mine.arg = f;
	guest_stream_set_callbacks(s, &mine);
	if (f->kind == FAR_REFUSED) {
		guest_stream_refused(s, -ECONNREFUSED);
		return;
	}
	if (f->kind == FAR_SILENT)
		return;
	if (f->kind == FAR_STALLED)
		guest_stream_pause(s);
	guest_stream_opened(s);
	if (f->kind == FAR_SOURCE) {
		f->to_send = w->source_bytes;
		far_send_source(f);
	}
}

static const Info *on_get_info(void *arg)
{
	struct world *w = arg;

	return &w->info;
}

static const Event *on_get_snapshot(void *arg)
{
	static Event empty = EVENT__INIT;
	struct world *w = arg;

	empty.snapshot = true;
	return w->snapshot ? w->snapshot : &empty;
}

static void on_sync_time(void *arg, const TimeSyncRequest *req, TimeSyncResponse *res)
{
	struct world *w = arg;

	w->last_rtt_ns = req->round_trip_ns;
	res->drift_ms = -1234;
	res->adjusted = true;
}

/* --- the host's side ----------------------------------------------------------- */

static void on_ready(void *arg, const Info *info)
{
	struct world *w = arg;

	w->ready = true;
}

static void on_event(void *arg, const Event *event)
{
	struct world *w = arg;

	w->events++;
	w->ports_seen += event->n_added_local_ports;
	if (event->snapshot)
		w->snapshots++;
	w->last_revision = event->revision;
	if (w->on_event)
		w->on_event(w, event);
}

static void on_lost(void *arg, const struct error *why)
{
	struct world *w = arg;

	assert_false(w->lost);
	w->lost = true;
	w->lost_why = *why;
}

/* --- life ------------------------------------------------------------------------ */

static void on_tick(uv_timer_t *timer)
{
}

void world_turn(struct world *w, uint64_t deadline_ms)
{
	if (clock_mono_ms() > deadline_ms)
		fail_msg("time is up: %s", world_where);
	uv_run(&w->loop.uv, UV_RUN_ONCE);
}

void world_init(struct world *w)
{
	static char *names[] = { "snapshot", "tunnel-kinds", "boot-progress", "time-rtt" };
	struct error err = { 0 };

	*w = (struct world){ 0 };
	w->info = (Info)INFO__INIT;
	w->info.agent_version = "0.1.0";
	memcpy(w->features, names, sizeof(names));
	w->info.features = w->features;
	w->info.n_features = ARRAY_SIZE(names);
	w->server_gone = w->client_gone = true;
	assert_int_equal(loop_init(&w->loop, &err), 0);
	uv_timer_init(&w->loop.uv, &w->tick);
	uv_timer_start(&w->tick, on_tick, 20, 20);
	assert_int_equal(rpc_new(&w->loop, &w->rpc, &err), 0);
}

static void set_true(void *arg)
{
	*(bool *)arg = true;
}

void world_start_server(struct world *w)
{
	const struct guest_server_callbacks cb = { on_get_info, on_get_snapshot, on_sync_time, NULL,
						   on_tunnel, w };
	struct error err = { 0 };

	if (w->lima)
		w->info.n_features = 0;
	w->server_gone = false;
	assert_int_equal(guest_server_new(&w->loop, w->rpc, &cb, &w->server, &err), 0);
}

void world_stop_server(struct world *w)
{
	if (w->server)
		guest_server_close(steal_ptr(&w->server), set_true, &w->server_gone);
	WORLD_WAIT(w, w->server_gone);
}

void world_start_client(struct world *w, int fd, const uint8_t *secret, unsigned timeout_ms)
{
	const struct guest_client_options opts = { secret, timeout_ms, w->patience_ms };
	const struct guest_client_callbacks cb = { on_ready, on_event, on_lost, w };
	struct error err = { 0 };

	w->ready = w->lost = w->client_gone = false;
	w->events = w->snapshots = w->ports_seen = 0;
	assert_int_equal(guest_client_new(&w->loop, w->rpc, fd, &opts, &cb, &w->client, &err), 0);
}

void world_stop_client(struct world *w)
{
	if (w->client)
		guest_client_close(steal_ptr(&w->client), set_true, &w->client_gone);
	WORLD_WAIT(w, w->client_gone);
}

void world_socketpair(int fds[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
}

void world_connect_fds(struct world *w, int server_fd, int client_fd)
{
	struct error err = { 0 };

	if (!w->server)
		world_start_server(w);
	assert_int_equal(guest_server_serve_fd(w->server, server_fd, NULL, &err), 0);
	world_start_client(w, client_fd, NULL, 10000);
	WORLD_WAIT(w, w->ready && w->snapshots > 0);
}

void world_connect(struct world *w)
{
	int fds[2];

	world_socketpair(fds);
	world_connect_fds(w, fds[0], fds[1]);
}

void world_done(struct world *w)
{
	world_stop_client(w);
	world_stop_server(w);
	assert_int_equal(w->far_open, 0);
	rpc_free(w->rpc);
	uv_close((uv_handle_t *)&w->tick, NULL);
	assert_int_equal(loop_done(&w->loop), 0);
}

/* --- the user of a tunnel ---------------------------------------------------------- */

void app_send_more(struct app *a)
{
	while (a->sent < a->to_send && !a->blocked) {
		size_t n = (size_t)MIN(a->to_send - a->sent, (uint64_t)(a->chunk ? a->chunk : 65536));

		a->blocked = !guest_tunnel_write(a->tunnel, pattern_make(a->sent, n), n);
		a->sent += n;
	}
	if (a->sent == a->to_send && a->eof_when_sent) {
		a->eof_when_sent = false;
		guest_tunnel_eof(a->tunnel);
	}
}

static void app_opened(void *arg)
{
	struct app *a = arg;

	assert_false(a->opened);
	a->opened = true;
	app_send_more(a);
}

static void app_data(void *arg, const uint8_t *data, size_t len)
{
	struct app *a = arg;

	assert_true(a->opened);
	if (a->paused)
		a->data_after_pause = true;
	if (a->check && !pattern_matches(a->received, data, len))
		a->corrupt = true;
	a->received += len;
	a->pieces++;
	a->last_len = len;
	memset(a->last, 0, sizeof(a->last));
	memcpy(a->last, data, MIN(len, sizeof(a->last)));
}

static void app_eof(void *arg)
{
	struct app *a = arg;

	assert_false(a->eof);
	if (a->paused)
		a->data_after_pause = true;
	a->eof = true;
}

static void app_writable(void *arg)
{
	struct app *a = arg;

	a->blocked = false;
	app_send_more(a);
}

static void app_closed(void *arg, const struct error *why)
{
	struct app *a = arg;

	assert_false(a->closed);
	a->closed = true;
	a->tunnel = NULL;
	a->why = *why;
}

void app_start(struct app *a, struct world *w, int proto, enum far_end far)
{
	const struct guest_tunnel_callbacks cb = { app_opened, app_data, app_eof, app_writable,
						   app_closed, a };
	struct error err = { 0 };
	char addr[64];

	a->w = w;
	snprintf(addr, sizeof(addr), "127.0.0.1:%d", (int)far);
	assert_int_equal(guest_tunnel_open(w->client, proto, addr, &cb, &a->tunnel, &err), 0);
	assert_false(a->opened || a->closed);	/* no callback before open returned */
}
