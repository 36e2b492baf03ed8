#include "guestagent/nat_legacy.h"

#include <assert.h>
#include <errno.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestagent/nat_xt.h"
#include "lib/base/mem.h"

/* The two families' entries differ in their address part only. */
struct entry {
	const uint8_t *matches, *target;	/* the latter is the end of the former */
	size_t target_len;
	size_t size;
};

struct table {
	uint8_t family;
	const uint8_t *data;
	size_t len;
	struct nat_rules *rules;
	uint32_t *chain_at;	/* by offset / 8: the chain that begins there */
};

bool nat_legacy_there(uint8_t family)
{
	scoped_file FILE *f = fopen(family == AF_INET ? "/proc/net/ip_tables_names"
						      : "/proc/net/ip6_tables_names", "re");
	char line[XT_TABLE_MAXNAMELEN + 1];

	while (f && fgets(line, sizeof(line), f))
		if (streq(line, "nat\n"))
			return true;
	return false;
}

static bool entry_at(const struct table *t, size_t at, struct entry *ret)
{
	size_t head = t->family == AF_INET ? sizeof(struct ipt_entry) : sizeof(struct ip6t_entry);
	uint16_t target_offset, next_offset;

	if (t->len - at < head)
		return false;
	if (t->family == AF_INET) {
		const struct ipt_entry *e = (const void *)(t->data + at);

		target_offset = e->target_offset;
		next_offset = e->next_offset;
	} else {
		const struct ip6t_entry *e = (const void *)(t->data + at);

		target_offset = e->target_offset;
		next_offset = e->next_offset;
	}
	if (next_offset > t->len - at || target_offset < head || next_offset % 8 || target_offset % 8 ||
	    (size_t)target_offset + sizeof(struct xt_entry_target) > next_offset)
		return false;
	*ret = (struct entry){ .matches = t->data + at + head,
			       .target = t->data + at + target_offset,
			       .target_len = (size_t)next_offset - target_offset,
			       .size = next_offset };
	return true;
}

static void add_range(struct nat_rules *r, uint8_t family, const void *addr, const void *mask)
{
	struct nat_op op = { .kind = NAT_OP_TO, .to = { .family = family } };
	const uint8_t *a = addr, *m = mask;
	size_t len = family == AF_INET ? 4 : 16;
	static const uint8_t none[16];

	if (memcmp(m, none, len) == 0)
		return;
	for (size_t i = 0; i < len; i++) {
		op.to.low[i] = a[i] & m[i];
		op.to.high[i] = (uint8_t)(a[i] | ~m[i]);
	}
	nat_rules_op(r, &op);
}

/* What both families have, @proto_known: the protocol was asked for. */
static void add_rest(struct nat_rules *r, bool from, const char *in, bool in_inverted, uint16_t proto,
		     bool proto_known)
{
	struct nat_op op = { .kind = NAT_OP_IN };

	if (from)
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_FROM });
	op.in.len = (uint8_t)strnlen(in, IFNAMSIZ - 1);
	memcpy(op.in.name, in, op.in.len);
	if (op.in.len && !in_inverted)
		nat_rules_op(r, &op);
	if (proto_known && proto)
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_PROTO, .proto = (uint8_t)proto });
}

/* A mask of the interface name without its 0 byte means `eth+`; the name itself
 * then is what is compared, so its length tells as much. */
static void add_head(struct nat_rules *r, uint8_t family, const uint8_t *data)
{
	if (family == AF_INET) {
		const struct ipt_ip *ip = (const void *)data;

		if (!(ip->invflags & IPT_INV_DSTIP))
			add_range(r, family, &ip->dst, &ip->dmsk);
		add_rest(r, ip->smsk.s_addr != 0 && !(ip->invflags & IPT_INV_SRCIP), ip->iniface,
			 ip->invflags & IPT_INV_VIA_IN, ip->proto, !(ip->invflags & IPT_INV_PROTO));
	} else {
		const struct ip6t_ip6 *ip = (const void *)data;

		if (!(ip->invflags & IP6T_INV_DSTIP))
			add_range(r, family, &ip->dst, &ip->dmsk);
		add_rest(r, !IN6_IS_ADDR_UNSPECIFIED(&ip->smsk) && !(ip->invflags & IP6T_INV_SRCIP),
			 ip->iniface, ip->invflags & IP6T_INV_VIA_IN, ip->proto,
			 (ip->flags & IP6T_F_PROTO) && !(ip->invflags & IP6T_INV_PROTO));
	}
}

static void add_matches(struct nat_rules *r, const struct entry *e)
{
	const uint8_t *p = e->matches;

	while ((size_t)(e->target - p) >= sizeof(struct xt_entry_match)) {
		const struct xt_entry_match *m = (const void *)p;
		size_t size = m->u.match_size;

		if (size < sizeof(*m) || size % 8 || size > (size_t)(e->target - p))
			return;
		if (memchr(m->u.user.name, 0, sizeof(m->u.user.name)))
			nat_xt_match(r, m->u.user.name, m->u.user.revision, m->data, size - sizeof(*m));
		p += size;
	}
}

static void add_target(const struct table *t, const struct entry *e)
{
	const struct xt_entry_target *target = (const void *)e->target;
	struct nat_op op = { .kind = NAT_OP_JUMP };
	int verdict;

	if (!memchr(target->u.user.name, 0, sizeof(target->u.user.name)))
		return;
	if (target->u.user.name[0]) {
		nat_xt_target(t->rules, target->u.user.name, target->u.user.revision, t->family,
			      target->data, e->target_len - sizeof(*target));
		return;
	}
	if (e->target_len < sizeof(struct xt_standard_target))
		return;
	verdict = ((const struct xt_standard_target *)(const void *)target)->verdict;
	if (verdict < 0 || (size_t)verdict >= t->len || verdict % 8)	/* ACCEPT, RETURN, … */
		return;
	op.chain = t->chain_at[verdict / 8];
	if (op.chain != NAT_NO_CHAIN)
		nat_rules_op(t->rules, &op);
}

/* A chain of the user's begins behind an entry whose target is ERROR and carries
 * its name (linux/netfilter/x_tables.h, struct xt_error_target). */
static void find_chains(struct table *t)
{
	struct entry e;

	for (size_t at = 0; at < t->len && entry_at(t, at, &e); at += e.size) {
		const struct xt_error_target *target = (const void *)e.target;

		if (e.target_len < sizeof(*target) || at + e.size >= t->len ||
		    !streq(target->target.u.user.name, XT_ERROR_TARGET) ||
		    !memchr(target->errorname, 0, sizeof(target->errorname)))
			continue;
		t->chain_at[(at + e.size) / 8] = nat_rules_chain(t->rules, target->errorname);
	}
}

struct nat_rules *nat_legacy_parse(uint8_t family, const uint8_t *entries, size_t len,
				   const uint32_t hooks[NAT_LEGACY_HOOKS])
{
	static const struct {
		const char *name;
		enum nat_hook hook;
	} chains[NAT_LEGACY_HOOKS] = {
		[NF_INET_PRE_ROUTING] = { "PREROUTING", NAT_HOOK_PREROUTING },
		[NF_INET_LOCAL_IN] = { "INPUT", NAT_HOOK_NONE },
		[NF_INET_FORWARD] = { "FORWARD", NAT_HOOK_NONE },
		[NF_INET_LOCAL_OUT] = { "OUTPUT", NAT_HOOK_OUTPUT },
		[NF_INET_POST_ROUTING] = { "POSTROUTING", NAT_HOOK_NONE },
	};
	struct table t = { .family = family, .data = entries, .len = len,
			   .rules = nat_rules_new(family) };
	uint32_t chain = NAT_NO_CHAIN;
	struct entry e;

	t.chain_at = xreallocarray(NULL, len / 8 + 1, sizeof(*t.chain_at));
	memset(t.chain_at, 0xff, (len / 8 + 1) * sizeof(*t.chain_at));
	find_chains(&t);
	for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
		if (hooks[i] >= len || hooks[i] % 8)
			continue;
		t.chain_at[hooks[i] / 8] = nat_rules_chain(t.rules, chains[i].name);
		nat_rules_hook(t.rules, t.chain_at[hooks[i] / 8], chains[i].hook);
	}
	for (size_t at = 0; at < len && entry_at(&t, at, &e); at += e.size) {
		if (t.chain_at[at / 8] != NAT_NO_CHAIN)
			chain = t.chain_at[at / 8];
		nat_rules_begin(t.rules, chain);
		add_head(t.rules, family, entries + at);
		add_matches(t.rules, &e);
		add_target(&t, &e);
	}
	free(t.chain_at);
	return t.rules;
}

/* struct ipt_getinfo and ip6t_getinfo, ipt_get_entries and ip6t_get_entries are
 * the same but for their names. */
static_assert((int)NF_INET_NUMHOOKS == (int)NAT_LEGACY_HOOKS, "nat_legacy.h");
static_assert(sizeof(struct ipt_getinfo) == sizeof(struct ip6t_getinfo), "as above");
static_assert(sizeof(struct ipt_get_entries) == sizeof(struct ip6t_get_entries), "as above");
static_assert(IPT_SO_GET_INFO == IP6T_SO_GET_INFO && IPT_SO_GET_ENTRIES == IP6T_SO_GET_ENTRIES,
	      "as above");

struct nat_rules *nat_legacy_read(uint8_t family, struct error *err)
{
	int level = family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
	scoped_fd int fd = socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	struct ipt_getinfo info = { .name = "nat" };
	socklen_t len = sizeof(info);
	scoped_free struct ipt_get_entries *entries = NULL;
	uint32_t hooks[NAT_LEGACY_HOOKS];

	if (fd < 0 || getsockopt(fd, level, IPT_SO_GET_INFO, &info, &len) < 0) {
		error_sys(err, -errno, "iptables: nat table");
		return NULL;
	}
	if (info.size > NAT_LEGACY_TABLE_MAX) {
		error_set(err, -EFBIG, "iptables: nat table of %u bytes", info.size);
		return NULL;
	}
	entries = xcalloc(1, sizeof(*entries) + info.size);
	memcpy(entries->name, "nat", 4);
	entries->size = info.size;
	len = (socklen_t)(sizeof(*entries) + info.size);
	/* EAGAIN: it changed in between; the next look reads it again */
	if (getsockopt(fd, level, IPT_SO_GET_ENTRIES, entries, &len) < 0) {
		error_sys(err, -errno, "iptables: rules of the nat table");
		return NULL;
	}
	for (unsigned i = 0; i < NAT_LEGACY_HOOKS; i++)
		hooks[i] = info.valid_hooks & 1u << i ? info.hook_entry[i] : UINT32_MAX;
	return nat_legacy_parse(family, (const uint8_t *)entries->entrytable, info.size, hooks);
}
