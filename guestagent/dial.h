/* dial.h - "ip:port" as the host writes it, and what to connect to for it */
#pragma once

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

enum { DIAL_MAX = 4 };	/* two of the text, two of ports_nat_dial() */

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
