#include "hostagent/forward/udp_refused.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <stddef.h>

void udp_refused_enable(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on));
	setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof(on)); /* not on IPv4 sockets */
}

static bool says_refused(struct msghdr *msg)
{
	struct sock_extended_err *e;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (!(c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) &&
		    !(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
			continue;
		e = (struct sock_extended_err *)CMSG_DATA(c);
		if (e->ee_errno == ECONNREFUSED)
			return true;
	}
	return false;
}

bool udp_refused_next(int fd, struct sockaddr_storage *ret_client)
{
	/* the error and the address of who sent it, of either family */
	char control[256] __attribute__((aligned(__alignof__(struct cmsghdr))));
	char payload[1]; /* our own datagram comes back: not needed */
	struct iovec iov = { payload, sizeof(payload) };

	for (;;) {
		struct msghdr msg = { .msg_name = ret_client,
				      .msg_namelen = sizeof(*ret_client),
				      .msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = control,
				      .msg_controllen = sizeof(control) };

		if (recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			return false;
		if (msg.msg_namelen > 0 && says_refused(&msg))
			return true;
	}
}

int udp_refused_begin(int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	in_port_t discard = htons(9);

	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return -errno;
	/* the same address, a port that no client of ours has: below the ephemeral ones */
	if (sa.ss_family == AF_INET)
		((struct sockaddr_in *)&sa)->sin_port = discard;
	else
		((struct sockaddr_in6 *)&sa)->sin6_port = discard;
	return connect(fd, (struct sockaddr *)&sa, len) < 0 ? -errno : 0;
}

int udp_refused_end(int fd)
{
	struct sockaddr nobody = { .sa_family = AF_UNSPEC }; /* connect(2) */

	return connect(fd, &nobody, sizeof(nobody)) < 0 ? -errno : 0;
}
