/* udp_local.h - answer from the address that was asked
 *
 * A socket bound to a wildcard would answer from whatever address the route
 * suggests, and a connected client drops what comes from elsewhere. So the
 * address each datagram was sent to is asked for (IP_PKTINFO, ip(7); RFC 3542
 * §6.1) and given back with the answer. Sockets of one address need none of it.
 */
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

enum { UDP_LOCAL_SPACE = CMSG_SPACE(sizeof(struct in6_pktinfo)) };

struct udp_local_buf {
	char space[UDP_LOCAL_SPACE] __attribute__((aligned(__alignof__(struct cmsghdr))));
};

/* Asks for it when @fd is bound to a wildcard. */
void udp_local_enable(int fd);
/* Room for the answer in @msg, before recvmsg(). */
void udp_local_prepare(struct msghdr *msg, struct udp_local_buf *buf);
/* After recvmsg(): the local address, :: when not told. */
struct in6_addr udp_local_of(struct msghdr *msg);
/* For sendmsg(): @local, unless it is ::. */
void udp_local_answer(struct msghdr *msg, struct udp_local_buf *buf, const struct in6_addr *local);
