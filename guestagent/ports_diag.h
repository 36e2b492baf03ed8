/* ports_diag.h - asks the kernel which sockets serve, in our network namespace
 *
 * NETLINK_SOCK_DIAG with a state filter: only listening TCP sockets and bound
 * UDP sockets are walked and copied, so 20,000 connections cost nothing
 * (prototypes/ports.md, "Cost of one full scan": 0.2 ms where /proc needs
 * 349 ms). Kernels without tcp_diag/udp_diag answer ENOENT; then /proc/net is
 * read (ports_proc.h), and netlink asked again when ports_diag_retry() was
 * called, since the modules may become loadable later in boot. What worked once and
 * fails for another reason (no memory, no descriptor) will work again: /proc, whose
 * names for sockets are others, is no help then.
 *
 * A dump is synchronous: the kernel produces the next part inside recv(), so it
 * takes CPU but never waits for anybody. Somebody waits for it, though: listening
 * TCP sockets of both families are asked for at once, and what few sockets there
 * are takes two calls.
 */
#pragma once

#include "guestagent/ports_list.h"
#include "lib/base/error.h"

struct ports_diag;

struct ports_diag *ports_diag_new(void);
void ports_diag_free(struct ports_diag *d);
/* Appends every candidate of @proto (IPPROTO_TCP, IPPROTO_UDP), IPv4 and IPv6; nothing when
 * it fails. */
int ports_diag_dump(struct ports_diag *d, int proto, struct sock_list *ret, struct error *err);
/* Where /proc had to be used, try netlink again at the next dump. */
void ports_diag_retry(struct ports_diag *d);
/* The last dump was /proc's; its cookies are inodes (ports_proc.h). */
bool ports_diag_by_proc(const struct ports_diag *d);
/* Never ask netlink: for tests of the other way. */
void ports_diag_use_proc(struct ports_diag *d);
