/* nat_watch.h - says when address translation rules may have changed
 *
 * nf_tables tells of each transaction (group NFNLGRP_NFTABLES); a socket filter
 * lets only the message through that ends one, so that thousands of new rules
 * wake us once. iptables-legacy tells nobody, see ports_nat.h.
 *
 * Listening for nf_tables makes the kernel load its module. A guest that does
 * not use it is left alone: then we wait for the module itself to be loaded (a
 * kernel uevent, filtered likewise), or iptables-legacy's.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/loop.h"

struct nat_watch;

struct nat_watch *nat_watch_new(struct loop *loop, void (*changed)(void *arg), void *arg);
/* nf_tables is there to be asked. */
bool nat_watch_has_nft(const struct nat_watch *w);
void nat_watch_close(struct nat_watch *w, void (*closed)(void *arg), void *arg);
