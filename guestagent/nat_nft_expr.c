/* The pure half of nat_nft.h: rules, by what their expressions leave in the
 * registers, and the elements of sets. */
#include "guestagent/nat_nft.h"

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "guestagent/nat_nft_attr.h"
#include "guestagent/nat_xt.h"
#include "lib/base/mem.h"

enum { REGISTERS = 16 };	/* of 32 bits; four of the old ones of 128 */

enum reg_what {
	REG_UNKNOWN,
	REG_IMMEDIATE,
	REG_PROTO,
	REG_FAMILY,
	REG_DPORT,
	REG_TO,
	REG_FROM,
	REG_IN,
	REG_TO_TYPE,
};

struct reg {
	uint8_t what;
	uint8_t word;		/* the how manieth of an address or name */
	uint8_t mask[4];	/* of REG_TO and REG_FROM; bytes of REG_IMMEDIATE */
	uint8_t family;		/* of REG_TO */
};

struct decoder {
	struct nat_rules *rules;
	uint8_t family;
	struct reg regs[REGISTERS];
};

/* Index of a register's first 32 bits; REGISTERS: no such. */
static unsigned reg_index(const struct attr *a)
{
	uint32_t n = attr_be32(a);

	if (n >= NFT_REG_1 && n <= NFT_REG_4)
		return 4 * (n - NFT_REG_1);
	if (n >= NFT_REG32_00 && n < NFT_REG32_00 + REGISTERS)
		return n - NFT_REG32_00;
	return REGISTERS;
}

/* @len bytes from register @at on hold @what, all bits of it. */
static void reg_set(struct decoder *d, unsigned at, size_t len, enum reg_what what, uint8_t family)
{
	for (unsigned word = 0; at < REGISTERS && 4 * word < len; word++, at++) {
		d->regs[at] = (struct reg){ .what = (uint8_t)what, .word = (uint8_t)word,
					    .family = family };
		memset(d->regs[at].mask, 0xff, MIN(len - 4 * word, (size_t)4));
	}
}

static void decode_meta(struct decoder *d, const struct attr *a)
{
	static const struct {
		uint32_t key;
		enum reg_what what;
		size_t len;
	} keys[] = {
		{ NFT_META_L4PROTO, REG_PROTO, 4 },
		{ NFT_META_NFPROTO, REG_FAMILY, 4 },
		{ NFT_META_IIFNAME, REG_IN, IFNAMSIZ },
	};
	unsigned at = reg_index(&a[NFTA_META_DREG]);

	reg_set(d, at, 4, REG_UNKNOWN, 0);
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (attr_be32(&a[NFTA_META_KEY]) == keys[i].key)
			reg_set(d, at, keys[i].len, keys[i].what, 0);
}

/* Where things lie in IPv4 (RFC 791), IPv6 (RFC 8200), TCP and UDP. */
static void decode_payload(struct decoder *d, const struct attr *a)
{
	static const struct {
		uint32_t base;
		uint8_t family;		/* 0: either */
		uint32_t offset;
		uint32_t max;
		enum reg_what what;
	} fields[] = {
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET, 9, 1, REG_PROTO },
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET, 12, 4, REG_FROM },
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET, 16, 4, REG_TO },
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET6, 6, 1, REG_PROTO },
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET6, 8, 16, REG_FROM },
		{ NFT_PAYLOAD_NETWORK_HEADER, AF_INET6, 24, 16, REG_TO },
		{ NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, 2, REG_DPORT },
	};
	unsigned at = reg_index(&a[NFTA_PAYLOAD_DREG]);
	uint32_t base = attr_be32(&a[NFTA_PAYLOAD_BASE]), len = attr_be32(&a[NFTA_PAYLOAD_LEN]);
	uint32_t offset = attr_be32(&a[NFTA_PAYLOAD_OFFSET]);

	reg_set(d, at, MIN(len, 64u), REG_UNKNOWN, 0);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (fields[i].base == base && fields[i].offset == offset && len <= fields[i].max &&
		    (!fields[i].family || fields[i].family == d->family))
			reg_set(d, at, len, fields[i].what, fields[i].family);
}

/* The family of a table inet is known once the rule asked for it. */
static void decode_bitwise(struct decoder *d, const struct attr *a)
{
	unsigned from = reg_index(&a[NFTA_BITWISE_SREG]), to = reg_index(&a[NFTA_BITWISE_DREG]);
	struct attr mask = attr_nested(&a[NFTA_BITWISE_MASK], NFTA_DATA_VALUE);
	uint32_t len = MIN(attr_be32(&a[NFTA_BITWISE_LEN]), 64u);
	bool known = mask.len >= len;

	for (unsigned i = 0; from < REGISTERS && to < REGISTERS && 4 * i < len; i++, from++, to++) {
		struct reg reg = d->regs[from];

		if (!known || (reg.what != REG_TO && reg.what != REG_FROM))
			reg = (struct reg){ 0 };
		for (unsigned b = 0; known && b < 4 && 4 * i + b < len; b++)
			reg.mask[b] &= mask.data[4 * i + b];
		d->regs[to] = reg;
	}
}

static void decode_immediate(struct decoder *d, const struct attr *a)
{
	struct attr data[NFTA_DATA_MAX + 1];
	unsigned at = reg_index(&a[NFTA_IMMEDIATE_DREG]);
	struct nat_op op = { .kind = NAT_OP_JUMP };

	attrs_read(&a[NFTA_IMMEDIATE_DATA], data, NFTA_DATA_MAX);
	if (data[NFTA_DATA_VERDICT].data) {
		op.chain = nat_nft_verdict(d->rules, &data[NFTA_DATA_VERDICT]);
		if (op.chain != NAT_NO_CHAIN)
			nat_rules_op(d->rules, &op);
		return;
	}
	for (size_t i = 0; at < REGISTERS && i < data[NFTA_DATA_VALUE].len; i += 4, at++) {
		d->regs[at] = (struct reg){ .what = REG_IMMEDIATE };
		memcpy(d->regs[at].mask, data[NFTA_DATA_VALUE].data + i,
		       MIN(data[NFTA_DATA_VALUE].len - i, (size_t)4));
	}
}

/* --- conditions ----------------------------------------------------------- */

static void compare_to(struct decoder *d, unsigned at, const struct attr *value)
{
	struct nat_op op = { .kind = NAT_OP_TO, .to = { .family = d->regs[at].family } };
	size_t len = op.to.family == AF_INET ? 4 : 16;

	memset(op.to.high, 0xff, len);
	for (size_t i = 0; i < MIN(len, value->len) && at + i / 4 < REGISTERS; i++) {
		const struct reg *reg = &d->regs[at + i / 4];
		uint8_t mask = reg->mask[i % 4];

		if (reg->what != REG_TO || reg->word != i / 4)
			return;
		op.to.low[i] = value->data[i] & mask;
		op.to.high[i] = (uint8_t)(value->data[i] | ~mask);
	}
	nat_rules_op(d->rules, &op);
}

static void compare_ports(struct decoder *d, uint32_t how, const struct attr *value)
{
	struct nat_op op = { .kind = NAT_OP_PORTS, .ports = { .low = 0, .high = 65535 } };
	unsigned v;

	if (value->len < 2)
		return;
	v = (unsigned)value->data[0] << 8 | value->data[1];
	if (how == NFT_CMP_EQ || how == NFT_CMP_GTE || how == NFT_CMP_GT)
		op.ports.low = (uint16_t)MIN(v + (how == NFT_CMP_GT), 65535u);
	if (how == NFT_CMP_EQ || how == NFT_CMP_LTE || how == NFT_CMP_LT)
		op.ports.high = (uint16_t)(v - (how == NFT_CMP_LT && v > 0));
	nat_rules_op(d->rules, &op);
}

static void compare_in(struct decoder *d, const struct attr *value)
{
	struct nat_op op = { .kind = NAT_OP_IN };

	op.in.len = (uint8_t)MIN(value->len, sizeof(op.in.name));
	memcpy(op.in.name, value->data, op.in.len);
	nat_rules_op(d->rules, &op);
}

static void compare_family(struct decoder *d, const struct attr *value)
{
	struct nat_op op = { .kind = NAT_OP_FAMILY };

	op.family = value->data[0] == NFPROTO_IPV4 ? AF_INET : AF_INET6;
	d->family = op.family;
	nat_rules_op(d->rules, &op);
}

static void compare_from(struct decoder *d, unsigned at)
{
	static const uint8_t none[4];

	if (memcmp(d->regs[at].mask, none, sizeof(none)) != 0)
		nat_rules_op(d->rules, &(struct nat_op){ .kind = NAT_OP_FROM });
}

static void compare(struct decoder *d, unsigned at, uint32_t how, const struct attr *value)
{
	uint32_t type;

	if (at >= REGISTERS || value->len == 0)
		return;
	if (d->regs[at].what == REG_DPORT && how != NFT_CMP_NEQ)
		compare_ports(d, how, value);
	if (how != NFT_CMP_EQ)
		return;
	switch (d->regs[at].what) {
	case REG_PROTO:
		nat_rules_op(d->rules,
			     &(struct nat_op){ .kind = NAT_OP_PROTO, .proto = value->data[0] });
		break;
	case REG_FAMILY:
		compare_family(d, value);
		break;
	case REG_TO:
		compare_to(d, at, value);
		break;
	case REG_FROM:
		compare_from(d, at);
		break;
	case REG_IN:
		compare_in(d, value);
		break;
	case REG_TO_TYPE:	/* in the machine's byte order */
		memcpy(&type, value->data, MIN(value->len, sizeof(type)));
		if (value->len >= sizeof(type) && type == RTN_LOCAL)
			nat_rules_op(d->rules, &(struct nat_op){ .kind = NAT_OP_LOCAL });
		break;
	}
}

static void decode_cmp(struct decoder *d, const struct attr *a)
{
	struct attr value = attr_nested(&a[NFTA_CMP_DATA], NFTA_DATA_VALUE);

	compare(d, reg_index(&a[NFTA_CMP_SREG]), attr_be32(&a[NFTA_CMP_OP]), &value);
}

static void decode_range(struct decoder *d, const struct attr *a)
{
	struct attr from = attr_nested(&a[NFTA_RANGE_FROM_DATA], NFTA_DATA_VALUE);
	struct attr to = attr_nested(&a[NFTA_RANGE_TO_DATA], NFTA_DATA_VALUE);
	unsigned at = reg_index(&a[NFTA_RANGE_SREG]);

	if (attr_be32(&a[NFTA_RANGE_OP]) != NFT_RANGE_EQ || at >= REGISTERS ||
	    d->regs[at].what != REG_DPORT)
		return;
	compare_ports(d, NFT_CMP_GTE, &from);
	compare_ports(d, NFT_CMP_LTE, &to);
}

static void decode_fib(struct decoder *d, const struct attr *a)
{
	bool to_type = attr_be32(&a[NFTA_FIB_RESULT]) == NFT_FIB_RESULT_ADDRTYPE &&
		       (attr_be32(&a[NFTA_FIB_FLAGS]) & NFTA_FIB_F_DADDR);

	reg_set(d, reg_index(&a[NFTA_FIB_DREG]), 4, to_type ? REG_TO_TYPE : REG_UNKNOWN, 0);
}

static uint8_t word_of(const struct reg *reg)
{
	static const uint8_t whole[4] = { 255, 255, 255, 255 };

	if (reg->what == REG_PROTO)
		return NAT_WORD_PROTO;
	if (reg->what == REG_DPORT)
		return NAT_WORD_DPORT;
	if (reg->what == REG_TO && memcmp(reg->mask, whole, 4) == 0)
		return (uint8_t)(NAT_WORD_TO + reg->word);
	return NAT_WORD_UNKNOWN;
}

static void decode_lookup(struct decoder *d, const struct attr *a)
{
	unsigned at = reg_index(&a[NFTA_LOOKUP_SREG]), to = reg_index(&a[NFTA_LOOKUP_DREG]);
	struct nat_op op = { .kind = NAT_OP_LOOKUP };
	char name[NAT_NAME_MAX];
	bool from = false;

	if (a[NFTA_LOOKUP_FLAGS].data && (attr_be32(&a[NFTA_LOOKUP_FLAGS]) & NFT_LOOKUP_F_INV))
		return;
	if (!attr_text(&a[NFTA_LOOKUP_SET], name, sizeof(name)))
		return;
	for (unsigned i = 0; i < NAT_KEY_WORDS && at + i < REGISTERS; i++) {
		op.lookup.words[i] = word_of(&d->regs[at + i]);
		from |= d->regs[at + i].what == REG_FROM && i == 0;
	}
	op.lookup.verdict = a[NFTA_LOOKUP_DREG].data &&
			    attr_be32(&a[NFTA_LOOKUP_DREG]) == NFT_REG_VERDICT;
	if (from && !op.lookup.verdict)
		nat_rules_op(d->rules, &(struct nat_op){ .kind = NAT_OP_FROM });
	op.lookup.set = nat_rules_set(d->rules, name);
	if (op.lookup.set != NAT_NO_SET)
		nat_rules_op(d->rules, &op);
	if (a[NFTA_LOOKUP_DREG].data && !op.lookup.verdict)
		reg_set(d, to, 16, REG_UNKNOWN, 0);
}

/* --- what ends a rule ----------------------------------------------------- */

static uint16_t immediate_port(const struct decoder *d, const struct attr *reg)
{
	unsigned at = reg->data ? reg_index(reg) : REGISTERS;

	if (at >= REGISTERS || d->regs[at].what != REG_IMMEDIATE)
		return 0;
	return (uint16_t)(d->regs[at].mask[0] << 8 | d->regs[at].mask[1]);
}

static void decode_nat(struct decoder *d, const struct attr *a)
{
	struct nat_op op = { .kind = NAT_OP_DNAT };
	uint32_t family = attr_be32(&a[NFTA_NAT_FAMILY]);
	unsigned at = a[NFTA_NAT_REG_ADDR_MIN].data ? reg_index(&a[NFTA_NAT_REG_ADDR_MIN]) : REGISTERS;
	unsigned words = family == NFPROTO_IPV4 ? 1 : 4;

	if (attr_be32(&a[NFTA_NAT_TYPE]) != NFT_NAT_DNAT)
		return;
	if (family == NFPROTO_IPV4 || family == NFPROTO_IPV6)
		op.dnat.rule_family = family == NFPROTO_IPV4 ? AF_INET : AF_INET6;
	if (op.dnat.rule_family && at + words <= REGISTERS &&
	    d->regs[at].what == REG_IMMEDIATE) {
		op.dnat.family = op.dnat.rule_family;
		for (unsigned i = 0; i < words; i++)
			memcpy(op.dnat.addr + 4 * i, d->regs[at + i].mask, 4);
	}
	op.dnat.port = immediate_port(d, &a[NFTA_NAT_REG_PROTO_MIN]);
	nat_rules_op(d->rules, &op);
}

static void decode_redir(struct decoder *d, const struct attr *a)
{
	struct nat_op op = { .kind = NAT_OP_DNAT };

	op.dnat.port = immediate_port(d, &a[NFTA_REDIR_REG_PROTO_MIN]);
	nat_rules_op(d->rules, &op);
}

static void decode_match(struct decoder *d, const struct attr *a)
{
	char name[NAT_NAME_MAX];

	if (attr_text(&a[NFTA_MATCH_NAME], name, sizeof(name)))
		nat_xt_match(d->rules, name, attr_be32(&a[NFTA_MATCH_REV]), a[NFTA_MATCH_INFO].data,
			     a[NFTA_MATCH_INFO].len);
}

static void decode_target(struct decoder *d, const struct attr *a)
{
	char name[NAT_NAME_MAX];

	if (attr_text(&a[NFTA_TARGET_NAME], name, sizeof(name)))
		nat_xt_target(d->rules, name, attr_be32(&a[NFTA_TARGET_REV]), d->family,
			      a[NFTA_TARGET_INFO].data, a[NFTA_TARGET_INFO].len);
}

static const struct {
	const char *name;
	uint16_t max;
	void (*decode)(struct decoder *d, const struct attr *a);
} expressions[] = {
	{ "meta", NFTA_META_MAX, decode_meta },
	{ "payload", NFTA_PAYLOAD_MAX, decode_payload },
	{ "bitwise", NFTA_BITWISE_MAX, decode_bitwise },
	{ "immediate", NFTA_IMMEDIATE_MAX, decode_immediate },
	{ "cmp", NFTA_CMP_MAX, decode_cmp },
	{ "range", NFTA_RANGE_MAX, decode_range },
	{ "fib", NFTA_FIB_MAX, decode_fib },
	{ "lookup", NFTA_LOOKUP_MAX, decode_lookup },
	{ "nat", NFTA_NAT_MAX, decode_nat },
	{ "redir", NFTA_REDIR_MAX, decode_redir },
	{ "match", NFTA_MATCH_MAX, decode_match },
	{ "target", NFTA_TARGET_MAX, decode_target },
};

static void decode(struct decoder *d, const struct attr *expr)
{
	struct attr parts[NFTA_EXPR_MAX + 1], a[ATTRS_MAX + 1];
	char name[32];
	unsigned dreg;

	attrs_read(expr, parts, NFTA_EXPR_MAX);
	if (!attr_text(&parts[NFTA_EXPR_NAME], name, sizeof(name)))
		return;
	for (size_t i = 0; i < ARRAY_SIZE(expressions); i++) {
		if (!streq(name, expressions[i].name))
			continue;
		attrs_read(&parts[NFTA_EXPR_DATA], a, expressions[i].max);
		expressions[i].decode(d, a);
		return;
	}
	/* Loads of other things (ct, rt, numgen, …) overwrite what a register held.
	 * Their target is attribute 1 with all but these two. */
	dreg = streq(name, "hash") || streq(name, "socket") ? 2 : 1;
	attrs_read(&parts[NFTA_EXPR_DATA], a, 2);
	if (a[dreg].len == 4)
		reg_set(d, reg_index(&a[dreg]), 4, REG_UNKNOWN, 0);
}

void nat_nft_rule(struct nat_rules *r, uint8_t family, const uint8_t *attrs, size_t len)
{
	struct attr a[NFTA_RULE_MAX + 1], all = { .data = attrs, .len = len }, expr;
	struct decoder d = { .rules = r, .family = family };
	char chain[NAT_NAME_MAX];

	attrs_read(&all, a, NFTA_RULE_MAX);
	if (!attr_text(&a[NFTA_RULE_CHAIN], chain, sizeof(chain)))
		return;
	nat_rules_begin(r, nat_rules_chain(r, chain));
	while (attr_next(&a[NFTA_RULE_EXPRESSIONS], &expr))
		if (expr.type == NFTA_LIST_ELEM)
			decode(&d, &expr);
}

/* --- sets ----------------------------------------------------------------- */

struct point {
	uint8_t key[4 * NAT_KEY_WORDS], key_end[4 * NAT_KEY_WORDS];
	uint8_t len;
	bool end;		/* of an interval, itself not part of it */
	bool has_key_end;
	uint32_t chain;
};

struct nat_nft_elems {
	struct point *points;
	size_t len, cap;
	bool intervals;
};

struct nat_nft_elems *nat_nft_elems_new(void)
{
	return xnew(struct nat_nft_elems);
}

uint32_t nat_nft_verdict(struct nat_rules *r, const struct attr *verdict)
{
	struct attr a[NFTA_VERDICT_MAX + 1];
	char chain[NAT_NAME_MAX];
	int32_t code;

	attrs_read(verdict, a, NFTA_VERDICT_MAX);
	code = (int32_t)attr_be32(&a[NFTA_VERDICT_CODE]);
	if ((code != NFT_JUMP && code != NFT_GOTO) ||
	    !attr_text(&a[NFTA_VERDICT_CHAIN], chain, sizeof(chain)))
		return NAT_NO_CHAIN;
	return nat_rules_chain(r, chain);
}

static bool read_key(const struct attr *a, uint8_t ret[4 * NAT_KEY_WORDS], uint8_t *ret_len)
{
	struct attr value = attr_nested(a, NFTA_DATA_VALUE);

	if (value.len == 0 || value.len > 4 * NAT_KEY_WORDS)
		return false;
	memcpy(ret, value.data, value.len);
	*ret_len = (uint8_t)value.len;
	return true;
}

static void add_point(struct nat_nft_elems *e, struct nat_rules *r, const struct attr *elem)
{
	struct attr a[NFTA_SET_ELEM_MAX + 1], verdict;
	struct point p = { .chain = NAT_NO_CHAIN };
	uint32_t flags;
	uint8_t len;

	attrs_read(elem, a, NFTA_SET_ELEM_MAX);
	flags = attr_be32(&a[NFTA_SET_ELEM_FLAGS]);
	if ((flags & NFT_SET_ELEM_CATCHALL) || !read_key(&a[NFTA_SET_ELEM_KEY], p.key, &p.len) ||
	    e->len == NAT_ELEMS_MAX)
		return;
	p.end = flags & NFT_SET_ELEM_INTERVAL_END;
	p.has_key_end = read_key(&a[NFTA_SET_ELEM_KEY_END], p.key_end, &len);
	verdict = attr_nested(&a[NFTA_SET_ELEM_DATA], NFTA_DATA_VERDICT);
	if (verdict.data)
		p.chain = nat_nft_verdict(r, &verdict);
	e->intervals |= p.end;
	if (e->len == e->cap) {
		e->cap = e->cap ? 2 * e->cap : 16;
		e->points = xreallocarray(e->points, e->cap, sizeof(*e->points));
	}
	e->points[e->len++] = p;
}

void nat_nft_elems_add(struct nat_nft_elems *e, struct nat_rules *r, const uint8_t *attrs, size_t len)
{
	struct attr all = { .data = attrs, .len = len }, elem;
	struct attr list = attr_nested(&all, NFTA_SET_ELEM_LIST_ELEMENTS);

	while (attr_next(&list, &elem))
		if (elem.type == NFTA_LIST_ELEM)
			add_point(e, r, &elem);
}

/* An end goes before a beginning at the same place. */
static int point_compare(const void *a, const void *b)
{
	const struct point *x = a, *y = b;
	int order = memcmp(x->key, y->key, sizeof(x->key));

	return order ? order : (int)y->end - (int)x->end;
}

/* The last key before @p's, in network order. */
static void step_back(uint8_t *key, size_t len)
{
	while (len > 0 && key[--len]-- == 0)
		;
}

/* The kernel tells an interval as two elements, in no order to rely on. */
void nat_nft_elems_finish(struct nat_nft_elems *e, struct nat_rules *r, uint32_t set)
{
	if (e->intervals)
		qsort(e->points, e->len, sizeof(*e->points), point_compare);
	for (size_t i = 0; i < e->len; i++) {
		const struct point *p = &e->points[i];
		struct nat_elem elem = { .chain = p->chain };

		if (p->end)
			continue;
		memcpy(elem.low, p->key, sizeof(elem.low));
		memcpy(elem.high, p->has_key_end ? p->key_end : p->key, sizeof(elem.high));
		if (e->intervals && i + 1 < e->len) {
			memcpy(elem.high, p[1].key, sizeof(elem.high));
			step_back(elem.high, p->len);
		} else if (e->intervals) {
			memset(elem.high, 0xff, p->len);
		}
		nat_rules_elem(r, set, &elem);
	}
	free(e->points);
	free(e);
}
