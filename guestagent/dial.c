#include "guestagent/dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int parse_port(const char *s, uint16_t *ret)
{
	unsigned long v = 0;

	if (*s == 0 || strlen(s) > 5)
		return -EINVAL;
	for (; *s; s++) {
		if (*s < '0' || *s > '9')
			return -EINVAL;
		v = 10 * v + (unsigned long)(*s - '0');
	}
	if (v < 1 || v > 65535)
		return -EINVAL;
	*ret = (uint16_t)v;
	return 0;
}

static void set_v4(struct dial *d, struct in_addr addr, uint16_t port)
{
	if (addr.s_addr == htonl(INADDR_ANY))
		addr.s_addr = htonl(INADDR_LOOPBACK);
	d->addrs[d->len++].in = (struct sockaddr_in){ .sin_family = AF_INET,
						      .sin_port = htons(port),
						      .sin_addr = addr };
}

static void set_v6(struct dial *d, struct in6_addr addr, uint16_t port)
{
	bool any = IN6_IS_ADDR_UNSPECIFIED(&addr);

	d->addrs[d->len++].in6 = (struct sockaddr_in6){ .sin6_family = AF_INET6,
							.sin6_port = htons(port),
							.sin6_addr = any ? in6addr_loopback : addr };
	if (any)
		set_v4(d, (struct in_addr){ htonl(INADDR_LOOPBACK) }, port);
}

int dial_parse(const char *text, struct dial *ret)
{
	const char *colon = strrchr(text, ':');
	char ip[INET6_ADDRSTRLEN];
	struct in6_addr v6;
	struct in_addr v4;
	struct dial d = { 0 };
	uint16_t port;
	size_t len;

	if (!colon || parse_port(colon + 1, &port) < 0)
		return -EINVAL;
	len = (size_t)(colon - text);
	if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
		if (len - 2 >= sizeof(ip))
			return -EINVAL;
		memcpy(ip, text + 1, len - 2);
		ip[len - 2] = 0;
		if (inet_pton(AF_INET6, ip, &v6) != 1)
			return -EINVAL;
		set_v6(&d, v6, port);
	} else {
		if (len >= sizeof(ip))
			return -EINVAL;
		memcpy(ip, text, len);
		ip[len] = 0;
		if (inet_pton(AF_INET, ip, &v4) != 1)
			return -EINVAL;
		set_v4(&d, v4, port);
	}
	*ret = d;
	return 0;
}

void dial_from_bytes(const uint8_t ip[16], uint16_t port, struct dial *ret)
{
	struct in6_addr v6;
	struct in_addr v4;

	ret->len = 0;
	memcpy(&v6, ip, sizeof(v6));
	if (IN6_IS_ADDR_V4MAPPED(&v6)) {
		memcpy(&v4, ip + 12, sizeof(v4));
		set_v4(ret, v4, port);
	} else {
		set_v6(ret, v6, port);
	}
}

void dial_set_buffers(int fd, unsigned others)
{
	enum { ROOMY_MAX = 16 };
	/* Shorter segments: the server's send buffer starts as ten of them
	 * (Linux tcp_sndbuf_expand()), and one is 64 KiB over loopback. */
	int window = 128 << 10, segment = 16 << 10;

	if (others <= ROOMY_MAX)
		return;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &window, sizeof(window));
	setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof(segment));
}
