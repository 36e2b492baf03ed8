#include "guestagent/ports_udp.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/base/mem.h"

void udp_servers_done(struct udp_servers *u)
{
	free(u->items);
	*u = (struct udp_servers){ 0 };
}

static int known_compare(const void *a, const void *b)
{
	const struct udp_known *x = a, *y = b;

	return x->cookie < y->cookie ? -1 : x->cookie > y->cookie;
}

void udp_servers_restore(struct udp_servers *u, struct udp_known *items, size_t len)
{
	assert(!u->started && !u->items);
	u->items = items;
	u->len = len;
	if (len)
		qsort(items, len, sizeof(*items), known_compare);
}

static bool port_is_a_clients(uint16_t port)
{
	return port == 68 || port == 546 || port == 5353;
}

/* How old @k must be to count as a server; UINT64_MAX: never. */
static uint64_t server_age_ms(const struct udp_known *k, struct udp_range range)
{
	bool in_range = k->port.port >= range.low && k->port.port <= range.high;

	if (k->connected || port_is_a_clients(k->port.port) || k->bind == UDP_BIND_KERNEL)
		return UINT64_MAX;
	if (k->bind == UDP_BIND_UNKNOWN && in_range)
		return UDP_UNSURE_AGE_MS;
	return UDP_MIN_AGE_MS;
}

static struct udp_known *collect(const struct sock_list *dump, size_t *ret_len)
{
	struct udp_known *items = xcalloc(dump->len + 1, sizeof(*items));
	size_t n = 0;

	for (size_t i = 0; i < dump->len; i++) {
		const struct sock *s = &dump->items[i];

		if (s->port.proto != IPPROTO_UDP)
			continue;
		items[n++] = (struct udp_known){
			.cookie = s->cookie, .connected = s->connected, .port = s->port
		};
	}
	qsort(items, n, sizeof(*items), known_compare);
	*ret_len = n;
	return items;
}

/* What was known of the same socket, else what can be learnt now. connect() may
 * fill in a wildcard local address; the host goes on knowing the first one. */
static void recall(struct udp_known *k, const struct udp_known *old, uint64_t since_ms, bool first,
		   enum udp_bind (*how)(void *arg, uint64_t cookie), void *arg)
{
	enum udp_bind seen;
	bool known = old && old->cookie == k->cookie && old->port.port == k->port.port;

	k->since_ms = since_ms;
	if (known) {
		bool connected = k->connected;

		*k = *old;
		k->connected = connected;
	}
	if (!how || (known && !first))
		return;
	seen = how(arg, k->cookie);
	if (seen != UDP_BIND_UNKNOWN)
		k->bind = seen;
	else if (!first)	/* every bind() was seen since we started; this socket had none */
		k->bind = UDP_BIND_KERNEL;
}

/* An agent that cannot know it would take @k for a server, once it is old enough. */
static bool looks_like_server(const struct udp_known *k)
{
	return k->bind == UDP_BIND_KERNEL && !k->connected;
}

/* Judges @k by its age. Returns in how many ms age alone makes a difference, 0: never. */
static uint64_t judge_age(struct udp_known *k, uint64_t now_ms, struct udp_range range)
{
	uint64_t age_ms = now_ms - k->since_ms, need_ms = server_age_ms(k, range);

	if (need_ms != UINT64_MAX)
		k->server |= age_ms >= need_ms;
	else if (looks_like_server(k))
		need_ms = UDP_UNSURE_AGE_MS;
	k->lasting |= k->server || (looks_like_server(k) && age_ms >= need_ms);
	return k->lasting || need_ms == UINT64_MAX ? 0 : need_ms - age_ms;
}

uint64_t udp_servers_judge(struct udp_servers *u, const struct sock_list *dump, uint64_t now_ms,
			   struct udp_range range,
			   enum udp_bind (*how)(void *arg, uint64_t cookie), void *arg,
			   struct port_set *ret)
{
	uint64_t since_ms = u->started || now_ms < UDP_MIN_AGE_MS ? now_ms : now_ms - UDP_MIN_AGE_MS;
	uint64_t next_ms = 0;
	size_t len, old = 0;
	struct udp_known *items = collect(dump, &len);

	for (size_t i = 0; i < len; i++) {
		struct udp_known *k = &items[i];
		uint64_t due_ms;

		while (old < u->len && u->items[old].cookie < k->cookie)
			old++;
		recall(k, old < u->len ? &u->items[old] : NULL, since_ms, !u->started, how, arg);
		due_ms = judge_age(k, now_ms, range);
		if (due_ms && (next_ms == 0 || due_ms < next_ms))
			next_ms = due_ms;
		if (k->server)
			port_set_add(ret, &k->port);
	}
	free(u->items);
	u->items = items;
	u->len = len;
	u->started = true;
	return next_ms;
}

struct udp_range udp_range_read(void)
{
	struct udp_range r = { 32768, 60999 };
	scoped_file FILE *f = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");
	unsigned low, high;

	if (f && fscanf(f, "%u %u", &low, &high) == 2 && low <= high && high <= 65535)
		r = (struct udp_range){ (uint16_t)low, (uint16_t)high };
	return r;
}
