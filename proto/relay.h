/* relay.h - what the two ends of a vsock data connection say before the bytes
 *
 * One connection of the guest's vsock per forwarded TCP connection. The host
 * opens it ahead of time; when it has a client for it, it sends a relay_hello
 * and, right behind, whatever the client sends. The guest agent connects to the
 * address and answers with one relay_reply; then it is bytes both ways, and the
 * ends of directions are vsock's own (see lib/virtio/vsock.h): shutdown for FIN,
 * close without it for RST.
 *
 * The agent may wait a few milliseconds with a reply of "connected" so that it
 * travels with the server's first bytes; a refusal goes at once, and then the
 * connection is closed.
 *
 * Fixed size, network byte order, no texts: nothing to parse wrongly.
 */
#pragma once

#include <stdint.h>

enum {
	/* Where the agent listens, any CID; told by Info and Event. Below 1024: only
	 * root binds it in the guest (net/vmw_vsock/af_vsock.c, LAST_RESERVED_PORT). */
	RELAY_VSOCK_PORT = 722,
	RELAY_MAGIC = 0x4c52,		/* "LR" */
	RELAY_TCP = 6,			/* IPPROTO_TCP */
};

struct relay_hello {		/* host to guest */
	uint16_t magic;
	uint8_t version;	/* 1 */
	uint8_t proto;		/* RELAY_TCP */
	uint16_t port;		/* 1..65535 */
	uint16_t reserved;	/* 0 */
	uint8_t ip[16];		/* IPv4 as ::ffff:a.b.c.d */
};

struct relay_reply {		/* guest to host */
	uint16_t magic;
	uint16_t reserved;	/* 0 */
	uint32_t error;		/* 0 connected, else a Linux errno: 111 ECONNREFUSED */
};

_Static_assert(sizeof(struct relay_hello) == 24, "as it is on the wire");
_Static_assert(sizeof(struct relay_reply) == 8, "as it is on the wire");
