#include "guestagent/relay_host.h"

#include <errno.h>
#include <sys/socket.h>

#include "lib/base/mem.h"

static bool may_hold(const struct relay_conn *c)
{
	return !c->ends[RELAY_HOST].hung_up && relay_count_busy(c->relay) <= RELAY_HOLDERS_MAX;
}

void relay_host_let_go(struct relay_conn *c)
{
	uint8_t gone[RELAY_HELD_MAX];	/* not the thread's buffer: that may be in use */

	if (c->held)
		(void)!recv(c->ends[RELAY_HOST].fd, gone, MIN(c->held, sizeof(gone)), MSG_DONTWAIT);
	c->held = 0;
	c->held_reads = 0;
}

/* Takes all there is; of it, the first @skip bytes are not new. */
static ssize_t take(struct relay_conn *c, size_t skip, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	ssize_t n = recv(c->ends[RELAY_HOST].fd, b->bytes, sizeof(b->bytes), MSG_DONTWAIT);

	c->bulk = n > RELAY_SMALL;
	*ret_all = n < (ssize_t)sizeof(b->bytes);
	if (n <= 0)
		return n;
	c->held = 0;
	c->held_reads = 0;
	*ret = b->bytes + skip;
	return n - (ssize_t)skip;
}

ssize_t relay_host_recv(struct relay_conn *c, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	size_t held, room;
	ssize_t n;

	if (c->held > RELAY_SMALL || c->held_reads == RELAY_HELD_READS_MAX || !may_hold(c))
		relay_host_let_go(c);
	held = c->held;
	if (c->bulk || !may_hold(c))
		return take(c, held, ret, ret_all);
	room = held + RELAY_SMALL;
	n = recv(c->ends[RELAY_HOST].fd, b->bytes, room, MSG_DONTWAIT | MSG_PEEK);
	if (n == (ssize_t)room)
		return take(c, held, ret, ret_all);
	*ret_all = true;
	if (n <= 0)
		return n;
	if (n <= (ssize_t)held) {
		errno = EAGAIN;
		return -1;
	}
	c->held = (uint16_t)n;
	c->held_reads++;
	*ret = b->bytes + held;
	return n - (ssize_t)held;
}
