#include "guestagent/ports_list.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

static_assert(sizeof(struct port) == 20, "ports are compared by memcmp(): no padding");

void sock_list_done(struct sock_list *l)
{
	free(l->items);
	*l = (struct sock_list){ 0 };
}

static bool addr_is_reachable(const struct port *p)
{
	struct in6_addr a;

	if (p->family == AF_INET)
		return (p->addr[0] & 0xf0) != 0xe0;	/* 224.0.0.0/4 */
	memcpy(&a, p->addr, sizeof(a));
	return !IN6_IS_ADDR_MULTICAST(&a) && !IN6_IS_ADDR_LINKLOCAL(&a);
}

void sock_list_add(struct sock_list *l, int proto, int family, const void *addr, uint16_t port,
		   bool connected, uint64_t cookie)
{
	struct sock s = { .connected = connected, .cookie = cookie };
	struct in6_addr a6;

	s.port.proto = (uint8_t)proto;
	s.port.family = (uint8_t)family;
	s.port.port = port;
	memcpy(s.port.addr, addr, family == AF_INET ? 4 : 16);
	if (family == AF_INET6) {
		memcpy(&a6, addr, sizeof(a6));
		if (IN6_IS_ADDR_V4MAPPED(&a6)) {
			s.port.family = AF_INET;
			memset(s.port.addr, 0, sizeof(s.port.addr));
			memcpy(s.port.addr, a6.s6_addr + 12, 4);
		}
	}
	if (port == 0 || !addr_is_reachable(&s.port))
		return;
	if (l->len == SOCK_LIST_MAX) {
		l->full = true;
		return;
	}
	if (l->len == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 64;
		l->items = xreallocarray(l->items, l->cap, sizeof(*l->items));
	}
	l->items[l->len++] = s;
}

void port_set_done(struct port_set *s)
{
	free(s->items);
	*s = (struct port_set){ 0 };
}

void port_set_add(struct port_set *s, const struct port *p)
{
	if (s->len == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 32;
		s->items = xreallocarray(s->items, s->cap, sizeof(*s->items));
	}
	s->items[s->len++] = *p;
}

void port_set_add_all(struct port_set *s, const struct port_set *more)
{
	for (size_t i = 0; i < more->len; i++)
		port_set_add(s, &more->items[i]);
}

static int port_compare(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct port));
}

bool port_set_seal(struct port_set *s)
{
	size_t n = 0;

	if (s->len == 0)
		return true;
	qsort(s->items, s->len, sizeof(*s->items), port_compare);
	for (size_t i = 1; i < s->len; i++)
		if (port_compare(&s->items[n], &s->items[i]) != 0)
			s->items[++n] = s->items[i];
	s->len = MIN(n + 1, (size_t)PORT_SET_MAX);
	return n + 1 <= PORT_SET_MAX;
}

void port_set_diff(const struct port_set *before, const struct port_set *now,
		   struct port_set *ret_added, struct port_set *ret_removed)
{
	size_t b = 0, n = 0;

	while (b < before->len || n < now->len) {
		int order = b == before->len ? 1
			    : n == now->len
				    ? -1
				    : port_compare(&before->items[b], &now->items[n]);

		if (order < 0)
			port_set_add(ret_removed, &before->items[b]);
		else if (order > 0)
			port_set_add(ret_added, &now->items[n]);
		b += order <= 0;
		n += order >= 0;
	}
}

const char *port_ip(const struct port *p, char out[INET6_ADDRSTRLEN])
{
	return inet_ntop(p->family, p->addr, out, INET6_ADDRSTRLEN);
}

const char *port_proto(const struct port *p)
{
	return p->proto == IPPROTO_TCP ? "tcp" : "udp";
}
