#include "hostagent/port_feed.h"

#include <assert.h>
#include <string.h>
#include <sys/queue.h>

#include "hostagent/forward/table.h"
#include "hostagent/port_json.h"
#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"

enum {
	COUNTERS_MS = 500,	/* between two looks while nothing happens */
	STATES_MS = 50,		/* … while something does */
	COUNTERS_SHARE = 20,	/* a look may take 1/20 of the time between two, */
	STATES_SHARE = 10,	/* 1/10 in a hurry */
};

struct told {			/* a row as it was last told */
	struct table_link link;	/* by id */
	TAILQ_ENTRY(told) next;
	char *id;		/* protocol, guest and host address, a line each */
	uint64_t counters[10];
	uint32_t texts;		/* hash of those that may change */
	unsigned look;		/* the last one it was in */
};

struct subscriber {
	unsigned id;
	bool (*fn)(void *to, const char *line);	/* NULL: unsubscribed */
	void *to;
	bool behind;		/* needs a snapshot */
};

struct port_feed {
	struct loop *loop;
	struct forward *(*forward)(void *arg);
	void *arg;
	uv_timer_t timer;
	struct subscriber *subs;
	size_t n_subs;
	unsigned last_id;
	bool sending;		/* subs must not move */
	bool closing;
	bool hurry;		/* the timer is set for a state */
	uint64_t looked_ms, cost_ms;	/* the last look */
	unsigned look;
	struct table by_id;
	TAILQ_HEAD(, told) told;
	uint32_t rules;		/* hash of the live rules' ids */
};

/* What one look found. */
struct look {
	struct port_feed *feed;
	json_t *changed, *removed;
	struct buf id;		/* of the row that is compared */
};

/* --- the table ----------------------------------------------------------- */

static void add_row(void *arg, const struct forward_row *row)
{
	struct look *l = arg;

	json_array_append_new(l->changed, port_json_row(row, uv_now(&l->feed->loop->uv)));
}

json_t *port_feed_rows(struct port_feed *feed)
{
	struct forward *f = feed->forward(feed->arg);
	struct look l = { .feed = feed, .changed = json_array() };

	if (f)
		forward_list(f, add_row, &l);
	return l.changed;
}

static void add_rule(void *arg, const struct forward_rule_info *info)
{
	json_array_append_new(arg, port_json_rule(info));
}

json_t *port_feed_rules(struct port_feed *feed)
{
	struct forward *f = feed->forward(feed->arg);
	json_t *list = json_array();

	if (f)
		forward_each_rule(f, add_rule, list);
	return list;
}

static void hash_rule(void *arg, const struct forward_rule_info *info)
{
	uint32_t *hash = arg;

	*hash = table_hash(&info->id, sizeof(info->id), *hash);
}

static uint32_t rules_hash(struct port_feed *feed)
{
	struct forward *f = feed->forward(feed->arg);
	uint32_t hash = 0;

	if (f)
		forward_each_rule(f, hash_rule, &hash);
	return hash;
}

/* --- what was told ------------------------------------------------------- */

static uint32_t hash_text(const char *s, uint32_t seed)
{
	return s ? table_hash(s, strlen(s), seed) : seed;
}

static void describe(const struct forward_row *row, struct told *ret)
{
	const uint64_t counters[] = {
		row->connections_total, row->connections_now, row->bytes_in, row->bytes_out,
		row->refused, row->resets, row->timeouts, row->connect_last_us, row->connect_p50_us,
		row->connect_p99_us,
	};

	static_assert(sizeof(counters) == sizeof(ret->counters), "every counter");
	memcpy(ret->counters, counters, sizeof(counters));
	ret->texts = hash_text(row->state, 0);
	ret->texts = hash_text(row->error, ret->texts);
	ret->texts = hash_text(row->lane, ret->texts);
	ret->texts = table_hash(&row->rule_id, sizeof(row->rule_id), ret->texts);
}

static struct told *find(struct port_feed *feed, const char *id, uint32_t hash)
{
	for (struct table_link *l = table_first(&feed->by_id, hash); l; l = table_next(l)) {
		struct told *t = container_of(l, struct told, link);

		if (streq(t->id, id))
			return t;
	}
	return NULL;
}

static void forget(struct port_feed *feed, struct told *t)
{
	table_remove(&feed->by_id, &t->link);
	TAILQ_REMOVE(&feed->told, t, next);
	free(t->id);
	free(t);
}

static void forget_all(struct port_feed *feed)
{
	struct told *t;

	while ((t = TAILQ_FIRST(&feed->told)))
		forget(feed, t);
	table_done(&feed->by_id);
	feed->by_id = (struct table){ 0 };
}

static void compare_row(void *arg, const struct forward_row *row)
{
	struct look *l = arg;
	struct port_feed *feed = l->feed;
	struct told now = { 0 }, *t;
	uint32_t hash;

	buf_reset(&l->id);
	buf_addf(&l->id, "%s\n%s\n%s", row->protocol, row->guest_addr, row->host_addr);
	hash = hash_text(buf_str(&l->id), 0);
	describe(row, &now);
	t = find(feed, buf_str(&l->id), hash);
	if (t && t->look == feed->look)
		return;		/* two rows of one name: the first speaks */
	if (t && t->texts == now.texts && memcmp(t->counters, now.counters, sizeof(now.counters)) == 0) {
		t->look = feed->look;
		return;
	}
	if (!t) {
		t = xnew(struct told);
		t->id = xstrdup(buf_str(&l->id));
		table_add(&feed->by_id, &t->link, hash);
		TAILQ_INSERT_TAIL(&feed->told, t, next);
	}
	t->texts = now.texts;
	t->look = feed->look;
	memcpy(t->counters, now.counters, sizeof(now.counters));
	if (l->changed)
		add_row(l, row);
}

static json_t *removed_row(const char *id)
{
	const char *guest = strchr(id, '\n') + 1, *host = strchr(guest, '\n') + 1;
	scoped_free char *protocol = xstrndup(id, (size_t)(guest - id - 1));
	scoped_free char *guest_addr = xstrndup(guest, (size_t)(host - guest - 1));

	return port_json_key(protocol, guest_addr, host);
}

/* Brings what was told up to date; @l collects the difference, unless NULL. */
static void look(struct port_feed *feed, struct look *l)
{
	struct forward *f = feed->forward(feed->arg);
	struct told *t, *after;

	feed->look++;
	if (f)
		forward_list(f, compare_row, l);
	for (t = TAILQ_FIRST(&feed->told); t; t = after) {
		after = TAILQ_NEXT(t, next);
		if (t->look == feed->look)
			continue;
		if (l->removed)
			json_array_append_new(l->removed, removed_row(t->id));
		forget(feed, t);
	}
	buf_done(&l->id);
}

/* --- lines --------------------------------------------------------------- */

/* Takes @root. */
static char *line_of(json_t *root)
{
	char *line = json_dumps(root, JSON_COMPACT);

	json_decref(root);
	assert(line);
	return line;
}

static json_t *line_new(const char *type)
{
	char now[CLOCK_RFC3339_SIZE];

	return json_pack("{s:s, s:s}", "time", clock_rfc3339_now(now), "type", type);
}

static char *snapshot_line(struct port_feed *feed)
{
	json_t *root = line_new("snapshot");

	json_object_set_new(root, "ports", port_feed_rows(feed));
	json_object_set_new(root, "rules", port_feed_rules(feed));
	return line_of(root);
}

/* NULL: nothing changed. */
static char *change_line(struct port_feed *feed)
{
	struct look l = { feed, json_array(), json_array(), { 0 } };
	uint32_t rules = rules_hash(feed);
	json_t *root = line_new("change");
	bool any;

	look(feed, &l);
	any = json_array_size(l.changed) || json_array_size(l.removed) || rules != feed->rules;
	json_object_set_new(root, "changed", l.changed);
	json_object_set_new(root, "removed", l.removed);
	if (rules != feed->rules)
		json_object_set_new(root, "rules", port_feed_rules(feed));
	feed->rules = rules;
	if (any)
		return line_of(root);
	json_decref(root);
	return NULL;
}

static void tell(struct port_feed *feed, const char *change)
{
	scoped_free char *snapshot = NULL;

	for (size_t i = 0; i < feed->n_subs; i++) {
		struct subscriber *s = &feed->subs[i];

		if (s->fn && !s->behind && change)
			s->behind = !s->fn(s->to, change);
		else if (s->fn && s->behind && !snapshot)
			snapshot = snapshot_line(feed);
		if (s->fn && s->behind && snapshot)
			s->behind = !s->fn(s->to, snapshot);
	}
}

static void drop_unsubscribed(struct port_feed *feed)
{
	size_t kept = 0;

	for (size_t i = 0; i < feed->n_subs; i++)
		if (feed->subs[i].fn)
			feed->subs[kept++] = feed->subs[i];
	feed->n_subs = kept;
	if (kept)
		return;
	uv_timer_stop(&feed->timer);
	forget_all(feed);
}

/* --- time ---------------------------------------------------------------- */

static void on_timer(uv_timer_t *timer);

static void look_in(struct port_feed *feed, uint64_t ms)
{
	uv_timer_start(&feed->timer, on_timer, ms, 0);
}

static void look_and_tell(struct port_feed *feed)
{
	uint64_t began = uv_hrtime();

	feed->hurry = false;
	feed->sending = true;
	scoped_free char *change = change_line(feed);
	tell(feed, change);
	feed->sending = false;
	uv_update_time(&feed->loop->uv);
	feed->looked_ms = uv_now(&feed->loop->uv);
	feed->cost_ms = (uv_hrtime() - began) / 1000000;
	drop_unsubscribed(feed);
	if (feed->n_subs)
		look_in(feed, MAX((uint64_t)COUNTERS_MS, feed->cost_ms * COUNTERS_SHARE));
}

static void on_timer(uv_timer_t *timer)
{
	struct port_feed *feed = timer->data;

	if (!feed->closing)
		look_and_tell(feed);
}

void port_feed_poke(struct port_feed *feed)
{
	uint64_t gap = MAX((uint64_t)STATES_MS, feed->cost_ms * STATES_SHARE);
	uint64_t now = uv_now(&feed->loop->uv), due = feed->looked_ms + gap;

	if (!feed->n_subs || feed->hurry || feed->closing)
		return;
	feed->hurry = true;
	look_in(feed, due > now ? due - now : 0);
}

/* --- subscribers --------------------------------------------------------- */

unsigned port_feed_subscribe(struct port_feed *feed, bool (*fn)(void *to, const char *line), void *to)
{
	scoped_free char *snapshot = snapshot_line(feed);
	unsigned id = ++feed->last_id;

	if (!feed->n_subs) {
		look(feed, &(struct look){ .feed = feed });
		feed->rules = rules_hash(feed);
		look_in(feed, COUNTERS_MS);
	}
	feed->subs = xreallocarray(feed->subs, feed->n_subs + 1, sizeof(*feed->subs));
	feed->subs[feed->n_subs++] = (struct subscriber){ .id = id, .fn = fn, .to = to };
	if (!fn(to, snapshot))
		feed->subs[feed->n_subs - 1].behind = true;
	return id;
}

void port_feed_unsubscribe(struct port_feed *feed, unsigned id)
{
	for (size_t i = 0; i < feed->n_subs; i++)
		if (feed->subs[i].id == id)
			feed->subs[i].fn = NULL;
	if (!feed->sending)
		drop_unsubscribed(feed);
}

/* --- life ---------------------------------------------------------------- */

struct port_feed *port_feed_new(struct loop *loop, struct forward *(*forward)(void *arg), void *arg)
{
	struct port_feed *feed = xnew(struct port_feed);

	feed->loop = loop;
	feed->forward = forward;
	feed->arg = arg;
	TAILQ_INIT(&feed->told);
	uv_timer_init(&loop->uv, &feed->timer);
	uv_unref((uv_handle_t *)&feed->timer);
	feed->timer.data = feed;
	return feed;
}

static void on_closed(uv_handle_t *h)
{
	struct port_feed *feed = h->data;

	free(feed->subs);
	free(feed);
}

void port_feed_close(struct port_feed *feed)
{
	if (feed->closing)
		return;
	feed->closing = true;
	feed->n_subs = 0;
	forget_all(feed);
	uv_close((uv_handle_t *)&feed->timer, on_closed);
}
