/* vsock.h - a guest's vsock without a guest, in the same loop
 *
 * Implements what a lane calls of lib/virtio/vsock.h; the program that links this
 * does not link the device. Plays the guest's agent, too: reads the relay_hello,
 * answers, then echoes; and a server on a port of its own. Answers come from loop_post(), never inside a call.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/loop.h"
#include "lib/virtio/vsock.h"
#include "proto/relay.h"

enum mock_vsock_mode {
	MOCK_VSOCK_ECHO,
	MOCK_VSOCK_REFUSE, /* nobody listens: connections end with -ECONNREFUSED */
	MOCK_VSOCK_SILENT, /* connections are never answered */
	MOCK_VSOCK_CLOSE,  /* accepted, and reset at once */
};

struct vsock {
	struct loop *loop;
	bool up;
	enum mock_vsock_mode mode; /* of connections made from now on */
	uint32_t reply_error;      /* of the agent to a hello */
	bool no_reply;             /* the agent says nothing */
	bool no_done;              /* … or not that it is through with a client */
	bool full;                 /* the device takes no more connections */
	struct vsock_options o; /* of vsock_new() */
	int listen_fd;
	unsigned guest_resets;
	uint32_t plain_port;       /* a server of the guest's own, without hello; 0: none */
	enum mock_vsock_mode plain_mode;
	unsigned connects, relays, resets, now, open; /* calls seen; alive; of these opened */
	unsigned connects_in_turn, most_in_turn;
	struct relay_hello last;
	bool asked[RELAY_VSOCK_PORTS]; /* each of its ports, whether it was connected to */
	struct vsock_conn *conns;
};

/* Where its agent listens. */
extern const struct relay_ports mock_vsock_ports;

void mock_vsock_init(struct vsock *v, struct loop *loop);
/* What vsock_new() gives out; one at a time. NULL: it fails. */
extern struct vsock *mock_vsock_next;
/* With the callback; connections end first. */
void mock_vsock_set_up(struct vsock *v, bool up);
/* All connections (@idle_only: those without a client) end with @code. */
void mock_vsock_break(struct vsock *v, bool idle_only, int code);
