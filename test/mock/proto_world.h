/* proto_world.h - a guest agent and a host agent in one process, one loop
 *
 * The guest's side is a guest_server whose "guest network" is played here: the
 * address of a tunnel says how the far end behaves. The host's side is a
 * guest_client and `struct app`s, each the user of one tunnel.
 *
 * All data is a fixed pattern by position, so each byte is checked on arrival.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/loop.h"
#include "proto/guest_client.h"
#include "proto/guest_server.h"

/* How the far end of a tunnel behaves; the port of its address. */
enum far_end {
	FAR_ECHO = 7,		/* sends back; its EOF follows ours */
	FAR_SINK = 9,		/* counts; at our EOF answers the count (8 bytes) and EOF */
	FAR_SOURCE = 19,	/* sends world->source_bytes, then EOF; ends at our EOF */
	FAR_REFUSED = 20,	/* connect(): ECONNREFUSED */
	FAR_RESET = 21,		/* resets at the first byte; UDP: ECONNREFUSED */
	FAR_SILENT = 22,	/* connect() never returns */
	FAR_STALLED = 23,	/* opens, takes nothing */
};

struct world {
	struct loop loop;
	struct rpc *rpc;
	uv_timer_t tick;	/* so that waiting loops look at their deadline */
	bool lima;		/* the peers know nothing that Lima does not */

	struct guest_server *server;
	bool server_gone;
	uint64_t source_bytes;
	unsigned far_open, far_total;	/* streams on the guest's side */
	unsigned far_resets;
	uint64_t far_written;		/* by sources, all together */
	int far_last_end;
	struct far_stream *far_streams;
	Event *snapshot;	/* what listeners get first; owner: the test */
	char *features[8];
	Info info;
	int64_t last_rtt_ns;

	struct guest_client *client;
	bool client_gone;
	unsigned patience_ms;	/* of the next client; 0: its own */
	bool ready, lost;
	struct error lost_why;
	unsigned events, snapshots, ports_seen;
	uint64_t last_revision;
	void (*on_event)(struct world *w, const Event *event);
};

void world_init(struct world *w);
/* Closes what is open and asserts that nothing is left. */
void world_done(struct world *w);

void world_start_server(struct world *w);
void world_stop_server(struct world *w);
/* A client on @fd. */
void world_start_client(struct world *w, int fd, const uint8_t *secret, unsigned timeout_ms);
void world_stop_client(struct world *w);
/* Server and client joined by a socket pair, ready. */
void world_connect(struct world *w);
/* … each with an end of its own. */
void world_connect_fds(struct world *w, int server_fd, int client_fd);
void world_socketpair(int fds[2]);

extern const char *world_where;	/* for the message when time is up */
void world_turn(struct world *w, uint64_t deadline_ms);

/* Runs the loop until @cond; fails after @ms. */
#define WORLD_WAIT_MS(w, cond, ms)                                \
	do {                                                      \
		uint64_t world_deadline = clock_mono_ms() + (ms); \
		world_where = __FILE__ ": " #cond;                \
		while (!(cond))                                   \
			world_turn(w, world_deadline);            \
	} while (0)
#define WORLD_WAIT(w, cond) WORLD_WAIT_MS(w, cond, 30000)

/* --- data ---------------------------------------------------------------- */

/* @len bytes of the pattern from position @at on. malloc'd. */
uint8_t *pattern_make(uint64_t at, size_t len);
bool pattern_matches(uint64_t at, const uint8_t *data, size_t len);

/* --- the user of a tunnel ------------------------------------------------- */

struct app {
	struct world *w;
	struct guest_tunnel *tunnel;	/* NULL once closed */
	uint64_t to_send, sent, received;
	size_t chunk;			/* bytes a write, default 64 KiB */
	bool eof_when_sent;
	bool check;			/* received bytes are the pattern */
	bool opened, eof, closed, corrupt, blocked;
	bool data_after_pause;
	bool paused;
	unsigned pieces;		/* calls of `data` */
	size_t last_len;
	uint8_t last[16];		/* the beginning of the last piece */
	struct error why;
};

/* Opens; sending starts when it is open. */
void app_start(struct app *a, struct world *w, int proto, enum far_end far);
void app_send_more(struct app *a);
