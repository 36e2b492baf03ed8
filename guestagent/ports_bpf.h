/* ports_bpf.h - a kick from the kernel when listening sockets change
 *
 * Loads ports.bpf.c (embedded in the agent) and calls @kick on the loop for
 * each burst of changes, with the protocols they are about (PORTS_TCP, PORTS_UDP).
 * Says nothing else about what changed. Two parts may work
 * each alone: TCP needs a raw tracepoint, UDP a cgroup v2 mount. Everything is
 * gone from the kernel when the agent is, however it ends.
 *
 * Without clang at build time ports_bpf_none.c stands in, which always fails.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "guestagent/ports_udp.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct ports_bpf;

/* @wanted: PORTS_*. Fails when the kernel has none of these parts (too old, not root,
 * not built in). */
int ports_bpf_new(struct loop *loop, unsigned wanted, void (*kick)(void *arg, unsigned protos),
		  void *arg, struct ports_bpf **ret, struct error *err);
bool ports_bpf_has_tcp(const struct ports_bpf *b);
bool ports_bpf_has_udp(const struct ports_bpf *b);

/* How the UDP socket got its port. A socket that BPF had not seen is remembered,
 * so that its end will kick. */
enum udp_bind ports_bpf_udp_bind(struct ports_bpf *b, uint64_t cookie);

/* No kick follows; @closed runs when all is freed. */
void ports_bpf_close(struct ports_bpf *b, void (*closed)(void *arg), void *arg);
