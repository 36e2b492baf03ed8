/* forward.h - a forward with a mock lane and a record of its events, for tests
 *
 * Clients are ordinary sockets of this process. What blocks runs in a thread by
 * fx_client() while the loop turns here; everything has a deadline.
 */
#pragma once

#include <sys/types.h>

#include "hostagent/forward/forward.h"
#include "lib/base/strv.h"
#include "test/mock/lane.h"

enum { FX_DEADLINE_MS = 20000 };

struct fx {
	struct loop loop;
	struct config config;
	struct forward *forward;
	struct mock_lane lane;
	struct strv events; /* "forwarding tcp 127.0.0.1:80 127.0.0.1:80", "… error" */
	void (*on_event)(struct fx *fx, const struct forward_event *ev); /* NULL: nobody asks */
	bool closed;
};

/* Fills @fx; limits may be NULL. The lane is set. */
void fx_start(struct fx *fx, const struct config_port_forward *rules, size_t n,
	      const struct forward_limits *limits);
/* @config: copied as it is, what it points to lives on. Of @more what fx_start does
 * not set by itself. */
void fx_start_with(struct fx *fx, const struct config *config, const struct forward_options *more);
void fx_stop(struct fx *fx); /* asserts that nothing is left */

struct guest_port fx_port(int proto, const char *ip, uint16_t port);
void fx_add(struct fx *fx, int proto, const char *ip, uint16_t port);
void fx_remove(struct fx *fx, int proto, const char *ip, uint16_t port);
/* From a port of the guest's 127.0.0.1 to one of the host's. */
struct config_port_forward fx_rule(uint16_t port, uint16_t host_port);
/* A port that was free a moment ago on 127.0.0.1 and ::1, TCP and UDP. */
uint16_t fx_free_port(void);

/* Turns the loop until @done(arg); false after the deadline. */
bool fx_until(struct fx *fx, bool (*done)(void *arg), void *arg);
void fx_turn(struct fx *fx, unsigned ms);              /* lets @ms pass */
bool fx_wait_event(struct fx *fx, const char *prefix); /* the newest event starts so */
unsigned fx_count_events(struct fx *fx, const char *prefix);
const char *fx_newest(struct fx *fx); /* event; "" when there is none */
/* fn(arg) in a thread; returns when it did. */
bool fx_client(struct fx *fx, void (*fn)(void *arg), void *arg);

/* --- what is listed ---------------------------------------------------------- */

struct fx_rows {
	unsigned n;
	char text[16][240]; /* "tcp 127.0.0.1:80 127.0.0.1:80 waiting", "… - not-forwarded" */
};

/* Good until the next call. Behind each row's text, if there is such: what @more says of
 * it, by default its error. */
const struct fx_rows *fx_list(struct fx *fx,
			      void (*more)(const struct forward_row *row, char *ret, size_t size));
struct forward_row fx_row(struct fx *fx); /* of the only one */
/* A text to compare with; good until the next call. */
const char *fx_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* --- sockets of clients and servers ------------------------------------------- */

/* Blocking sockets with a receive timeout; -errno on failure. */
int fx_connect(int type, const char *ip, uint16_t port);
int fx_bind(int type, const char *ip, uint16_t port); /* listening when a stream */
int fx_connect_unix(const char *path);
int fx_bind_unix(const char *path);               /* listening */
bool fx_reachable(const char *ip, uint16_t port); /* a stream's client is let in */
/* @data comes back, and no more. */
void fx_assert_echo(struct fx *fx, int fd, const void *data, size_t len);
/* recv() while the loop turns; -EAGAIN after the deadline. */
ssize_t fx_receive(struct fx *fx, int fd, void *buf, size_t len);
