/* nat_legacy.h - the nat tables of iptables-legacy and ip6tables-legacy
 *
 * Read by getsockopt(), as `iptables-legacy -S` does. Asking for a table that
 * does not exist makes the kernel load modules and create it, so we ask only for
 * one that /proc/net/ip_tables_names or ip6_tables_names lists. Changes are told
 * to nobody: who wants to know has to read again.
 */
#pragma once

#include "guestagent/nat_rules.h"
#include "lib/base/error.h"

enum {
	NAT_LEGACY_TABLE_MAX = 64 << 20,	/* bytes of one table */
	NAT_LEGACY_HOOKS = 5,			/* NF_INET_NUMHOOKS */
};

/* @family's nat table exists. Reads one small file. */
bool nat_legacy_there(uint8_t family);
/* NULL on failure. */
struct nat_rules *nat_legacy_read(uint8_t family, struct error *err);

/* The pure part: @len bytes of entries as the kernel lays them out, 8-byte
 * aligned, @hooks where each hook's chain begins (beyond @len: nowhere). */
struct nat_rules *nat_legacy_parse(uint8_t family, const uint8_t *entries, size_t len,
				   const uint32_t hooks[NAT_LEGACY_HOOKS]);
