/* relay.h - what the two ends of a vsock data connection say before the bytes
 *
 * One connection of the guest's vsock per forwarded TCP connection, and when that is
 * over it serves the next one. The host opens them ahead of time; when it has a
 * client for one, it sends a relay_hello and, right behind, what the client sends.
 * The guest agent connects to the address and answers with one relay_reply. Behind
 * hello and reply both directions are frames: a length, 32 bits, and so many bytes.
 * Length 0 is the direction's end (FIN). When both have ended and all of it has gone
 * on to the server, the agent says so by another length that is none, "done" (which
 * stands for its end too, if that comes last), and the next hello may come.
 *
 *	host	hello | 5 hello | 3 you | 0			hello | …
 *	guest		reply | 8 hello to | 4 you! | 0 | done	  reply | …
 *
 * An end of the vsock connection itself is a reset (RST), of either side. (Linux does
 * not show whether a vsock ended by a reset or in order; frames do.)
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
	RELAY_VERSION = 2,
	/* Where the agent listens, any CID; told by Info and Event. Below 1024: only
	 * root binds it in the guest (net/vmw_vsock/af_vsock.c, LAST_RESERVED_PORT). */
	RELAY_VSOCK_PORT = 722,
	/* … and on so many from there on. The guest's kernel looks for a packet's connection
	 * in one of 251 lists, by the peer's CID and the port here (af_vsock.c,
	 * VSOCK_CONN_HASH): on one port all are in one list, and each packet of the host's
	 * walks past thousands of them. */
	RELAY_VSOCK_PORTS = 64,
	RELAY_VSOCK_PORTS_MAX = 251,	/* more gain nothing */
	RELAY_MAGIC = 0x4c52,		/* "LR" */
	RELAY_TCP = 6,			/* IPPROTO_TCP */
	RELAY_FRAME_HEAD = 4,		/* bytes of a length */
	RELAY_FRAME_MAX = 1 << 24,
};

#define RELAY_FRAME_DONE 0xffffffffu

struct relay_ports {		/* of the guest's vsock, in a row */
	uint32_t first;		/* 0: the agent does not listen */
	uint32_t n;		/* 1..RELAY_VSOCK_PORTS_MAX */
};

struct relay_hello {		/* host to guest */
	uint16_t magic;
	uint8_t version;	/* RELAY_VERSION */
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
