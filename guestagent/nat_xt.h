/* nat_xt.h - what the matches and targets of iptables say, as nat_rules
 *
 * iptables' own structs (linux/netfilter/xt_*.h, nf_nat.h), as iptables-legacy
 * keeps them in its table and iptables-nft in nf_tables' compat expressions.
 * Unknown names and revisions add nothing.
 */
#pragma once

#include "guestagent/nat_rules.h"

/* Adds the operations of `-m NAME`; what does not fit its struct adds nothing. */
void nat_xt_match(struct nat_rules *r, const char *name, unsigned revision, const void *data,
		  size_t len);
/* Adds the operation of `-j NAME`, when it is DNAT or REDIRECT. @family: of the
 * table; decides which of two structs an early revision has. */
void nat_xt_target(struct nat_rules *r, const char *name, unsigned revision, uint8_t family,
		   const void *data, size_t len);
