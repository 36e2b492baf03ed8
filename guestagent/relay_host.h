/* relay_host.h - the host's side of a relayed connection: a vsock and its ways
 *
 * Linux (6.8 and later, 6.1 as Debian 12 has it) sends the host a packet for every
 * read that empties the queue, which tells of new credit ("vsock/virtio: fix send
 * credit update with SO_RCVLOWAT", virtio_transport_stream_do_dequeue()). Under
 * emulation that costs a fifth of a small message's way: a worker's turn, an exit
 * from the guest, a wake-up of the host. With 1 MiB of credit nobody waits for it.
 * So a small message is only looked at (MSG_PEEK) and passed on, and leaves the queue
 * when the next one is behind it:
 *
 *	queue	| held: passed on already | new |
 *
 * Held are RELAY_HELD_MAX bytes at most, and nothing is added to them where a
 * connection has ended (the end is not seen behind them), moves bulk (which would be
 * copied twice), or is one of a crowd (each holds a page or more of the guest's memory).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guestagent/relay_impl.h"

enum {
	RELAY_SMALL = 2048,		/* a message that is looked at */
	RELAY_HELD_MAX = 2 * RELAY_SMALL,
	RELAY_HELD_READS_MAX = 64,	/* a byte may take a buffer of its own */
	RELAY_HOLDERS_MAX = 256,	/* a crowd is more */
};

/* As recv(), with *@ret: the bytes, in the thread's buffer. @ret_all: the next byte
 * makes an event. */
ssize_t relay_host_recv(struct relay_conn *c, uint8_t **ret, bool *ret_all);
/* What was held leaves the queue, before it is closed. */
void relay_host_let_go(struct relay_conn *c);
