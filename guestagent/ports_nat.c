#include "guestagent/ports_nat.h"

#include <assert.h>
#include <errno.h>
#include <ifaddrs.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guestagent/nat_legacy.h"
#include "guestagent/nat_nft.h"
#include "guestagent/nat_watch.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	LOCALS_MAX = 1024,
	READ_DUTY = 8,
	READ_REST_MAX_MS = 10 * 1000,
	FIRST_READING_MS = 500,		/* how long one that fails is made again at once */
	RETRIES = 10,			/* each after twice the time; the rescan goes on, then */
};

/* One reading, on a thread of the pool. */
struct job {
	uv_work_t work;
	struct ports_nat *owner;
	bool with_nft;
	bool legacy_there;
	bool failed;		/* in part: what was known stays */
	struct nat_ports found;
	struct error err;
	uint64_t took_ms;
};

struct ports_nat {
	struct loop *loop;
	void (*changed)(void *arg);	/* NULL: while it is being made */
	void *arg;
	struct nat_watch *watch;
	uv_timer_t timer;
	struct job *job;		/* under way */
	bool wanted;			/* read again */
	unsigned failures;		/* in a row */
	bool legacy_there;
	uint64_t next_allowed_ms;
	pthread_mutex_t lock;		/* guards these two: written on the loop only */
	struct nat_ports known;
	struct port_set listeners;	/* TCP's, on ports of `known` that loopback leads to */
	bool closing;
	unsigned open_parts;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* --- reading -------------------------------------------------------------- */

static bool read_addr(const struct sockaddr *sa, struct port *ret)
{
	*ret = (struct port){ 0 };
	if (!sa || (sa->sa_family != AF_INET && sa->sa_family != AF_INET6))
		return false;
	ret->family = (uint8_t)sa->sa_family;
	if (sa->sa_family == AF_INET)
		memcpy(ret->addr, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
	else
		memcpy(ret->addr, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
	return true;
}

/* Those of the uplink first: env_primary() takes the first that will do. */
static void read_locals(struct nat_env *env)
{
	struct ifaddrs *all;

	if (getifaddrs(&all) < 0)
		return;
	env->locals = xcalloc(LOCALS_MAX, sizeof(*env->locals));
	for (int uplink = 1; uplink >= 0; uplink--)
		for (const struct ifaddrs *a = all; a && env->locals_len < LOCALS_MAX; a = a->ifa_next)
			if (streq(a->ifa_name, env->uplink) == uplink &&
			    read_addr(a->ifa_addr, &env->locals[env->locals_len]))
				env->locals_len++;
	freeifaddrs(all);
}

/* The interface of the default route: /proc/net/route has its destination and
 * mask as hexadecimal numbers. */
static void read_uplink(struct nat_env *env)
{
	scoped_file FILE *f = fopen("/proc/thread-self/net/route", "re");
	char line[256], name[IFNAMSIZ];
	unsigned to, mask;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%15s %x %*x %*x %*d %*d %*d %x", name, &to, &mask) == 3 && to == 0 &&
		    mask == 0) {
			memcpy(env->uplink, name, sizeof(name));
			return;
		}
}

static bool is_outward(const struct port *p)
{
	struct in6_addr a;

	if (p->family == AF_INET)
		return p->addr[0] != 127;
	memcpy(&a, p->addr, sizeof(a));
	return !IN6_IS_ADDR_LOOPBACK(&a) && !IN6_IS_ADDR_LINKLOCAL(&a);
}

static const struct port *env_primary(const struct nat_env *env, uint8_t family)
{
	for (size_t i = 0; i < env->locals_len; i++)
		if (env->locals[i].family == family && is_outward(&env->locals[i]))
			return &env->locals[i];
	return NULL;
}

/* Where rules leave addresses open, those that will do. */
static void complete(struct nat_port *p, const struct nat_env *env)
{
	static const uint8_t any[16];
	const struct port *own = env_primary(env, p->port.family);

	if (p->via.port == 0 && own && memcmp(p->port.addr, any, sizeof(any)) == 0) {
		p->via = *own;
		p->via.port = p->port.port;
	}
	if (p->target.port && own && memcmp(p->target.addr, any, sizeof(any)) == 0)
		memcpy(p->target.addr, own->addr, sizeof(own->addr));	/* REDIRECT */
}

static int port_compare(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct nat_port));
}

static void read_legacy(struct job *j, const struct nat_env *env)
{
	static const uint8_t families[] = { AF_INET, AF_INET6 };

	for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
		struct nat_rules *rules;

		if (!nat_legacy_there(families[i]))
			continue;
		j->legacy_there = true;
		rules = nat_legacy_read(families[i], &j->err);
		if (!rules) {
			j->failed = true;
			continue;
		}
		nat_rules_walk(rules, env, &j->found);
		j->found.full |= nat_rules_full(rules);
		nat_rules_free(rules);
	}
}

static void read_nft(struct job *j, const struct nat_env *env)
{
	struct nat_nft_tables *tables = xnew(struct nat_nft_tables);

	if (nat_nft_read(tables, &j->err) < 0)
		j->failed = true;
	for (size_t i = 0; i < tables->len; i++) {
		nat_rules_walk(tables->items[i], env, &j->found);
		j->found.full |= nat_rules_full(tables->items[i]);
	}
	nat_nft_done(tables);
	free(tables);
}

static void run_job(uv_work_t *work)
{
	struct job *j = container_of(work, struct job, work);
	uint64_t start_ms = clock_mono_ms();
	struct nat_env env = { 0 };

	read_uplink(&env);
	read_locals(&env);
	if (j->with_nft)
		read_nft(j, &env);
	read_legacy(j, &env);
	for (size_t i = 0; i < j->found.len; i++)
		complete(&j->found.items[i], &env);
	free(steal_ptr(&j->found.by_port));	/* sorting makes it useless */
	if (j->found.len)
		qsort(j->found.items, j->found.len, sizeof(*j->found.items), port_compare);
	free(env.locals);
	j->took_ms = clock_mono_ms() - start_ms;
}

/* --- the loop's side ------------------------------------------------------ */

static_assert(sizeof(struct nat_port) == 3 * sizeof(struct port) + 2, "compared by memcmp()");

static void plan(struct ports_nat *n);

static void part_closed(void *arg)
{
	struct ports_nat *n = arg;
	void (*closed)(void *arg) = n->closed;
	void *closed_arg = n->closed_arg;

	if (--n->open_parts)
		return;
	nat_ports_done(&n->known);
	port_set_done(&n->listeners);
	pthread_mutex_destroy(&n->lock);
	free(n);
	if (closed)
		closed(closed_arg);
}

static void on_timer_closed(uv_handle_t *h)
{
	part_closed(h->data);
}

static void take_result(struct ports_nat *n, struct job *j)
{
	struct nat_ports *f = &j->found;
	bool same = f->len == n->known.len &&
		    (f->len == 0 ||
		     memcmp(f->items, n->known.items, f->len * sizeof(*f->items)) == 0);

	if (j->failed) {
		log_warn_limited("ports: %s, keeping what was known", j->err.msg);
		return;
	}
	if (f->full)
		log_warn_limited("ports: too many address translation rules, some are left out");
	if (same)
		return;
	pthread_mutex_lock(&n->lock);
	nat_ports_done(&n->known);
	n->known = *f;
	*f = (struct nat_ports){ 0 };
	pthread_mutex_unlock(&n->lock);
	if (n->changed)
		n->changed(n->arg);
}

static void end_job(struct job *j)
{
	struct ports_nat *n = j->owner;

	n->job = NULL;
	n->failures = j->failed ? n->failures + 1 : 0;
	n->legacy_there = j->legacy_there;
	n->next_allowed_ms = clock_mono_ms() +
			     MIN(READ_DUTY * j->took_ms, (uint64_t)READ_REST_MAX_MS);
	if (!n->closing)
		take_result(n, j);
	nat_ports_done(&j->found);
	free(j);
	if (n->closing)
		part_closed(n);
	else
		plan(n);
}

static void on_job_done(uv_work_t *work, int status)
{
	end_job(container_of(work, struct job, work));
}

static struct job *new_job(struct ports_nat *n)
{
	struct job *j = xnew(struct job);

	uv_timer_stop(&n->timer);
	n->wanted = false;
	j->owner = n;
	j->with_nft = nat_watch_has_nft(n->watch);
	n->job = j;
	return j;
}

static void start_job(struct ports_nat *n)
{
	uv_queue_work(&n->loop->uv, &new_job(n)->work, run_job, on_job_done);
}

/* Tables may change while they are read, and memory may be short for a moment. */
static void do_jobs_now(struct ports_nat *n)
{
	uint64_t end_ms = clock_mono_ms() + FIRST_READING_MS;

	for (;;) {
		struct job *j = new_job(n);

		run_job(&j->work);
		end_job(j);
		if (n->failures == 0 || clock_mono_ms() >= end_ms)
			return;
		usleep(NAT_SETTLE_MS * 1000);
	}
}

static void on_timer(uv_timer_t *timer)
{
	struct ports_nat *n = timer->data;

	if (!n->job)
		start_job(n);
}

/* UINT64_MAX: when nothing is wanted and no legacy table is there. */
static uint64_t next_reading_ms(const struct ports_nat *n)
{
	uint64_t ms = n->legacy_there ? NAT_LEGACY_MS : UINT64_MAX;

	if (n->wanted)
		return NAT_SETTLE_MS;
	if (n->failures > 0 && n->failures <= RETRIES)
		ms = MIN(ms, (uint64_t)NAT_SETTLE_MS << (n->failures - 1));
	return ms;
}

static void plan(struct ports_nat *n)
{
	uint64_t now_ms = clock_mono_ms(), wait_ms = next_reading_ms(n);

	if (n->closing || n->job || wait_ms == UINT64_MAX)
		return;
	if (now_ms < n->next_allowed_ms)
		wait_ms = MAX(wait_ms, n->next_allowed_ms - now_ms);
	uv_update_time(&n->loop->uv);
	uv_timer_start(&n->timer, on_timer, wait_ms, 0);
}

static void on_rules_changed(void *arg)
{
	struct ports_nat *n = arg;

	if (n->wanted)
		return;		/* the timer runs, or the job's end will start it */
	n->wanted = true;
	plan(n);
}

struct ports_nat *ports_nat_new(struct loop *loop, bool now, void (*changed)(void *arg),
				void *arg)
{
	struct ports_nat *n = xnew(struct ports_nat);

	n->loop = loop;
	pthread_mutex_init(&n->lock, NULL);
	uv_timer_init(&loop->uv, &n->timer);
	n->timer.data = n;
	/* Events first, the reading after: nothing falls between. */
	n->watch = nat_watch_new(loop, on_rules_changed, n);
	n->open_parts = 2;
	if (now)
		do_jobs_now(n);
	else
		start_job(n);
	n->changed = changed;
	n->arg = arg;
	return n;
}

void ports_nat_rescan(struct ports_nat *n)
{
	on_rules_changed(n);
}

void ports_nat_add(const struct ports_nat *n, struct port_set *ret)
{
	for (size_t i = 0; i < n->known.len; i++)
		port_set_add(ret, &n->known.items[i].port);
}

/* --- dialing -------------------------------------------------------------- */

/* The kernel rewrites what the guest itself sends before it looks for a socket. */
static bool reaches_sockets(const struct nat_port *p)
{
	return p->port.proto == IPPROTO_TCP && !p->output;
}

void ports_nat_note_listeners(struct ports_nat *n, const struct port_set *tcp)
{
	scoped_port_set struct port_set now = { 0 };
	uint8_t asked[65536 / 8] = { 0 };	/* a bit for each port */
	struct port_set before;

	if (n->known.len == 0)
		return;
	for (size_t i = 0; i < n->known.len; i++) {
		const struct nat_port *p = &n->known.items[i];

		asked[p->port.port / 8] |= (uint8_t)(reaches_sockets(p) << p->port.port % 8);
	}
	for (size_t i = 0; i < tcp->len; i++)
		if (asked[tcp->items[i].port / 8] >> tcp->items[i].port % 8 & 1)
			port_set_add(&now, &tcp->items[i]);
	port_set_seal(&now);
	pthread_mutex_lock(&n->lock);
	before = n->listeners;
	n->listeners = now;
	now = before;
	pthread_mutex_unlock(&n->lock);
}

static bool dial_matches(const union dial_addr *to, const struct port *p)
{
	static const uint8_t any[16];
	bool v4 = to->sa.sa_family == AF_INET;
	const void *addr = v4 ? (const void *)&to->in.sin_addr : &to->in6.sin6_addr;
	bool loopback = v4 ? to->in.sin_addr.s_addr == htonl(INADDR_LOOPBACK)
			   : IN6_IS_ADDR_LOOPBACK(&to->in6.sin6_addr);

	if (to->sa.sa_family != p->family || ntohs(v4 ? to->in.sin_port : to->in6.sin6_port) != p->port)
		return false;
	return memcmp(addr, p->addr, v4 ? 4 : 16) == 0 ||
	       (loopback && memcmp(any, p->addr, sizeof(any)) == 0);
}

/* On the address itself or on all; on :: is taken for IPv4, too: where it is for IPv6
 * only, IPv4 is refused at once. */
static bool has_listener(const struct ports_nat *n, const union dial_addr *to)
{
	static const uint8_t any[16];
	bool v4 = to->sa.sa_family == AF_INET;
	const void *addr = v4 ? (const void *)&to->in.sin_addr : &to->in6.sin6_addr;
	uint16_t port = ntohs(v4 ? to->in.sin_port : to->in6.sin6_port);

	for (size_t i = 0; i < n->listeners.len; i++) {
		const struct port *p = &n->listeners.items[i];
		bool on_all = memcmp(p->addr, any, sizeof(any)) == 0;

		if (p->port != port)
			continue;
		if (p->family == to->sa.sa_family ? on_all || memcmp(p->addr, addr, v4 ? 4 : 16) == 0
						  : on_all && v4)
			return true;
	}
	return false;
}

static void dial_add(struct dial *d, const struct port *p)
{
	union dial_addr *to = &d->addrs[d->len];

	if (p->port == 0 || d->len == DIAL_MAX)
		return;
	d->len++;
	*to = (union dial_addr){ 0 };
	if (p->family == AF_INET) {
		to->in.sin_family = AF_INET;
		to->in.sin_port = htons(p->port);
		memcpy(&to->in.sin_addr, p->addr, 4);
	} else {
		to->in6.sin6_family = AF_INET6;
		to->in6.sin6_port = htons(p->port);
		memcpy(&to->in6.sin6_addr, p->addr, 16);
	}
}

/* What leads to @to by rules; @ret_listens: there is a socket that rules leave to the guest
 * itself. */
static struct dial find(struct ports_nat *n, int proto, const union dial_addr *to, bool *ret_listens)
{
	struct dial more = { 0 };

	pthread_mutex_lock(&n->lock);
	for (size_t i = 0; i < n->known.len && more.len == 0; i++) {
		const struct nat_port *p = &n->known.items[i];

		if (p->port.proto != proto || !dial_matches(to, &p->port))
			continue;
		if (p->output)
			dial_add(&more, &p->via);
		if (!p->output || proto == IPPROTO_TCP)
			dial_add(&more, &p->target);
		*ret_listens = reaches_sockets(p) && has_listener(n, to);
	}
	pthread_mutex_unlock(&n->lock);
	return more;
}

void ports_nat_dial(struct ports_nat *n, int proto, struct dial *d)
{
	bool listens = false;
	struct dial more = find(n, proto, &d->addrs[0], &listens);

	if (more.len > 0 && !listens) {
		struct dial first = *d;

		*d = more;
		more = first;
	}
	for (unsigned i = 0; i < more.len && d->len < DIAL_MAX; i++)
		d->addrs[d->len++] = more.addrs[i];
}

void ports_nat_close(struct ports_nat *n, void (*closed)(void *arg), void *arg)
{
	assert(!n->closing);
	n->closing = true;
	n->closed = closed;
	n->closed_arg = arg;
	n->open_parts = 2 + !!n->job;
	uv_close((uv_handle_t *)&n->timer, on_timer_closed);
	nat_watch_close(n->watch, part_closed, n);
}
