/* vsock_fx.h - a vsock device with a guest of its own, and clients on it, for tests */
#pragma once

#include "lib/base/loop.h"
#include "lib/virtio/vsock.h"
#include "test/mock/vsock_guest.h"

enum { DEADLINE_MS = 30000 };

struct fx {
	struct loop loop;
	struct vsock *v;
	struct vsock_guest guest;
	char path[108];
	unsigned ups, downs;
	bool closed;
	uv_timer_t tick;
};

struct client {			/* one connection and the far end of its client's socket */
	struct fx *fx;
	struct vsock_conn *conn;
	int fd, far;
	unsigned opened, ended;
	int code;
	struct vsock_relay relay;
	bool hold;		/* no relay when opened */
	int verdict, judged;
	bool reset;		/* what the far end saw */
	uint64_t to_guest, from_guest;
};

/* Runs the loop until @cond; false: not within the deadline. */
bool until(struct fx *fx, bool (*cond)(void *arg), void *arg);
bool until_ms(struct fx *fx, bool (*cond)(void *arg), void *arg, uint64_t ms);
bool is_up(void *arg);
bool script_done(void *arg);
bool nothing_left(void *arg);

/* The device alone; the test runs the guest's script, and fx_stop() after it. */
void fx_open(struct fx *fx, const struct vsock_limits *limits);
/* … with a guest that boots and serves. */
void fx_start(struct fx *fx, const struct vsock_limits *limits);
void fx_stop(struct fx *fx);

/* A client of the guest's service, relayed as soon as it is connected. */
void client_connect(struct fx *fx, struct client *c, enum guest_service service);
bool has_opened(void *arg);
bool has_ended(void *arg);
/* @fn in a thread, which may block on the client's far end. */
void far_end(struct client *c, void (*fn)(struct client *c));
/* It ends with @code, and nothing of it stays. */
void finish(struct client *c, int code);
/* What goes to an echo comes back, and the end after it; for far_end(). */
void send_and_read_back(struct client *c);
/* All of a client's life with that echo. */
void echo_with(struct fx *fx, enum guest_service service);
/* A prologue's callback: the client's `verdict`. */
int client_judge(void *arg, const uint8_t *bytes);
void reset_on_close(int fd);
enum guest_service by_port(uint32_t port);
/* Keeps the loop of until() turning. */
void fx_tick(uv_timer_t *t);
