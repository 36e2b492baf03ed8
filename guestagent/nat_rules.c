#include "guestagent/nat_rules.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

#define NONE UINT32_MAX

enum { PORT_SLOTS = 4 * NAT_PORTS_MAX };

struct chain {
	char *name;
	uint8_t hook;
	bool external;		/* Kubernetes: for what comes from outside */
	uint32_t first, last;	/* rules */
};

struct rule {
	uint32_t next;
	uint32_t op, ops;	/* the first, how many */
};

struct set {
	char *name;		/* NULL: none */
	uint32_t first, last;	/* elements */
};

struct elem {
	struct nat_elem e;
	uint32_t next;
};

struct nat_rules {
	uint8_t family;
	bool full;
	struct chain *chains;
	struct rule *rules;
	struct nat_op *ops;
	struct set *sets;
	struct elem *elems;
	uint32_t chains_len, rules_len, ops_len, sets_len, elems_len;
	uint32_t chains_cap, rules_cap, ops_cap, sets_cap, elems_cap;
	uint32_t *by_name;	/* hash table of chains, NONE: empty */
	uint32_t by_name_size;
	bool rule_open;
};

/* --- building ------------------------------------------------------------- */

struct nat_rules *nat_rules_new(uint8_t family)
{
	struct nat_rules *r = xnew(struct nat_rules);

	r->family = family;
	return r;
}

void nat_rules_free(struct nat_rules *r)
{
	if (!r)
		return;
	for (uint32_t i = 0; i < r->chains_len; i++)
		free(r->chains[i].name);
	for (uint32_t i = 0; i < r->sets_len; i++)
		free(r->sets[i].name);
	free(r->chains);
	free(r->rules);
	free(r->ops);
	free(r->sets);
	free(r->elems);
	free(r->by_name);
	free(r);
}

bool nat_rules_full(const struct nat_rules *r)
{
	return r->full;
}

/* One more item; false when @max is reached. */
static bool grow(struct nat_rules *r, void **items, uint32_t len, uint32_t *cap, size_t size,
		 uint32_t max)
{
	if (len == max) {
		r->full = true;
		return false;
	}
	if (len == *cap) {
		*cap = *cap ? MIN(2 * *cap, max) : 16;
		*items = xreallocarray(*items, *cap, size);
	}
	return true;
}

#define GROW(r, what, max)                                                                   \
	grow(r, (void **)&(r)->what, (r)->what##_len, &(r)->what##_cap, sizeof(*(r)->what), max)

static uint32_t hash(const char *s)	/* FNV-1a */
{
	uint32_t h = 2166136261u;

	while (*s)
		h = (h ^ (uint8_t)*s++) * 16777619u;
	return h;
}

/* Where @name is in the table, or belongs. */
static uint32_t *slot_of(struct nat_rules *r, const char *name)
{
	uint32_t i = hash(name) & (r->by_name_size - 1);

	while (r->by_name[i] != NONE && !streq(r->chains[r->by_name[i]].name, name))
		i = (i + 1) & (r->by_name_size - 1);
	return &r->by_name[i];
}

static void rehash(struct nat_rules *r)
{
	r->by_name_size = r->by_name_size ? 4 * r->by_name_size : 64;
	r->by_name = xreallocarray(r->by_name, r->by_name_size, sizeof(*r->by_name));
	memset(r->by_name, 0xff, r->by_name_size * sizeof(*r->by_name));
	for (uint32_t i = 0; i < r->chains_len; i++)
		*slot_of(r, r->chains[i].name) = i;
}

/* kube-proxy's names: iptables mode since 1.24 and before, nftables mode. */
static bool name_is_external(const char *name)
{
	static const char *const prefixes[] = { "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-", "external-" };

	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	return false;
}

uint32_t nat_rules_chain(struct nat_rules *r, const char *name)
{
	uint32_t *slot;

	if (2 * r->chains_len >= r->by_name_size)
		rehash(r);
	slot = slot_of(r, name);
	if (*slot != NONE)
		return *slot;
	if (!GROW(r, chains, NAT_CHAINS_MAX))
		return NAT_NO_CHAIN;
	r->chains[r->chains_len] = (struct chain){ .name = xstrdup(name),
						   .external = name_is_external(name),
						   .first = NONE,
						   .last = NONE };
	*slot = r->chains_len;
	return r->chains_len++;
}

void nat_rules_hook(struct nat_rules *r, uint32_t chain, enum nat_hook hook)
{
	if (chain < r->chains_len)
		r->chains[chain].hook = (uint8_t)hook;
}

void nat_rules_begin(struct nat_rules *r, uint32_t chain)
{
	struct chain *c;

	r->rule_open = chain < r->chains_len && GROW(r, rules, NAT_RULES_MAX);
	if (!r->rule_open)
		return;
	c = &r->chains[chain];
	r->rules[r->rules_len] = (struct rule){ .next = NONE, .op = r->ops_len };
	if (c->last == NONE)
		c->first = r->rules_len;
	else
		r->rules[c->last].next = r->rules_len;
	c->last = r->rules_len++;
}

void nat_rules_op(struct nat_rules *r, const struct nat_op *op)
{
	if (!r->rule_open)
		return;
	if (!GROW(r, ops, NAT_OPS_MAX)) {	/* half a rule says too much: none */
		r->rules[r->rules_len - 1].ops = 0;
		r->rule_open = false;
		return;
	}
	r->ops[r->ops_len++] = *op;
	r->rules[r->rules_len - 1].ops++;
}

uint32_t nat_rules_set(struct nat_rules *r, const char *name)
{
	for (uint32_t i = 0; name && i < r->sets_len; i++)
		if (r->sets[i].name && streq(r->sets[i].name, name))
			return i;
	if (!GROW(r, sets, NAT_SETS_MAX))
		return NAT_NO_SET;
	r->sets[r->sets_len] = (struct set){ .name = name ? xstrdup(name) : NULL,
					     .first = NONE,
					     .last = NONE };
	return r->sets_len++;
}

void nat_rules_elem(struct nat_rules *r, uint32_t set, const struct nat_elem *e)
{
	struct set *s;

	if (set >= r->sets_len || !GROW(r, elems, NAT_ELEMS_MAX))
		return;
	s = &r->sets[set];
	r->elems[r->elems_len] = (struct elem){ .e = *e, .next = NONE };
	if (s->last == NONE)
		s->first = r->elems_len;
	else
		r->elems[s->last].next = r->elems_len;
	s->last = r->elems_len++;
}

size_t nat_rules_sets(const struct nat_rules *r)
{
	return r->sets_len;
}

const char *nat_rules_set_name(const struct nat_rules *r, uint32_t set)
{
	return r->sets[set].name;
}

/* --- walking -------------------------------------------------------------- */

/* What the way so far has asked for. */
struct way {
	uint8_t family;		/* 0: either */
	uint8_t proto;		/* 0: any */
	bool ports_named, to_named, local, external;
	uint8_t hook;
	uint16_t low, high;	/* ports */
	struct nat_range to;
};

struct walk {
	const struct nat_rules *rules;
	const struct nat_env *env;
	struct nat_ports *ret;
	unsigned work;
	size_t found;		/* also what was known already */
};

struct place {		/* in a rule, in the depth of jumps */
	const struct nat_op *op, *end;
	unsigned depth;
};

static void walk_ops(struct walk *w, struct place at, struct way way);

/* Whatever can be repeated by jumps pays for it: 2^16 ways lead through 16 chains that
 * each jump twice, and each may end at a quarter million rules. */
static void spend(struct walk *w, size_t steps)
{
	w->work -= (unsigned)MIN(steps, (size_t)w->work);
}

static size_t addr_len(uint8_t family)
{
	return family == AF_INET ? 4 : 16;
}

static bool narrow_family(struct way *way, uint8_t family)
{
	if (way->family && way->family != family)
		return false;
	way->family = family;
	return true;
}

static bool narrow_proto(struct way *way, uint8_t proto)
{
	if (way->proto && way->proto != proto)
		return false;
	way->proto = proto;
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

static bool narrow_ports(struct way *way, uint16_t low, uint16_t high)
{
	way->low = way->ports_named ? MAX(way->low, low) : low;
	way->high = way->ports_named ? MIN(way->high, high) : high;
	way->ports_named = true;
	return way->low <= way->high;
}

static bool narrow_to(struct way *way, const struct nat_range *to)
{
	size_t len = addr_len(to->family);

	if (!narrow_family(way, to->family))
		return false;
	if (!way->to_named) {
		way->to = *to;
		way->to_named = true;
		return true;
	}
	if (memcmp(to->low, way->to.low, len) > 0)
		memcpy(way->to.low, to->low, len);
	if (memcmp(to->high, way->to.high, len) < 0)
		memcpy(way->to.high, to->high, len);
	return memcmp(way->to.low, way->to.high, len) <= 0;
}

/* The first of the guest's own addresses in the destination asked for. */
static const struct port *find_local(struct walk *w, const struct nat_range *to)
{
	size_t len = addr_len(to->family);

	spend(w, w->env->locals_len / NAT_WORK_LOCALS);
	for (size_t i = 0; i < w->env->locals_len; i++) {
		const struct port *p = &w->env->locals[i];

		if (p->family == to->family && memcmp(p->addr, to->low, len) >= 0 &&
		    memcmp(p->addr, to->high, len) <= 0)
			return p;
	}
	return NULL;
}

static void set_addr(struct port *p, uint8_t family, const uint8_t *addr, uint16_t port)
{
	p->family = family;
	p->port = port;
	memset(p->addr, 0, sizeof(p->addr));
	memcpy(p->addr, addr, addr_len(family));
}

/* Where @p is in the table, or belongs. Ports are what differs. */
static uint16_t *port_slot(struct walk *w, const struct port *p)
{
	struct nat_ports *ret = w->ret;
	uint32_t i = (p->port * 2u + (p->proto == IPPROTO_UDP)) % PORT_SLOTS;

	if (!ret->by_port)
		ret->by_port = xcalloc(PORT_SLOTS, sizeof(*ret->by_port));
	while (ret->by_port[i] &&
	       memcmp(&ret->items[ret->by_port[i] - 1].port, p, sizeof(*p)) != 0) {
		i = (i + 1) % PORT_SLOTS;
		spend(w, 1);
	}
	return &ret->by_port[i];
}

static void add_port(struct walk *w, const struct nat_port *port)
{
	struct nat_ports *ret = w->ret;
	uint16_t *slot = port_slot(w, &port->port);

	spend(w, 1);
	if (*slot) {
		struct nat_port *known = &ret->items[*slot - 1];

		if (port->via.port == 0)	/* published everywhere after all */
			known->via.port = 0;
		known->output |= port->output;
		return;
	}
	if (ret->len == NAT_PORTS_MAX) {
		ret->full = true;
		return;
	}
	if (ret->len == ret->cap) {
		ret->cap = ret->cap ? 2 * ret->cap : 16;
		ret->items = xreallocarray(ret->items, ret->cap, sizeof(*ret->items));
	}
	ret->items[ret->len++] = *port;
	*slot = (uint16_t)ret->len;
}

/* Each port of the way, for one family and protocol. */
static void publish(struct walk *w, const struct way *way, const struct nat_op *op, uint8_t family,
		    uint8_t proto)
{
	const struct port *local = way->to_named ? find_local(w, &way->to) : NULL;
	struct nat_port p = { .port = { .proto = proto, .family = family },
			      .output = way->hook == NAT_HOOK_OUTPUT };
	uint8_t any[16] = { 0 };

	for (unsigned n = way->low; n <= way->high && w->work > 0; n++) {
		set_addr(&p.port, family, local && !way->external ? local->addr : any, (uint16_t)n);
		if (way->external && way->to_named)
			set_addr(&p.via, family, local ? local->addr : way->to.low, (uint16_t)n);
		if (op->dnat.family == family)
			set_addr(&p.target, family, op->dnat.addr,
				 op->dnat.port ? op->dnat.port : (uint16_t)n);
		else if (!op->dnat.family && op->dnat.port)	/* REDIRECT */
			set_addr(&p.target, family, any, op->dnat.port);
		p.via.proto = p.target.proto = proto;
		add_port(w, &p);
	}
}

static bool for_this_guest(struct walk *w, const struct way *way)
{
	if (way->external)
		return true;
	if (way->to_named)
		return find_local(w, &way->to) != NULL;
	return way->local || way->hook == NAT_HOOK_PREROUTING;
}

static bool do_dnat(struct walk *w, struct place at, struct way *way)
{
	static const uint8_t families[] = { AF_INET, AF_INET6 };
	static const uint8_t protos[] = { IPPROTO_TCP, IPPROTO_UDP };

	if (at.op->dnat.rule_family && !narrow_family(way, at.op->dnat.rule_family))
		return false;
	if (!way->ports_named || way->low == 0 || way->high - way->low >= NAT_RANGE_MAX ||
	    !for_this_guest(w, way))
		return false;
	for (size_t f = 0; f < ARRAY_SIZE(families); f++)
		for (size_t p = 0; p < ARRAY_SIZE(protos); p++)
			if ((!way->family || way->family == families[f]) &&
			    (!way->proto || way->proto == protos[p]))
				publish(w, way, at.op, families[f], protos[p]);
	w->found++;
	return false;
}

static void walk_chain(struct walk *w, uint32_t id, struct way way, unsigned depth)
{
	const struct nat_rules *r = w->rules;
	bool exact = way.proto && way.ports_named && way.low == way.high;
	size_t found = w->found;

	for (uint32_t i = r->chains[id].first; i != NONE && w->work > 0; i = r->rules[i].next) {
		const struct nat_op *ops;

		spend(w, 1);
		if (r->rules[i].ops == 0)
			continue;
		ops = r->ops + r->rules[i].op;
		walk_ops(w, (struct place){ ops, ops + r->rules[i].ops, depth }, way);
		/* Many endpoints behind one port: the first is enough. */
		if (exact && w->found > found)
			return;
	}
}

static void jump(struct walk *w, uint32_t chain, struct way way, unsigned depth)
{
	if (chain >= w->rules->chains_len || depth == NAT_DEPTH_MAX)
		return;
	way.external |= w->rules->chains[chain].external;
	if (way.to_named && !for_this_guest(w, &way))
		return;		/* thousands of cluster addresses end here */
	walk_chain(w, chain, way, depth + 1);
}

/* Narrows by one element of a set; false: it cannot match. */
static bool narrow_elem(struct way *way, const struct nat_elem *e, const uint8_t *words)
{
	for (unsigned i = 0; i < NAT_KEY_WORDS; i++) {
		const uint8_t *low = e->low + 4 * i, *high = e->high + 4 * i;
		struct nat_range to = { .family = AF_INET };

		if (words[i] == NAT_WORD_PROTO && low[0] == high[0] && !narrow_proto(way, low[0]))
			return false;
		if (words[i] == NAT_WORD_DPORT &&
		    !narrow_ports(way, (uint16_t)(low[0] << 8 | low[1]),
				  (uint16_t)(high[0] << 8 | high[1])))
			return false;
		if (words[i] != NAT_WORD_TO)
			continue;
		if (i + 3 < NAT_KEY_WORDS && words[i + 3] == NAT_WORD_TO_3)
			to.family = AF_INET6;
		memcpy(to.low, low, addr_len(to.family));
		memcpy(to.high, high, addr_len(to.family));
		if (!narrow_to(way, &to))
			return false;
	}
	return true;
}

static bool knows_a_word(const uint8_t *words)
{
	for (unsigned i = 0; i < NAT_KEY_WORDS; i++)
		if (words[i] != NAT_WORD_UNKNOWN)
			return true;
	return false;
}

/* The rest of the rule, or the element's chain, once for each element that can
 * match. */
static bool do_lookup(struct walk *w, struct place at, struct way *way)
{
	const struct nat_rules *r = w->rules;
	const struct nat_op *op = at.op++;

	if (op->lookup.set >= r->sets_len)
		return true;
	if (!op->lookup.verdict && !knows_a_word(op->lookup.words))
		return true;
	for (uint32_t i = r->sets[op->lookup.set].first; i != NONE && w->work > 0;
	     i = r->elems[i].next) {
		const struct nat_elem *e = &r->elems[i].e;
		struct way next = *way;

		spend(w, 1);
		if (!narrow_elem(&next, e, op->lookup.words))
			continue;
		if (op->lookup.verdict)
			jump(w, e->chain, next, at.depth);
		else
			walk_ops(w, at, next);
	}
	return op->lookup.verdict;
}

static bool do_family(struct walk *w, struct place at, struct way *way)
{
	return narrow_family(way, at.op->family);
}

static bool do_proto(struct walk *w, struct place at, struct way *way)
{
	return narrow_proto(way, at.op->proto);
}

static bool do_ports(struct walk *w, struct place at, struct way *way)
{
	return narrow_ports(way, at.op->ports.low, at.op->ports.high);
}

static bool do_to(struct walk *w, struct place at, struct way *way)
{
	return narrow_to(way, &at.op->to);
}

static bool do_local(struct walk *w, struct place at, struct way *way)
{
	way->local = true;
	return true;
}

static bool do_from(struct walk *w, struct place at, struct way *way)
{
	return false;
}

static bool do_in(struct walk *w, struct place at, struct way *way)
{
	const char *uplink = w->env->uplink;

	return !*uplink || strncmp(at.op->in.name, uplink, MIN(at.op->in.len, IFNAMSIZ)) == 0;
}

static bool do_jump(struct walk *w, struct place at, struct way *way)
{
	jump(w, at.op->chain, *way, at.depth);
	return true;
}

/* False: the rule does not apply, or went its way. */
static bool (*const does[NAT_OP_KINDS])(struct walk *w, struct place at, struct way *way) = {
	[NAT_OP_FAMILY] = do_family, [NAT_OP_PROTO] = do_proto,	  [NAT_OP_PORTS] = do_ports,
	[NAT_OP_TO] = do_to,	     [NAT_OP_LOCAL] = do_local,	  [NAT_OP_FROM] = do_from,
	[NAT_OP_IN] = do_in,	     [NAT_OP_LOOKUP] = do_lookup, [NAT_OP_JUMP] = do_jump,
	[NAT_OP_DNAT] = do_dnat,
};

static void walk_ops(struct walk *w, struct place at, struct way way)
{
	for (; at.op < at.end && w->work > 0; at.op++) {
		spend(w, 1);
		assert(at.op->kind < NAT_OP_KINDS);
		if (!does[at.op->kind](w, at, &way))
			return;
	}
}

void nat_ports_done(struct nat_ports *p)
{
	free(p->items);
	free(p->by_port);
	*p = (struct nat_ports){ 0 };
}

void nat_rules_walk(const struct nat_rules *r, const struct nat_env *env, struct nat_ports *ret)
{
	struct walk w = { .rules = r, .env = env, .ret = ret, .work = NAT_WORK_MAX - ret->work };

	for (uint32_t i = 0; i < r->chains_len; i++)
		if (r->chains[i].hook != NAT_HOOK_NONE)
			walk_chain(&w, i,
				   (struct way){ .family = r->family, .hook = r->chains[i].hook }, 0);
	ret->work = NAT_WORK_MAX - w.work;
	ret->full |= w.work == 0;
}
