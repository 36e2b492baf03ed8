/* dial.h - "ip:port" as the host writes it, and what to connect to for it */
#pragma once

#include <assert.h>
#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
	DIAL_MAX = 4,		/* two of the text, two of ports_nat_dial() */
	/* How long an address may be silent: one with others behind it, which are tried
	 * then, and the last. A busy server: SYN goes again after 1, 3, 7, 15 s. When those
	 * behind refuse, the first that was silent is the last. */
	DIAL_NEXT_MS = 3 * 1000,
	DIAL_LAST_MS = 20 * 1000,
	DIAL_HOST_WAITS_MS = 30 * 1000,	/* forward.h, open_wait_ms */
};

static_assert((DIAL_MAX - 1) * DIAL_NEXT_MS + DIAL_LAST_MS < DIAL_HOST_WAITS_MS,
	      "the host hears why");

union dial_addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

struct dial {
	unsigned len;	/* 1..DIAL_MAX; to be tried in this order */
	union dial_addr addrs[DIAL_MAX];
};

/* Reads "a.b.c.d:port" or "[v6]:port", numbers only, port 1..65535; anything
 * else is -EINVAL. A server on the wildcard address is reached by loopback;
 * for "::" by ::1 and then 127.0.0.1, since ::1 may be missing in the guest. */
int dial_parse(const char *text, struct dial *ret);
/* The same from binary: network byte order, IPv4 as ::ffff:a.b.c.d; port 1..65535. */
void dial_from_bytes(const uint8_t ip[16], uint16_t port, struct dial *ret);
/* Before connect() on a TCP socket, while @others are connected. Over loopback the
 * kernel takes some MiB of a server for each connection before we have read them, and
 * when a crowd of those uses up the guest's TCP memory, the ones whose server has
 * closed are thrown away with what is left in them (Linux tcp_close(),
 * TCPAbortOnMemory; tcp_mem in tcp(7)). So only the first few have the kernel's own
 * sizes, which are a tenth faster. */
void dial_set_buffers(int fd, unsigned others);
