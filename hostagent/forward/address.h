/* address.h - IP addresses with ports, as numbers and as text
 *
 * The one form in memory is struct in6_addr with IPv4 as ::ffff:a.b.c.d, the
 * one form in texts is "127.0.0.1:80" and "[::1]:80". Ports are host byte order.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

enum { ADDRESS_TEXT_SIZE = INET6_ADDRSTRLEN + sizeof("[]:65535") };

struct in6_addr address_v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d);
bool address_equal(const struct in6_addr *a, const struct in6_addr *b);
bool address_is_v4(const struct in6_addr *ip);
bool address_is_wildcard(const struct in6_addr *ip);    /* 0.0.0.0 or :: */
bool address_is_v4_loopback(const struct in6_addr *ip); /* 127.0.0.1, no other 127/8 */
/* Both IPv6: at one port there is room for one of them only. */
bool address_in_the_way(const struct in6_addr *a, const struct in6_addr *b);

/* An AF_INET address when @ip is IPv4, AF_INET6 otherwise; returns its length. */
socklen_t address_to_sockaddr(const struct in6_addr *ip, uint16_t port,
			      struct sockaddr_storage *ret);

/* The other way round; false when @text is not one. Port 0 is none. */
bool address_parse(const char *text, struct in6_addr *ret_ip, uint16_t *ret_port);

/* Writes to and returns @out. */
const char *address_text(const struct in6_addr *ip, uint16_t port, char out[ADDRESS_TEXT_SIZE]);
