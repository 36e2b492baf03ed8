#include "hostagent/forward/udp_local.h"

#include <string.h>

#include "hostagent/forward/address.h"

void udp_local_enable(int fd)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	int on = 1;

	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return;
	if (sa.ss_family == AF_INET6) {
		if (IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)&sa)->sin6_addr))
			setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
	} else if (((struct sockaddr_in *)&sa)->sin_addr.s_addr == INADDR_ANY) {
		setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on));
	}
}

void udp_local_prepare(struct msghdr *msg, struct udp_local_buf *buf)
{
	msg->msg_control = buf->space;
	msg->msg_controllen = sizeof(buf->space);
}

struct in6_addr udp_local_of(struct msghdr *msg)
{
	struct in6_addr local = in6addr_any;
	struct in6_pktinfo info6;
	struct in_pktinfo info;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			memcpy(&info, CMSG_DATA(c), sizeof(info));
			local = address_v4(0, 0, 0, 0);
			memcpy(local.s6_addr + 12, &info.ipi_addr, sizeof(info.ipi_addr));
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			memcpy(&info6, CMSG_DATA(c), sizeof(info6));
			local = info6.ipi6_addr;
		}
	}
	return local;
}

static void add_cmsg(struct msghdr *msg, struct udp_local_buf *buf, int level, int type,
		     const void *data, size_t len)
{
	struct cmsghdr *c;

	memset(buf, 0, sizeof(*buf));
	msg->msg_control = buf->space;
	msg->msg_controllen = CMSG_SPACE(len);
	c = CMSG_FIRSTHDR(msg);
	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), data, len);
}

void udp_local_answer(struct msghdr *msg, struct udp_local_buf *buf, const struct in6_addr *local)
{
	struct in6_pktinfo info6 = { .ipi6_addr = *local };
	struct in_pktinfo info = { 0 };

	if (IN6_IS_ADDR_UNSPECIFIED(local))
		return;
	if (address_is_v4(local) && ((struct sockaddr *)msg->msg_name)->sa_family == AF_INET) {
		memcpy(&info.ipi_spec_dst, local->s6_addr + 12, sizeof(info.ipi_spec_dst));
		add_cmsg(msg, buf, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info));
	} else {
		add_cmsg(msg, buf, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6));
	}
}
