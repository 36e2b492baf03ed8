#include "hostagent/forward/reserved.h"

#include <string.h>

#include "lib/base/mem.h"

enum { RESERVED_PAUSE_MS = 1000 };

struct reserved { /* refs: the timer, and work under way */
	struct hub *hub;
	struct forward_reserved_source source;
	void (*changed)(void *arg);
	void *arg;
	uv_timer_t timer;
	uv_work_t work;
	bool looking, again; /* again: somebody asked while looking */
	uint64_t looked_ms;  /* when the last look ended; 0: never */
	struct forward_reserved *ports, *found; /* found: the pool's while looking */
	size_t n, n_found;
	bool closing;
	unsigned refs;
};

static void unref(struct reserved *r)
{
	if (--r->refs > 0)
		return;
	hub_unref(r->hub);
	free(r->ports);
	free(r->found);
	free(r);
}

static void look(uv_work_t *work)
{
	struct reserved *r = work->data;

	r->n_found = r->source.list(r->source.arg, r->found, RESERVED_MAX);
}

static bool is_same(const struct reserved *r)
{
	if (r->n != r->n_found)
		return false;
	for (size_t i = 0; i < r->n; i++)
		if (r->ports[i].port != r->found[i].port ||
		    !streq(r->ports[i].name, r->found[i].name))
			return false;
	return true;
}

static void on_looked(uv_work_t *work, int status)
{
	struct reserved *r = work->data;
	bool same = is_same(r);
	struct forward_reserved *old = r->ports;

	r->looking = false;
	r->looked_ms = uv_now(r->timer.loop);
	r->ports = r->found;
	r->n = r->n_found;
	r->found = old;
	if (!r->closing && r->again)
		reserved_look(r);
	if (!r->closing && !same)
		r->changed(r->arg);
	unref(r);
}

static void start(struct reserved *r)
{
	r->again = false;
	r->looking = true;
	r->work.data = r;
	r->refs++;
	uv_queue_work(r->timer.loop, &r->work, look, on_looked);
}

static void on_timer(uv_timer_t *t)
{
	start(t->data);
}

void reserved_look(struct reserved *r)
{
	uint64_t now = uv_now(r->timer.loop);

	if (!r->source.list || r->closing || uv_is_active((uv_handle_t *)&r->timer))
		return;
	if (r->looking)
		r->again = true;
	else if (!r->looked_ms || now - r->looked_ms >= RESERVED_PAUSE_MS)
		start(r);
	else
		uv_timer_start(&r->timer, on_timer, r->looked_ms + RESERVED_PAUSE_MS - now, 0);
}

const char *reserved_by(const struct reserved *r, uint16_t port)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->ports[i].port == port)
			return r->ports[i].name;
	return NULL;
}

struct reserved *reserved_new(struct hub *hub, const struct forward_reserved_source *source,
			      void (*changed)(void *arg), void *arg)
{
	struct reserved *r = xnew(struct reserved);

	r->hub = hub;
	r->source = *source;
	r->changed = changed;
	r->arg = arg;
	r->refs = 1;
	r->ports = xcalloc(RESERVED_MAX, sizeof(*r->ports));
	r->found = xcalloc(RESERVED_MAX, sizeof(*r->found));
	hub_ref(hub);
	uv_timer_init(&hub->loop->uv, &r->timer);
	r->timer.data = r;
	reserved_look(r);
	return r;
}

static void on_closed(uv_handle_t *h)
{
	unref(h->data);
}

void reserved_close(struct reserved *r)
{
	r->closing = true;
	uv_close((uv_handle_t *)&r->timer, on_closed);
}
