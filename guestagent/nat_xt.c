#include "guestagent/nat_xt.h"

#include <linux/netfilter/nf_nat.h>
#include <linux/netfilter/xt_addrtype.h>
#include <linux/netfilter/xt_multiport.h>
#include <linux/netfilter/xt_tcpudp.h>
#include <linux/rtnetlink.h>
#include <string.h>

#include "lib/base/mem.h"

static void add_ports(struct nat_rules *r, const uint16_t ports[2])
{
	if (ports[0] == 0 && ports[1] == 65535)
		return;
	nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_PORTS,
					  .ports = { .low = ports[0], .high = ports[1] } });
}

static void add_proto(struct nat_rules *r, uint8_t proto)
{
	nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_PROTO, .proto = proto });
}

static void match_tcp(struct nat_rules *r, unsigned revision, const void *data)
{
	struct xt_tcp m;

	memcpy(&m, data, sizeof(m));
	add_proto(r, IPPROTO_TCP);
	if (!(m.invflags & XT_TCP_INV_DSTPT))
		add_ports(r, m.dpts);
}

static void match_udp(struct nat_rules *r, unsigned revision, const void *data)
{
	struct xt_udp m;

	memcpy(&m, data, sizeof(m));
	add_proto(r, IPPROTO_UDP);
	if (!(m.invflags & XT_UDP_INV_DSTPT))
		add_ports(r, m.dpts);
}

/* A list becomes a set: one of them has to match. */
static void match_multiport(struct nat_rules *r, unsigned revision, const void *data)
{
	struct xt_multiport_v1 m;
	struct nat_op op = { .kind = NAT_OP_LOOKUP };

	memcpy(&m, data, sizeof(m));
	if (m.invert || m.flags == XT_MULTIPORT_SOURCE || m.count > XT_MULTI_PORTS)
		return;
	op.lookup.set = nat_rules_set(r, NULL);
	op.lookup.words[0] = NAT_WORD_DPORT;
	for (unsigned i = 0; i < m.count; i++) {
		bool range = m.pflags[i] && i + 1 < m.count;
		uint16_t low = m.ports[i], high = m.ports[range ? ++i : i];
		struct nat_elem e = { .low = { (uint8_t)(low >> 8), (uint8_t)low },
				      .high = { (uint8_t)(high >> 8), (uint8_t)high },
				      .chain = NAT_NO_CHAIN };

		nat_rules_elem(r, op.lookup.set, &e);
	}
	nat_rules_op(r, &op);
}

static void match_addrtype(struct nat_rules *r, unsigned revision, const void *data)
{
	struct xt_addrtype_info_v1 m;

	memcpy(&m, data, sizeof(m));
	if ((m.dest & 1 << RTN_LOCAL) && !(m.flags & XT_ADDRTYPE_INVERT_DEST))
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_LOCAL });
}

static const struct {
	const char *name;
	unsigned revision;
	size_t size;
	void (*add)(struct nat_rules *r, unsigned revision, const void *data);
} matches[] = {
	{ "tcp", 0, sizeof(struct xt_tcp), match_tcp },
	{ "udp", 0, sizeof(struct xt_udp), match_udp },
	{ "multiport", 1, sizeof(struct xt_multiport_v1), match_multiport },
	{ "addrtype", 1, sizeof(struct xt_addrtype_info_v1), match_addrtype },
};

void nat_xt_match(struct nat_rules *r, const char *name, unsigned revision, const void *data,
		  size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(matches); i++)
		if (streq(matches[i].name, name) && matches[i].revision == revision &&
		    len >= matches[i].size)
			matches[i].add(r, revision, data);
}

/* nf_nat.h: revisions before DNAT's second have the IPv4-only struct in IPv4
 * tables; all have flags, first address, …, first port. */
static bool read_range(unsigned revision, uint8_t family, bool redirect, const void *data, size_t len,
		       struct nf_nat_range2 *ret)
{
	struct nf_nat_ipv4_multi_range_compat old;
	struct nf_nat_range range;

	*ret = (struct nf_nat_range2){ 0 };
	if (revision == 0 && family == AF_INET) {
		if (len < sizeof(old))
			return false;
		memcpy(&old, data, sizeof(old));
		ret->flags = old.range[0].flags;
		ret->min_addr.ip = old.range[0].min_ip;
		ret->min_proto = old.range[0].min;
		return old.rangesize == 1;
	}
	if (revision >= 2 && !redirect) {
		if (len >= sizeof(*ret))
			memcpy(ret, data, sizeof(*ret));
		return len >= sizeof(*ret);
	}
	if (len < sizeof(range))
		return false;
	memcpy(&range, data, sizeof(range));
	ret->flags = range.flags;
	ret->min_addr = range.min_addr;
	ret->min_proto = range.min_proto;
	return true;
}

void nat_xt_target(struct nat_rules *r, const char *name, unsigned revision, uint8_t family,
		   const void *data, size_t len)
{
	struct nat_op op = { .kind = NAT_OP_DNAT };
	bool redirect = streq(name, "REDIRECT");
	struct nf_nat_range2 range;

	if (!redirect && !streq(name, "DNAT"))
		return;
	if (!read_range(revision, family, redirect, data, len, &range))
		return;
	op.dnat.rule_family = family;
	if (!redirect && (range.flags & NF_NAT_RANGE_MAP_IPS)) {
		op.dnat.family = family;
		memcpy(op.dnat.addr, &range.min_addr, family == AF_INET ? 4 : 16);
	}
	if (range.flags & NF_NAT_RANGE_PROTO_SPECIFIED)
		op.dnat.port = ntohs(range.min_proto.all);
	nat_rules_op(r, &op);
}
