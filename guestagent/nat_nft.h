/* nat_nft.h - the nat tables of nf_tables, also those that iptables-nft keeps
 *
 * Dumped over NETLINK_NETFILTER: the chains, then for each table that has a nat
 * chain on the prerouting or output hook its rules and the sets and maps these
 * look things up in. Expressions run on registers, so reading a rule means to
 * follow what a register holds: `ip daddr . meta l4proto . th dport vmap @ports`
 * is three loads and a lookup. What iptables-nft writes as iptables' own structs
 * nat_xt.h reads.
 *
 * Needs CAP_NET_ADMIN. Takes as long as the tables are large: not on the loop.
 */
#pragma once

#include "guestagent/nat_rules.h"
#include "lib/base/error.h"

enum { NAT_NFT_TABLES_MAX = 64 };	/* with nat chains */

struct nat_nft_tables {
	struct nat_rules *items[NAT_NFT_TABLES_MAX];
	size_t len;
};

/* -EINTR: they changed meanwhile, over and over. */
int nat_nft_read(struct nat_nft_tables *ret, struct error *err);
void nat_nft_done(struct nat_nft_tables *t);

/* --- the pure half, nat_nft_expr.c --- */

/* Adds a rule, the attributes of one NFT_MSG_NEWRULE. */
void nat_nft_rule(struct nat_rules *r, uint8_t family, const uint8_t *attrs, size_t len);

/* The elements of one set come in several NFT_MSG_NEWSETELEM. finish frees. */
struct nat_nft_elems;
struct nat_nft_elems *nat_nft_elems_new(void);
void nat_nft_elems_add(struct nat_nft_elems *e, struct nat_rules *r, const uint8_t *attrs,
		       size_t len);
void nat_nft_elems_finish(struct nat_nft_elems *e, struct nat_rules *r, uint32_t set);
