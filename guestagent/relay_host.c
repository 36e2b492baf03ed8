#include "guestagent/relay_host.h"

#include <errno.h>
#include <sys/socket.h>

/* Behind a side that was shut down the end comes next. */
static bool may_hold(const struct relay_conn *c)
{
	const struct relay_end *host = &c->ends[RELAY_HOST];

	return !host->shut && !host->hung_up && relay_count_busy(c->relay) <= RELAY_HOLDERS_MAX;
}

void relay_host_let_go(struct relay_conn *c)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);

	if (c->held)
		(void)!recv(c->ends[RELAY_HOST].fd, b->bytes, c->held, MSG_DONTWAIT);
	c->held = 0;
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
	*ret = b->bytes + skip;
	return n - (ssize_t)skip;
}

ssize_t relay_host_recv(struct relay_conn *c, uint8_t **ret, bool *ret_all)
{
	struct relay_buffer *b = relay_get_buffer(c->relay);
	size_t held, room;
	ssize_t n;

	if (c->held > RELAY_SMALL || !may_hold(c))
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
	*ret = b->bytes + held;
	return n - (ssize_t)held;
}

/* While our sending side is open, an empty send() tells: after a reset the peer does
 * not want to receive either. After that side was shut down, shutting it down again
 * clears the mark by which vsock_connectible_recvmsg() says 0 and not ENOTCONN on a
 * connection that is no more (net/vmw_vsock/af_vsock.c). */
bool relay_host_has_reset(struct relay_conn *c)
{
	const struct relay_end *host = &c->ends[RELAY_HOST];
	char byte;

	if (!host->shut)
		return send(host->fd, "", 0, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN &&
		       errno != EINTR;
	shutdown(host->fd, SHUT_WR);
	return recv(host->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno != EAGAIN &&
	       errno != EINTR;
}
