#include "test/mock/lane.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>

#include "lib/base/mem.h"

enum { MOCK_HIGH = 256 * 1024, MOCK_CHUNK = 128 * 1024, MOCK_CHUNKS_PER_TURN = 4 };

struct block {
	struct block *next;
	uint8_t *data;
	size_t len;
};

struct lane_conn {
	struct mock_lane *mock;
	struct lane_conn *prev, *next;
	struct lane_callbacks cb;
	int proto;
	enum mock_mode mode;
	struct block *head, **tail;
	size_t queued;
	uint64_t got, sent;
	bool opened, paused, full, eof_in, eof_out, dead;
	bool posted;
	int fail_code; /* end with this at the next turn; 0: do not */
};

static uint8_t filler[MOCK_CHUNK];

static void unlink_conn(struct lane_conn *c)
{
	if (c->prev)
		c->prev->next = c->next;
	else
		c->mock->conns = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->mock->now--;
}

static void free_conn(struct lane_conn *c)
{
	while (c->head) {
		struct block *b = c->head;

		c->head = b->next;
		free(b->data);
		free(b);
	}
	free(c);
}

static void kill_conn(struct lane_conn *c)
{
	assert(!c->dead);
	c->dead = true;
	unlink_conn(c);
	if (!c->posted)
		free_conn(c);
}

static void turn(void *arg);

static void schedule(struct lane_conn *c)
{
	if (c->posted)
		return;
	c->posted = true;
	loop_post(c->mock->loop, turn, c);
}

static void end(struct lane_conn *c, int code)
{
	struct error why = { .code = code };
	struct lane_callbacks cb = c->cb;

	if (code)
		error_set(&why, code, "mock: %s", error_text(code));
	kill_conn(c);
	cb.closed(cb.arg, &why);
}

static struct block *take(struct lane_conn *c)
{
	struct block *b = c->head;

	c->head = b->next;
	if (!c->head)
		c->tail = &c->head;
	c->queued -= b->len;
	return b;
}

static void deliver(struct lane_conn *c, const void *data, size_t len)
{
	c->sent += len;
	c->cb.data(c->cb.arg, data, len);
}

/* Takes what came, echoing it if so. */
static void consume(struct lane_conn *c, bool echo)
{
	while (c->head && !c->dead && !(echo && c->paused)) {
		struct block *b = take(c);

		if (echo)
			deliver(c, b->data, b->len);
		free(b->data);
		free(b);
	}
	if (!c->dead && c->full && c->queued < MOCK_HIGH / 2) {
		c->full = false;
		c->cb.writable(c->cb.arg);
	}
}

static void send_eof(struct lane_conn *c)
{
	if (c->eof_out || c->paused)
		return;
	c->eof_out = true;
	c->cb.eof(c->cb.arg);
}

static void source(struct lane_conn *c)
{
	uint64_t left;

	for (int i = 0; i < MOCK_CHUNKS_PER_TURN && !c->dead && !c->paused; i++) {
		left = c->mock->source_bytes - c->sent;
		if (left == 0)
			break;
		deliver(c, filler, MIN(left, (uint64_t)MOCK_CHUNK));
	}
	if (!c->dead && c->sent == c->mock->source_bytes)
		send_eof(c);
	else if (!c->dead && !c->paused)
		schedule(c);
}

static void reply_after_eof(struct lane_conn *c)
{
	char text[32];

	if (!c->eof_in || c->eof_out)
		return;
	deliver(c, text, (size_t)snprintf(text, sizeof(text), "%llu", (unsigned long long)c->got));
	if (!c->dead)
		send_eof(c);
}

/* Returns false when the connection is over or not to go on. */
static bool connect_turn(struct lane_conn *c)
{
	if (c->opened)
		return true;
	if (c->mode == MOCK_REFUSE)
		end(c, -ECONNREFUSED);
	else if (c->mode == MOCK_LANE_GONE)
		end(c, -ECANCELED);
	if (c->mode == MOCK_REFUSE || c->mode == MOCK_LANE_GONE || c->mode == MOCK_SILENT)
		return false;
	c->opened = true;
	c->cb.opened(c->cb.arg);
	return !c->dead;
}

static void serve_turn(struct lane_conn *c)
{
	switch (c->mode) {
	case MOCK_ECHO:
		consume(c, true);
		if (!c->dead && !c->head && c->eof_in)
			send_eof(c);
		break;
	case MOCK_SINK:
		consume(c, false);
		if (!c->dead && c->eof_in)
			send_eof(c);
		break;
	case MOCK_SOURCE:
		consume(c, false);
		if (!c->dead)
			source(c);
		break;
	case MOCK_REPLY_AFTER_EOF:
		consume(c, false);
		if (!c->dead)
			reply_after_eof(c);
		break;
	case MOCK_RESET:
		if (c->head)
			end(c, -ECONNRESET);
		return;
	default: return;
	}
	if (!c->dead && c->eof_in && c->eof_out && c->proto == IPPROTO_TCP)
		end(c, 0);
}

static void turn(void *arg)
{
	struct lane_conn *c = arg;

	if (c->dead) {
		free_conn(c);
		return;
	}
	if (c->fail_code) {
		c->posted = false;
		end(c, c->fail_code);
		return;
	}
	/* stays posted, so that nothing below frees @c under us */
	if (connect_turn(c))
		serve_turn(c);
	c->posted = false;
	if (c->dead)
		free_conn(c);
	else if (c->mode == MOCK_SOURCE && c->opened && !c->paused && !c->eof_out)
		schedule(c);
}

static int mock_open(struct lane *lane, int proto, const char *guest_addr,
		     const struct lane_callbacks *cb, struct lane_conn **ret, struct error *err)
{
	struct mock_lane *m = container_of(lane, struct mock_lane, lane);
	struct lane_conn *c;

	if (m->max && m->now >= m->max)
		return error_set(err, -EMFILE, "%u are open already", m->now);
	c = xnew(struct lane_conn);
	c->mock = m;
	c->cb = *cb;
	c->proto = proto;
	c->mode = m->choose ? m->choose(guest_addr) : m->mode;
	c->tail = &c->head;
	c->next = m->conns;
	if (c->next)
		c->next->prev = c;
	m->conns = c;
	m->opens++;
	m->now++;
	snprintf(m->last_addr, sizeof(m->last_addr), "%s", guest_addr);
	schedule(c);
	*ret = c;
	return 0;
}

static bool mock_write(struct lane_conn *c, uint8_t *data, size_t len)
{
	struct block *b = xnew(struct block);

	assert(c->opened && !c->eof_in && !c->dead);
	b->data = data;
	b->len = len;
	*c->tail = b;
	c->tail = &b->next;
	c->queued += len;
	c->got += len;
	c->mock->bytes_in += len;
	c->full = c->queued > MOCK_HIGH;
	schedule(c);
	return !c->full;
}

static void mock_eof(struct lane_conn *c)
{
	assert(!c->eof_in);
	c->eof_in = true;
	c->mock->eofs++;
	schedule(c);
}

static void mock_pause(struct lane_conn *c)
{
	assert(!c->paused);
	c->paused = true;
}

static void mock_resume(struct lane_conn *c)
{
	assert(c->paused);
	c->paused = false;
	schedule(c);
}

static void mock_reset(struct lane_conn *c)
{
	c->mock->resets++;
	kill_conn(c);
}

static void mock_close(struct lane_conn *c)
{
	c->mock->closes++;
	kill_conn(c);
}

static const struct lane_ops ops = {
	.name = "mock",
	.open = mock_open,
	.write = mock_write,
	.eof = mock_eof,
	.pause = mock_pause,
	.resume = mock_resume,
	.reset = mock_reset,
	.close = mock_close,
};

void mock_lane_init(struct mock_lane *m, struct loop *loop)
{
	*m = (struct mock_lane){ .lane = { &ops }, .loop = loop };
}

void mock_lane_switch(struct mock_lane *m, enum mock_mode mode)
{
	m->mode = mode;
	for (struct lane_conn *c = m->conns; c; c = c->next) {
		c->mode = mode;
		schedule(c);
	}
}

void mock_lane_break(struct mock_lane *m, int code)
{
	for (struct lane_conn *c = m->conns; c; c = c->next) {
		c->fail_code = code;
		schedule(c);
	}
}
