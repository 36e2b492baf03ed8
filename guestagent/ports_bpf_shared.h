/* ports_bpf_shared.h - what ports.bpf.c and ports_bpf.c agree on */
#pragma once

enum udp_seen {
	UDP_SEEN_PORT_CHOSEN = 1,	/* bind() named the port */
	UDP_SEEN_PORT_KERNEL = 2,	/* bind() to port 0 */
	UDP_SEEN_BEFORE_US = 3,		/* found by a dump; only its end is of interest */
};

enum { UDP_SEEN_MAX = 65536 };

enum kick {
	KICK_TCP = 1,
	KICK_UDP = 2,
};

enum {
	KICKS_BYTES = 4096,	/* of the ring; libbpf makes whole pages of it */
	KICK_BYTES = 16,	/* of it, one kick: the kernel's header and a __u64 */
};
