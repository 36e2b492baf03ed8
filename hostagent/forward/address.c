#include "hostagent/forward/address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

struct in6_addr address_v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
	return (struct in6_addr){ .s6_addr = { [10] = 0xff, 0xff, a, b, c, d } };
}

bool address_equal(const struct in6_addr *a, const struct in6_addr *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

bool address_is_v4(const struct in6_addr *ip)
{
	return IN6_IS_ADDR_V4MAPPED(ip);
}

bool address_is_wildcard(const struct in6_addr *ip)
{
	struct in6_addr zero = address_v4(0, 0, 0, 0);

	return IN6_IS_ADDR_UNSPECIFIED(ip) || address_equal(ip, &zero);
}

bool address_is_v4_loopback(const struct in6_addr *ip)
{
	struct in6_addr loopback = address_v4(127, 0, 0, 1);

	return address_equal(ip, &loopback);
}

bool address_in_the_way(const struct in6_addr *a, const struct in6_addr *b)
{
	return address_equal(a, b) || IN6_IS_ADDR_UNSPECIFIED(a) || IN6_IS_ADDR_UNSPECIFIED(b);
}

socklen_t address_to_sockaddr(const struct in6_addr *ip, uint16_t port,
			      struct sockaddr_storage *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (address_is_v4(ip)) {
		struct sockaddr_in *sin = (struct sockaddr_in *)ret;

		sin->sin_family = AF_INET;
		sin->sin_port = htons(port);
		memcpy(&sin->sin_addr, ip->s6_addr + 12, sizeof(sin->sin_addr));
		return sizeof(*sin);
	}
	struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)ret;

	sin6->sin6_family = AF_INET6;
	sin6->sin6_port = htons(port);
	sin6->sin6_addr = *ip;
	return sizeof(*sin6);
}

const char *address_text(const struct in6_addr *ip, uint16_t port, char out[ADDRESS_TEXT_SIZE])
{
	char text[INET6_ADDRSTRLEN];

	if (address_is_v4(ip)) {
		inet_ntop(AF_INET, ip->s6_addr + 12, text, sizeof(text));
		snprintf(out, ADDRESS_TEXT_SIZE, "%s:%u", text, port);
	} else {
		inet_ntop(AF_INET6, ip, text, sizeof(text));
		snprintf(out, ADDRESS_TEXT_SIZE, "[%s]:%u", text, port);
	}
	return out;
}

static bool parse_port(const char *text, uint16_t *ret)
{
	unsigned long port = 0;

	for (; *text >= '0' && *text <= '9' && port <= UINT16_MAX; text++)
		port = port * 10 + (unsigned long)(*text - '0');
	if (*text || port == 0 || port > UINT16_MAX)
		return false;
	*ret = (uint16_t)port;
	return true;
}

bool address_parse(const char *text, struct in6_addr *ret_ip, uint16_t *ret_port)
{
	bool v6 = *text == '[';
	const char *begin = text + v6, *end = strrchr(text, v6 ? ']' : ':');
	struct in6_addr ip = address_v4(0, 0, 0, 0);
	char host[INET6_ADDRSTRLEN];
	uint16_t port;

	if (!end || end < begin || (size_t)(end - begin) >= sizeof(host) || (v6 && end[1] != ':') ||
	    !parse_port(end + 1 + v6, &port))
		return false;
	memcpy(host, begin, (size_t)(end - begin));
	host[end - begin] = 0;
	if (inet_pton(v6 ? AF_INET6 : AF_INET, host, v6 ? ip.s6_addr : ip.s6_addr + 12) != 1)
		return false;
	*ret_ip = ip;
	*ret_port = port;
	return true;
}
