/* nat_rules.h - which ports do address translation rules publish
 *
 * A port can serve without any socket: containers (CNI portmap, Docker without
 * its proxy), Kubernetes NodePort and LoadBalancer services and hand-written
 * rules are only DNAT or REDIRECT in the nat tables. One nat_rules holds one
 * table, in a form that nf_tables (nat_nft.h) and iptables-legacy (nat_legacy.h)
 * both translate to: chains of rules, each a row of operations that narrow what
 * it applies to, then say where to go.
 *
 * The walk begins at the chains hooked to prerouting and output, follows every
 * jump, goto and verdict map, and carries along what the way has asked for:
 * protocol, port, destination. Where it meets DNAT or REDIRECT, that is what is
 * published, provided that
 *
 *   - protocol and port are named (a proxy for everything publishes nothing),
 *     a range by no more than NAT_RANGE_MAX ports;
 *   - the destination can be this guest: not named at all, "local", or one of
 *     its addresses. Others (cluster addresses, a DNS redirect) are for traffic
 *     that passes through. Destinations of Kubernetes' chains for what comes
 *     from outside the cluster (KUBE-EXT-…, KUBE-FW-…, external-…) always count;
 *   - in an output chain, the destination is named: without, the rule is about
 *     outgoing connections of this guest;
 *   - no source is asked for, and no incoming interface but the uplink.
 *
 * Conditions that are not understood, and inverted ones, are taken as fulfilled.
 * Pure; everything is bounded; a table that exceeds a bound is read in part.
 */
#pragma once

#include <net/if.h>

#include "guestagent/ports_list.h"

enum {
	NAT_CHAINS_MAX = 65536,
	NAT_RULES_MAX = 262144,
	NAT_OPS_MAX = 524288,		/* 21 MiB, only while it is read */
	NAT_SETS_MAX = 4096,
	NAT_ELEMS_MAX = 131072,		/* of all sets together */
	NAT_NAME_MAX = 256,		/* NFT_NAME_MAXLEN with its 0 byte */
	NAT_DEPTH_MAX = 16,		/* nf_tables' own limit of jumps */
	NAT_WORK_MAX = 4000000,		/* steps of all walks that add to one nat_ports: rules,
					 * operations, elements, ports; 0.1 s */
	NAT_WORK_LOCALS = 8,		/* addresses compared in one step */
	NAT_RANGE_MAX = 1024,		/* ports that one rule may publish */
	NAT_PORTS_MAX = 4096,		/* ports published by all rules */
	NAT_KEY_WORDS = 8,		/* of a set's key, 32 bits each */
};

enum nat_hook { NAT_HOOK_NONE, NAT_HOOK_PREROUTING, NAT_HOOK_OUTPUT };

enum nat_op_kind {
	NAT_OP_FAMILY,		/* AF_INET, AF_INET6 */
	NAT_OP_PROTO,
	NAT_OP_PORTS,		/* destination */
	NAT_OP_TO,		/* destination address */
	NAT_OP_LOCAL,		/* destination is of type local */
	NAT_OP_FROM,		/* some source is asked for */
	NAT_OP_IN,		/* incoming interface */
	NAT_OP_LOOKUP,		/* one of a set's elements */
	NAT_OP_JUMP,
	NAT_OP_DNAT,		/* DNAT, REDIRECT; ends the rule */
	NAT_OP_KINDS
};

/* What a 32-bit word of a set's key is. */
enum nat_word {
	NAT_WORD_UNKNOWN,
	NAT_WORD_PROTO,		/* first byte */
	NAT_WORD_DPORT,		/* first two bytes, network order */
	NAT_WORD_TO,		/* IPv4, or the first of four of IPv6 */
	NAT_WORD_TO_1,
	NAT_WORD_TO_2,
	NAT_WORD_TO_3,
};

struct nat_range {	/* of addresses, network order, both included */
	uint8_t family;
	uint8_t low[16], high[16];
};

struct nat_op {
	uint8_t kind;
	union {
		uint8_t family;
		uint8_t proto;
		struct {
			uint16_t low, high;
		} ports;
		struct nat_range to;
		struct {
			char name[IFNAMSIZ];
			uint8_t len;	/* bytes compared: without the 0 it is a prefix */
		} in;
		struct {
			uint32_t set;
			bool verdict;	/* elements lead to chains */
			uint8_t words[NAT_KEY_WORDS];
		} lookup;
		uint32_t chain;
		struct {
			uint8_t family;		/* of addr; 0: none */
			uint8_t rule_family;	/* what the rule says, 0: nothing */
			uint8_t addr[16];
			uint16_t port;		/* 0: as it came */
		} dnat;
	};
};

struct nat_elem {
	uint8_t low[4 * NAT_KEY_WORDS], high[4 * NAT_KEY_WORDS];
	uint32_t chain;		/* NAT_NO_CHAIN: no verdict that leads anywhere */
};

#define NAT_NO_CHAIN UINT32_MAX

struct nat_rules;

/* @family: the table's, 0 for both. */
struct nat_rules *nat_rules_new(uint8_t family);
void nat_rules_free(struct nat_rules *r);
/* Something was left out for a bound. */
bool nat_rules_full(const struct nat_rules *r);

/* The chain of that name, made if there is none. NAT_NO_CHAIN: too many. */
uint32_t nat_rules_chain(struct nat_rules *r, const char *name);
void nat_rules_hook(struct nat_rules *r, uint32_t chain, enum nat_hook hook);
/* Begins a rule at the end of @chain; operations follow. */
void nat_rules_begin(struct nat_rules *r, uint32_t chain);
void nat_rules_op(struct nat_rules *r, const struct nat_op *op);

/* @name NULL: one without a name. NAT_NO_SET: too many. */
#define NAT_NO_SET UINT32_MAX
uint32_t nat_rules_set(struct nat_rules *r, const char *name);
void nat_rules_elem(struct nat_rules *r, uint32_t set, const struct nat_elem *e);
size_t nat_rules_sets(const struct nat_rules *r);
const char *nat_rules_set_name(const struct nat_rules *r, uint32_t set);

/* The guest's own addresses (port and protocol unused), and the name of the
 * interface that the default route goes through, "" if there is none. */
struct nat_env {
	struct port *locals;
	size_t locals_len;
	char uplink[IFNAMSIZ];
};

struct nat_port {
	struct port port;	/* as it is reported */
	struct port via;	/* an address it is published on; port 0: on all */
	struct port target;	/* where it goes; port 0: not known */
	uint16_t output;	/* 1: the guest itself is let in too. No bool: no padding */
};

struct nat_ports {
	struct nat_port *items;		/* each port once */
	size_t len, cap;
	uint16_t *by_port;		/* hash table of 1 + index, 0: empty */
	unsigned work;			/* done so far */
	bool full;
};

void nat_ports_done(struct nat_ports *p);
/* Adds to @ret. */
void nat_rules_walk(const struct nat_rules *r, const struct nat_env *env, struct nat_ports *ret);
