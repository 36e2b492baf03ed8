#include "guestagent/relay_host.h"

#include <errno.h>
#include <sys/socket.h>

#include "lib/base/mem.h"

static bool may_hold(const struct relay_conn *c)
{
	return c->held <= RELAY_SMALL && c->held_reads < RELAY_HELD_READS_MAX &&
	       !c->ends[RELAY_HOST].hung_up && relay_count_busy(c->relay) <= RELAY_HOLDERS_MAX;
}

void relay_host_let_go(struct relay_conn *c)
{
	uint8_t gone[RELAY_HELD_MAX];	/* not the thread's buffer: that may be in use */

	if (c->held)
		(void)!recv(c->ends[RELAY_HOST].fd, gone, MIN(c->held, sizeof(gone)), MSG_DONTWAIT);
	c->held = c->held_reads = 0;
}

/* Takes all there is; of it, what was held is not new. */
static ssize_t take(struct relay_conn *c, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	ssize_t n = recv(c->ends[RELAY_HOST].fd, b->bytes, sizeof(b->bytes), MSG_DONTWAIT);
	ssize_t held = c->held;

	c->bulk = n > RELAY_SMALL;
	*ret_all = n < (ssize_t)sizeof(b->bytes);
	if (n <= 0)
		return n;
	c->held = c->held_reads = 0;
	if (n <= held) {
		errno = EAGAIN;
		return -1;
	}
	*ret = b->bytes + held;
	return n - held;
}

/* Never looks at a queue of which a part of a message was taken: what Linux had merged
 * into one buffer it copies from the wrong place then (6.7 and later, until "vsock/virtio:
 * fix MSG_PEEK ignoring skb offset when calculating bytes to copy"). */
ssize_t relay_host_recv(struct relay_conn *c, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	size_t room = c->held + RELAY_SMALL;
	ssize_t n;

	if (c->ends[RELAY_HOST].hung_up)	/* what is behind is the end, without an event */
		relay_host_let_go(c);
	if (c->bulk || !may_hold(c))
		return take(c, ret, ret_all);
	n = recv(c->ends[RELAY_HOST].fd, b->bytes, room, MSG_DONTWAIT | MSG_PEEK);
	if (n == (ssize_t)room)
		return take(c, ret, ret_all);
	*ret_all = true;
	if (n <= 0)
		return n;
	if (n <= c->held) {
		errno = EAGAIN;
		return -1;
	}
	*ret = b->bytes + c->held;
	n -= c->held;
	c->held = (uint16_t)(c->held + n);
	c->held_reads++;
	return n;
}
