/* lane.h - a lane without a guest: plays the server in the same loop
 *
 * Answers come from loop_post(), so never inside the call that caused them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"

enum mock_mode {
	MOCK_ECHO,            /* sends back, ends when the client ended */
	MOCK_REFUSE,          /* connect() fails with ECONNREFUSED */
	MOCK_SILENT,          /* connect() never answers */
	MOCK_RESET,           /* connected, resets on the first bytes */
	MOCK_STUCK,           /* connected, takes nothing: write() says full */
	MOCK_SINK,            /* takes everything, ends when the client ended */
	MOCK_SOURCE,          /* sends source_bytes, then FIN; takes until the client's FIN */
	MOCK_REPLY_AFTER_EOF, /* takes until FIN, then sends how many bytes it got and FIN */
	MOCK_LANE_GONE,       /* the lane breaks before it connects */
};

struct mock_lane {
	struct lane lane;
	struct loop *loop;
	enum mock_mode mode;                              /* for connections opened from now on */
	enum mock_mode (*choose)(const char *guest_addr); /* instead of mode; or NULL */
	uint64_t source_bytes;
	unsigned max; /* connections at once, then -EMFILE; 0: any number */
	unsigned opens, resets, closes, eofs, now; /* calls seen; connections alive */
	uint64_t bytes_in;
	char last_addr[64];
	struct lane_conn *conns;
};

void mock_lane_init(struct mock_lane *m, struct loop *loop);
/* Each connection that lives becomes @mode and goes on. */
void mock_lane_switch(struct mock_lane *m, enum mock_mode mode);
/* All connections end with @code, as when the link breaks. */
void mock_lane_break(struct mock_lane *m, int code);
