#include "guestagent/ports.h"

#include "guestagent/ports_bpf.h"
#include "guestagent/ports_destroy.h"
#include "guestagent/ports_diag.h"
#include "guestagent/ports_nat.h"
#include "guestagent/ports_udp_keep.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	RESCAN_MS = 30 * 1000,
	POLL_FAST_MS = 100,
	POLL_SLOW_MS = 1000,
	POLL_FAST_FOR_MS = 3000,	/* after the last change */
	DUMP_DUTY = 8,			/* rest this many times what a dump took */
	KICK_DUTY = 2,			/* … when a kick asked for it: somebody waits */
	KICK_AHEAD_MS = 40,		/* of rest that a kick need not wait for */
	SETTLE_SOON = 2,		/* looks of settle_ms that come right after a kick */
	DUMP_REST_MAX_MS = 1000,
};

/* When to look again after a kick, in ms; the last one ends the series. SETTLE_SOON of
 * them are left out when the look at the kick itself found something. */
static const uint16_t settle_ms[] = { 0, 1, 4, 15, 100, 1000 };

struct ports {
	ports_changed_fn changed;
	void *arg;
	struct loop *loop;
	struct ports_diag *diag;
	struct ports_bpf *bpf;		/* NULL: polling only */
	struct ports_destroy *destroy;	/* NULL: not needed, or not to be had */
	struct ports_nat *nat;		/* NULL: turned off */
	struct port_set current;	/* both of these and NAT's, sealed */
	struct port_set tcp, udp;	/* as of the last look at each, unsealed */
	struct udp_servers udp_servers;
	struct udp_keep *udp_keep;	/* NULL: not wanted */
	struct udp_range range;
	uv_timer_t timer;		/* the next look, whatever it is for */
	unsigned settle;		/* next index into settle_ms; its size: settled */
	unsigned settling;		/* PORTS_*: what that series is about */
	unsigned kicked;		/* PORTS_*: by a kick since the last look */
	bool udp_by_proc;		/* where the last look at UDP came from */
	bool closing;
	uint64_t rested_at_ms;		/* the duty limit: all dumps are paid for then */
	uint64_t last_change_ms;
	uint64_t last_rescan_ms;
	uint64_t poll_ms;
	uint64_t udp_due_ms;		/* when a UDP socket comes of age, 0: none */
	char bpf_problem[ERROR_MSG_SIZE];
	unsigned open_parts;		/* closes still to come */
	void (*closed)(void *arg);
	void *closed_arg;
};

static enum udp_bind ask_bpf(void *arg, uint64_t cookie)
{
	return ports_bpf_udp_bind(arg, cookie);
}

static int dump(struct ports *p, int proto, struct sock_list *ret, struct error *err)
{
	int rc = ports_diag_dump(p->diag, proto, ret, err);

	if (rc == 0 && ret->full)
		log_warn_limited("ports: more than %d sockets serve, the rest is left out",
				 SOCK_LIST_MAX);
	return rc;
}

static int look_at_tcp(struct ports *p, struct error *err)
{
	scoped_sock_list struct sock_list socks = { 0 };
	int rc = dump(p, IPPROTO_TCP, &socks, err);

	if (rc < 0)
		return rc;
	p->tcp.len = 0;
	for (size_t i = 0; i < socks.len; i++)
		port_set_add(&p->tcp, &socks.items[i].port);
	return 0;
}

/* BPF is asked about sockets by their cookies, which /proc does not tell. */
static bool bpf_knows_udp(const struct ports *p)
{
	return p->bpf && ports_bpf_has_udp(p->bpf) && !p->udp_by_proc;
}

/* At the first look, and when sockets have got other names: all is as at the first. */
static void note_udp_source(struct ports *p)
{
	bool by_proc = ports_diag_by_proc(p->diag);

	if (p->udp_servers.started && by_proc == p->udp_by_proc)
		return;
	p->udp_by_proc = by_proc;
	udp_servers_done(&p->udp_servers);
	if (p->udp_keep)
		udp_keep_load(p->udp_keep, by_proc);
}

static int look_at_udp(struct ports *p, struct error *err)
{
	scoped_sock_list struct sock_list socks = { 0 };
	int rc = dump(p, IPPROTO_UDP, &socks, err);
	uint64_t now_ms = clock_mono_ms(), next_ms;

	if (rc < 0)
		return rc;
	note_udp_source(p);
	p->udp.len = 0;
	next_ms = udp_servers_judge(&p->udp_servers, &socks, now_ms, p->range,
				    bpf_knows_udp(p) ? ask_bpf : NULL, p->bpf, &p->udp);
	p->udp_due_ms = next_ms ? now_ms + next_ms : 0;
	if (p->udp_keep)
		udp_keep_note(p->udp_keep);
	return 0;
}

static int look(struct ports *p, unsigned protos, struct error *err)
{
	int rc = protos & PORTS_TCP ? look_at_tcp(p, err) : 0;

	return rc == 0 && protos & PORTS_UDP ? look_at_udp(p, err) : rc;
}

/* What serves into @ret, as it was at the last look at each. */
static void put_together(struct ports *p, struct port_set *ret)
{
	port_set_add_all(ret, &p->tcp);
	port_set_add_all(ret, &p->udp);
	if (p->nat) {
		ports_nat_note_listeners(p->nat, &p->tcp);
		ports_nat_add(p->nat, ret);
	}
	if (!port_set_seal(ret))
		log_warn_limited("ports: more than %d ports serve, the rest is left out",
				 PORT_SET_MAX);
}

/* After a look that failed: with the last one of a series, a second later. */
static void look_again(struct ports *p, unsigned protos)
{
	p->settling |= protos;
	if (protos & PORTS_UDP)
		p->udp_due_ms = 0;
	p->settle = MIN(p->settle, (unsigned)ARRAY_SIZE(settle_ms) - 1);
}

/* True: something changed. @ret_took_ns: the look's CPU time. */
static bool look_and_tell(struct ports *p, unsigned protos, uint64_t *ret_took_ns)
{
	uint64_t start_ns = clock_thread_cpu_ns();
	struct error err = ERROR_NONE;
	scoped_port_set struct port_set now = { 0 }, added = { 0 }, removed = { 0 };
	int rc = look(p, protos, &err);

	if (rc == 0)
		put_together(p, &now);
	*ret_took_ns = clock_thread_cpu_ns() - start_ns;
	if (rc < 0) {
		log_warn_limited("ports: %s, keeping the last list", err.msg);
		look_again(p, protos);
		return false;
	}
	port_set_diff(&p->current, &now, &added, &removed);
	if (added.len == 0 && removed.len == 0)
		return false;
	port_set_done(&p->current);
	p->current = now;
	now = (struct port_set){ 0 };
	p->last_change_ms = clock_mono_ms();
	p->poll_ms = POLL_FAST_MS;
	p->changed(p->arg, &added, &removed);
	return true;
}

static bool needs_polling(const struct ports *p)
{
	return !p->bpf || !ports_bpf_has_tcp(p->bpf) || !bpf_knows_udp(p);
}

static uint64_t left_ms(uint64_t due_ms, uint64_t now_ms)
{
	return due_ms > now_ms ? due_ms - now_ms : 0;
}

static uint64_t next_poll_ms(struct ports *p, uint64_t now_ms)
{
	if (now_ms - p->last_change_ms > POLL_FAST_FOR_MS)
		p->poll_ms = MIN(2 * p->poll_ms, (uint64_t)POLL_SLOW_MS);
	return p->poll_ms;
}

static void on_timer(uv_timer_t *timer);

/* How long the duty limit still forbids to look. Only who keeps changing ports is
 * slowed down; looks that nobody waits for give way to those. */
static uint64_t rest_ms(const struct ports *p, uint64_t now_ms)
{
	uint64_t ahead_ms = p->kicked ? KICK_AHEAD_MS : 0;

	return left_ms(p->rested_at_ms, now_ms + ahead_ms);
}

static void pay(struct ports *p, uint64_t took_ns, bool kicked)
{
	uint64_t now_ms = clock_mono_ms();
	uint64_t due_ms = ((kicked ? KICK_DUTY : DUMP_DUTY) * took_ns + 999999) / 1000000;

	p->rested_at_ms = MAX(p->rested_at_ms, now_ms) + due_ms;
	p->rested_at_ms = MIN(p->rested_at_ms, now_ms + KICK_AHEAD_MS + DUMP_REST_MAX_MS);
}

/* The earliest of everything that asks for a look, but not before the duty
 * limit allows. */
static void plan(struct ports *p)
{
	uint64_t now_ms = clock_mono_ms();
	uint64_t wait_ms = RESCAN_MS - MIN(now_ms - p->last_rescan_ms, (uint64_t)RESCAN_MS);

	if (p->closing)
		return;
	if (p->kicked)
		wait_ms = 0;
	else if (p->settle < ARRAY_SIZE(settle_ms))
		wait_ms = MIN(wait_ms, (uint64_t)settle_ms[p->settle]);
	if (p->udp_due_ms)
		wait_ms = MIN(wait_ms, left_ms(p->udp_due_ms, now_ms));
	if (needs_polling(p))
		wait_ms = MIN(wait_ms, next_poll_ms(p, now_ms));
	wait_ms = MAX(wait_ms, rest_ms(p, now_ms));
	uv_update_time(&p->loop->uv);
	uv_timer_start(&p->timer, on_timer, wait_ms, 0);
}

/* What this turn looks at, and the series of looks that it begins or goes on with. */
static unsigned choose(struct ports *p, uint64_t now_ms)
{
	bool running = p->settle < ARRAY_SIZE(settle_ms);
	unsigned protos = p->kicked;

	/* a kick takes the place of the look that another one would have right now */
	if (running && (!p->kicked || p->settle < SETTLE_SOON))
		protos |= p->settling;
	if (p->kicked) {
		p->settling = p->kicked | (running ? p->settling : 0);
		p->settle = 0;
	} else if (running) {
		p->settle++;
	}
	p->kicked = 0;
	if (p->udp_due_ms && now_ms >= p->udp_due_ms)
		protos |= PORTS_UDP;
	return protos && !needs_polling(p) ? protos : PORTS_ALL;
}

static void rescan(struct ports *p, uint64_t now_ms)
{
	p->last_rescan_ms = now_ms;
	p->range = udp_range_read();
	ports_diag_retry(p->diag);
	if (p->nat)
		ports_nat_rescan(p->nat);
}

static void turn(struct ports *p)
{
	uint64_t start_ms = clock_mono_ms(), took_ns;
	bool kicked = p->kicked;
	unsigned protos = choose(p, start_ms);

	if (p->last_rescan_ms == 0 || start_ms - p->last_rescan_ms >= RESCAN_MS) {
		protos = PORTS_ALL;
		rescan(p, start_ms);
	}
	if (look_and_tell(p, protos, &took_ns) && kicked)
		p->settle = SETTLE_SOON;
	pay(p, took_ns, kicked);
	plan(p);
}

static void on_timer(uv_timer_t *timer)
{
	turn(timer->data);
}

static void on_kick(void *arg, unsigned protos)
{
	struct ports *p = arg;
	bool planned = p->kicked;

	p->kicked |= protos;
	if (p->closing || planned)
		return;
	if (rest_ms(p, clock_mono_ms()) == 0)
		turn(p);
	else
		plan(p);
}

/* From who says nothing about protocols; NAT's part is made anew with each look. */
static void on_any_kick(void *arg)
{
	on_kick(arg, PORTS_ALL);
}

static void part_closed(void *arg)
{
	struct ports *p = arg;
	void (*closed)(void *arg) = p->closed;
	void *closed_arg = p->closed_arg;

	if (--p->open_parts)
		return;
	ports_diag_free(p->diag);
	port_set_done(&p->current);
	port_set_done(&p->tcp);
	port_set_done(&p->udp);
	udp_servers_done(&p->udp_servers);
	free(p);
	if (closed)
		closed(closed_arg);
}

static void on_timer_closed(uv_handle_t *h)
{
	part_closed(h->data);
}

static int start_bpf(struct ports *p, const struct ports_options *opts, struct error *err)
{
	unsigned wanted = opts->no_bpf_udp ? PORTS_TCP : PORTS_ALL;
	int rc = opts->no_bpf ? error_set(err, -ECANCELED, "bpf: turned off")
			      : ports_bpf_new(p->loop, wanted, on_kick, p, &p->bpf, err);

	if (rc == 0)
		p->open_parts++;
	return rc;
}

static void start_destroy(struct ports *p, const struct ports_options *opts)
{
	bool tcp = !p->bpf || !ports_bpf_has_tcp(p->bpf);
	bool udp = !p->bpf || !ports_bpf_has_udp(p->bpf);
	struct error err = ERROR_NONE;

	if (opts->no_diag || (!tcp && !udp))
		return;
	if (ports_destroy_new(p->loop, tcp, udp, on_any_kick, p, &p->destroy, &err) == 0)
		p->open_parts++;
	else
		log_debug("ports: closes are polled for, too: %s", err.msg);
}

int ports_new(struct loop *loop, const struct ports_options *opts, ports_changed_fn changed,
	      void *arg, struct ports **ret, struct error *err)
{
	struct ports *p = xnew(struct ports);
	struct error bpf_err = ERROR_NONE;
	int rc;

	p->loop = loop;
	p->changed = changed;
	p->arg = arg;
	p->diag = ports_diag_new();
	p->range = udp_range_read();
	p->poll_ms = POLL_FAST_MS;
	p->last_change_ms = p->last_rescan_ms = clock_mono_ms();
	uv_timer_init(&loop->uv, &p->timer);
	p->timer.data = p;
	p->open_parts = 1;
	if (opts->no_diag)
		ports_diag_use_proc(p->diag);
	/* Events first, the dump after: nothing falls between. */
	start_bpf(p, opts, &bpf_err);
	memcpy(p->bpf_problem, bpf_err.msg, sizeof(p->bpf_problem));
	start_destroy(p, opts);
	if (opts->udp_keep) {
		p->udp_keep = udp_keep_new(loop, opts->udp_keep, &p->udp_servers);
		p->open_parts++;
	}
	rc = look(p, PORTS_ALL, err);
	if (rc < 0) {
		ports_close(p, NULL, NULL);
		return rc;
	}
	p->settle = ARRAY_SIZE(settle_ms);
	if (!opts->no_nat) {
		bool now = p->udp_keep && udp_keep_found(p->udp_keep);

		p->nat = ports_nat_new(loop, now, on_any_kick, p);
		p->open_parts++;
	}
	put_together(p, &p->current);
	plan(p);
	*ret = p;
	return 0;
}

const struct port_set *ports_current(const struct ports *p)
{
	return &p->current;
}

const char *ports_mode(const struct ports *p)
{
	if (!p->bpf)
		return "polling";
	if (!bpf_knows_udp(p))
		return ports_bpf_has_tcp(p->bpf) ? "events (tcp), polling" : "polling";
	return ports_bpf_has_tcp(p->bpf) ? "events (tcp, udp)" : "events (udp), polling";
}

const char *ports_bpf_problem(const struct ports *p)
{
	return p->bpf_problem;
}

void ports_rescan(struct ports *p)
{
	p->last_rescan_ms = 0;
	on_any_kick(p);
}

void ports_dial(struct ports *p, int proto, struct dial *d)
{
	if (p->nat)
		ports_nat_dial(p->nat, proto, d);
}

void ports_close(struct ports *p, void (*closed)(void *arg), void *arg)
{
	if (p->closing)
		return;
	p->closing = true;
	p->closed = closed;
	p->closed_arg = arg;
	uv_close((uv_handle_t *)&p->timer, on_timer_closed);
	if (p->bpf)
		ports_bpf_close(p->bpf, part_closed, p);
	if (p->destroy)
		ports_destroy_close(p->destroy, part_closed, p);
	if (p->nat)
		ports_nat_close(p->nat, part_closed, p);
	if (p->udp_keep)
		udp_keep_close(p->udp_keep, part_closed, p);
}
