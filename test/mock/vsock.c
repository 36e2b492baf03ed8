#include "test/mock/vsock.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"

struct vsock_conn { /* refs: the user, a posted turn, the handle */
	struct vsock *v;
	struct vsock_conn *prev, *next;
	struct vsock_conn_callbacks cb;
	struct vsock_relay relay;
	enum mock_vsock_mode mode;
	uv_poll_t poll;
	bool plain, opened, relaying, watching, moved, dead, posted, replied, finished;
	int end_code; /* ends with it at the next turn; 1: does not */
};

static void turn(void *arg);

static void schedule(struct vsock_conn *c)
{
	if (c->posted)
		return;
	c->posted = true;
	loop_post(c->v->loop, turn, c);
}

static void on_handle_closed(uv_handle_t *h)
{
	struct vsock_conn *c = h->data;

	c->watching = false;
	if (c->dead && !c->posted)
		free(c);
	else if (c->finished)
		schedule(c);
}

static void drop(struct vsock_conn *c)
{
	assert(!c->dead);
	c->dead = true;
	*(c->prev ? &c->prev->next : &c->v->conns) = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->v->now--;
	c->v->open -= c->opened;
	if (c->watching && !c->finished)
		uv_close((uv_handle_t *)&c->poll, on_handle_closed);
	else if (!c->watching && !c->posted)
		free(c);
}

static void end(struct vsock_conn *c, int code)
{
	struct error why = { 0 };
	bool posted = c->posted;

	if (code)
		error_set(&why, code, "mock vsock: %s", error_text(code));
	c->posted = true;	/* the callback may ask for has_moved */
	drop(c);
	c->cb.ended(c->cb.arg, &why);
	c->posted = posted;
	if (!c->watching && !posted)
		free(c);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct vsock_conn *c = poll->data;
	uint8_t block[4096];
	ssize_t n;

	if (c->dead)
		return;
	n = status < 0 ? -1 : recv(c->relay.fd, block, sizeof(block), MSG_DONTWAIT);
	if (n < 0 && status == 0 && errno == EAGAIN)
		return;
	if (n == 0)
		shutdown(c->relay.fd, SHUT_WR);
	if (n == 0 && c->relay.framed) {
		c->finished = true;
		uv_close((uv_handle_t *)&c->poll, on_handle_closed);
		c->cb.finished(c->cb.arg);
		return;
	}
	if (n <= 0) {
		end(c, n < 0 ? -EPIPE : 0);
		return;
	}
	c->moved = true;
	*c->relay.to_guest += (uint64_t)n;
	*c->relay.from_guest += (uint64_t)n;
	assert(send(c->relay.fd, block, (size_t)n, MSG_NOSIGNAL) == n);
}

static void answer(struct vsock_conn *c)
{
	struct relay_reply reply = { .magic = htons(RELAY_MAGIC),
				     .error = htonl(c->v->reply_error) };
	int rc;

	c->replied = true;
	rc = c->plain ? 0 : c->relay.prologue(c->cb.arg, (const uint8_t *)&reply);
	if (rc < 0) {
		end(c, rc);
		return;
	}
	uv_poll_init(&c->v->loop->uv, &c->poll, c->relay.fd);
	c->poll.data = c;
	c->watching = true;
	uv_poll_start(&c->poll, UV_READABLE, on_poll);
}

static void turn_open(struct vsock_conn *c)
{
	if (c->mode == MOCK_VSOCK_REFUSE) {
		end(c, -ECONNREFUSED);
	} else if (c->mode != MOCK_VSOCK_SILENT) {
		c->opened = true;
		c->v->open++;
		if (c->mode == MOCK_VSOCK_CLOSE) {
			c->end_code = -ECONNRESET;
			schedule(c);
		}
		c->cb.opened(c->cb.arg);
	}
}

static void turn(void *arg)
{
	struct vsock_conn *c = arg;

	c->posted = false;
	c->v->connects_in_turn = 0;
	if (c->dead) {
		if (!c->watching)
			free(c);
	} else if (c->end_code <= 0) {
		end(c, c->end_code);
	} else if (!c->opened) {
		turn_open(c);
	} else if (c->finished && !c->watching) {
		if (c->v->no_done)
			return;
		c->finished = c->relaying = c->replied = c->moved = false;
		c->cb.idle(c->cb.arg);
	} else if (c->relaying && !c->replied && (c->plain || !c->v->no_reply)) {
		answer(c);
	}
}

void mock_vsock_init(struct vsock *v, struct loop *loop)
{
	*v = (struct vsock){ .loop = loop, .up = true };
}

void mock_vsock_break(struct vsock *v, bool idle_only, int code)
{
	struct vsock_conn *last = v->conns;

	while (last && last->next)
		last = last->next;
	/* the oldest first, as the kernel closes what a dead agent had open */
	for (struct vsock_conn *c = last; c; c = c->prev)
		if (!idle_only || !c->relaying) {
			c->end_code = code;
			schedule(c);
		}
}

/* --- the device ---------------------------------------------------------------- */

struct vsock *mock_vsock_next;
const struct relay_ports mock_vsock_ports = { RELAY_VSOCK_PORT, RELAY_VSOCK_PORTS };

int vsock_new(const struct vsock_options *opts, int listen_fd, struct vsock **ret,
	      struct error *err)
{
	struct vsock *v = mock_vsock_next;

	if (!v) {
		close(listen_fd);
		return error_set(err, -EMFILE, "mock vsock: too many open files");
	}
	mock_vsock_init(v, opts->loop);
	v->up = false;
	v->o = *opts;
	v->listen_fd = listen_fd;
	*ret = v;
	return 0;
}

void mock_vsock_set_up(struct vsock *v, bool up)
{
	struct error why = { 0 };

	v->up = up;
	if (up) {
		v->o.up(v->o.arg);
		return;
	}
	while (v->conns)
		end(v->conns, -ECANCELED);
	error_set(&why, -ECANCELED, "mock vsock: down");
	v->o.down(v->o.arg, &why);
}

void vsock_guest_was_reset(struct vsock *v)
{
	v->guest_resets++;
}

void vsock_get_stats(const struct vsock *v, struct vsock_stats *ret)
{
	*ret = (struct vsock_stats){ .connections = v->now };
}

void vsock_close(struct vsock *v, void (*closed)(void *arg), void *arg)
{
	assert(!v->conns);
	close(v->listen_fd);
	loop_post(v->loop, closed, arg);
}

/* --- connections --------------------------------------------------------------- */

bool vsock_is_up(const struct vsock *v)
{
	return v->up;
}

int vsock_connect(struct vsock *v, uint32_t port, const struct vsock_conn_callbacks *cb,
		  struct vsock_conn **ret, struct error *err)
{
	struct vsock_conn *c;

	if (port != v->plain_port || !port) {
		assert(port - mock_vsock_ports.first < mock_vsock_ports.n);
		v->asked[port - mock_vsock_ports.first] = true;
	}
	if (!v->up)
		return error_set(err, -ENOTCONN, "mock vsock: down");
	if (v->full)
		return error_set(err, -EMFILE, "mock vsock: too many connections");
	c = xnew(struct vsock_conn);
	c->v = v;
	c->cb = *cb;
	c->plain = port == v->plain_port;
	c->mode = c->plain ? v->plain_mode : v->mode;
	c->end_code = 1;
	c->next = v->conns;
	if (c->next)
		c->next->prev = c;
	v->conns = c;
	v->connects++;
	v->most_in_turn = MAX(v->most_in_turn, ++v->connects_in_turn);
	v->now++;
	schedule(c);
	*ret = c;
	return 0;
}

void vsock_conn_relay(struct vsock_conn *c, const struct vsock_relay *relay)
{
	assert(c->opened && !c->relaying);
	assert(relay->hello_len == (c->plain ? 0 : sizeof(struct relay_hello)));
	c->relaying = true;
	c->relay = *relay;
	if (!c->plain)
		memcpy(&c->v->last, relay->hello, sizeof(c->v->last));
	c->v->relays++;
	schedule(c);
}

bool vsock_conn_has_moved(const struct vsock_conn *c)
{
	return c->moved;
}

void vsock_conn_reset(struct vsock_conn *c)
{
	c->v->resets++;
	drop(c);
}
