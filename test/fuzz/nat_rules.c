/* The guest agent's readers of address translation rules: expressions and sets of
 * nf_tables, tables of iptables. The kernel writes these, but containers decide
 * what is in them. The first byte of an input chooses the reader. */
#include <assert.h>
#include <linux/netfilter/nf_tables.h>
#include <string.h>

#include "guestagent/nat_legacy.h"
#include "guestagent/nat_nft.h"
#include "lib/base/mem.h"
#include "test/fuzz/fuzz.h"

static struct port loopback = { .family = AF_INET, .addr = { 127, 0, 0, 1 } };

static void walk(struct nat_rules *r)
{
	struct nat_env env = { .locals = &loopback, .locals_len = 1, .uplink = "eth0" };
	struct nat_ports ports = { 0 };

	nat_rules_walk(r, &env, &ports);
	assert(ports.len <= NAT_PORTS_MAX);
	for (size_t i = 0; i < ports.len; i++)
		assert(ports.items[i].port.port != 0);
	nat_ports_done(&ports);
	nat_rules_free(r);
}

/* A rule of the hooked chain, the elements of the sets it names, another rule. */
static void read_nft(struct fuzz_input in)
{
	uint8_t family = fuzz_take(&in) % 2 ? AF_INET : 0;
	size_t rule_len = MIN((size_t)fuzz_take16(&in), in.len);
	struct nat_rules *r = nat_rules_new(family);
	struct nat_nft_elems *e;

	nat_rules_hook(r, nat_rules_chain(r, "in"), NAT_HOOK_PREROUTING);
	nat_nft_rule(r, family, in.data, rule_len);
	e = nat_nft_elems_new();
	nat_nft_elems_add(e, r, in.data + rule_len, in.len - rule_len);
	nat_nft_elems_finish(e, r, 0);
	nat_nft_rule(r, family, in.data + rule_len, in.len - rule_len);
	walk(r);
}

static void read_legacy(struct fuzz_input in)
{
	uint8_t family = fuzz_take(&in) % 2 ? AF_INET : AF_INET6;
	uint32_t hooks[NAT_LEGACY_HOOKS];
	scoped_free uint64_t *aligned = NULL;

	for (unsigned i = 0; i < NAT_LEGACY_HOOKS; i++)
		hooks[i] = fuzz_take16(&in);
	aligned = xcalloc(in.len / 8 + 1, 8);
	if (in.len)
		memcpy(aligned, in.data, in.len);
	walk(nat_legacy_parse(family, (uint8_t *)aligned, in.len, hooks));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct fuzz_input in = { data, len };

	if (fuzz_take(&in) % 2)
		read_nft(in);
	else
		read_legacy(in);
	return 0;
}

/* --- seeds ---------------------------------------------------------------- */

struct out {
	uint8_t data[512];
	size_t len;
};

static void put(struct out *o, const void *data, size_t len)
{
	assert(o->len + len <= sizeof(o->data));
	memcpy(o->data + o->len, data, len);
	o->len += len;
}

/* An attribute; its length is filled in by end(). */
static size_t begin(struct out *o, uint16_t type)
{
	uint16_t head[2] = { 0, type };

	put(o, head, sizeof(head));
	return o->len - sizeof(head);
}

static void end(struct out *o, size_t at)
{
	uint16_t len = (uint16_t)(o->len - at);

	memcpy(o->data + at, &len, sizeof(len));
	put(o, "\0\0\0", (4 - o->len % 4) % 4);
}

static void put_attr(struct out *o, uint16_t type, const void *data, size_t len)
{
	size_t at = begin(o, type);

	put(o, data, len);
	end(o, at);
}

static size_t begin_expr(struct out *o, const char *name, size_t *ret_outer)
{
	*ret_outer = begin(o, NFTA_LIST_ELEM);
	put_attr(o, NFTA_EXPR_NAME, name, strlen(name) + 1);
	return begin(o, NFTA_EXPR_DATA);
}

#define BE32(v) "\0\0\0" v, 4

/* tcp dport @s redirect */
static void seed_nft(void)
{
	struct out o = { 0 }, whole = { 0 };
	size_t list, outer, inner;
	uint16_t len;

	put_attr(&o, NFTA_RULE_CHAIN, "in", 3);
	list = begin(&o, NFTA_RULE_EXPRESSIONS);
	inner = begin_expr(&o, "payload", &outer);
	put_attr(&o, NFTA_PAYLOAD_DREG, BE32("\1"));
	put_attr(&o, NFTA_PAYLOAD_BASE, BE32("\2"));
	put_attr(&o, NFTA_PAYLOAD_OFFSET, BE32("\2"));
	put_attr(&o, NFTA_PAYLOAD_LEN, BE32("\2"));
	end(&o, inner), end(&o, outer);
	inner = begin_expr(&o, "lookup", &outer);
	put_attr(&o, NFTA_LOOKUP_SET, "s", 2);
	put_attr(&o, NFTA_LOOKUP_SREG, BE32("\1"));
	end(&o, inner), end(&o, outer);
	inner = begin_expr(&o, "redir", &outer);
	end(&o, inner), end(&o, outer);
	end(&o, list);
	len = (uint16_t)o.len;
	put(&whole, "\1\1", 2);
	put(&whole, &len, 2);
	put(&whole, o.data, o.len);
	o.len = 0;
	list = begin(&o, NFTA_SET_ELEM_LIST_ELEMENTS);
	outer = begin(&o, NFTA_LIST_ELEM);
	inner = begin(&o, NFTA_SET_ELEM_KEY);
	put_attr(&o, NFTA_DATA_VALUE, "\x1f\x90\0", 4);
	end(&o, inner), end(&o, outer), end(&o, list);
	put(&whole, o.data, o.len);
	fuzz_seed_add(whole.data, whole.len);
}

void fuzz_seeds(void)
{
	uint8_t legacy[12 + 2 * 152] = { 0, 1 };	/* two empty entries */

	legacy[12 + 88] = legacy[12 + 152 + 88] = 112;	/* target_offset */
	legacy[12 + 90] = legacy[12 + 152 + 90] = 152;	/* next_offset */
	legacy[12 + 112] = 40;
	fuzz_seed_add(legacy, sizeof(legacy));
	seed_nft();
}
