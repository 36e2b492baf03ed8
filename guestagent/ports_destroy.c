#include "guestagent/ports_destroy.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"

struct ports_destroy {
	uv_poll_t poll;
	int fd;
	void (*kick)(void *arg);
	void *arg;
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* Of an IPv4 or IPv6 socket, whose peer's port is 0. */
static const struct sock_filter no_peer[] = {
	BPF_STMT(BPF_LD | BPF_H | BPF_ABS,
		 NLMSG_HDRLEN + offsetof(struct inet_diag_msg, id.idiag_dport)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	BPF_STMT(BPF_RET | BPF_K, 0),
};

static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct ports_destroy *d = poll->data;
	uint8_t sink[64];

	if (d->closing)
		return;
	/* an overflow says as much as a message */
	while (recv(d->fd, sink, sizeof(sink), MSG_DONTWAIT | MSG_TRUNC) >= 0 || errno == ENOBUFS ||
	       errno == EINTR)
		;
	d->kick(d->arg);
}

static int join(int fd, bool tcp, bool udp)
{
	const struct {
		bool wanted;
		int group;
	} groups[] = {
		{ tcp, SKNLGRP_INET_TCP_DESTROY },
		{ tcp, SKNLGRP_INET6_TCP_DESTROY },
		{ udp, SKNLGRP_INET_UDP_DESTROY },
		{ udp, SKNLGRP_INET6_UDP_DESTROY },
	};

	for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
		if (groups[i].wanted && setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP,
						   &groups[i].group, sizeof(groups[i].group)) < 0)
			return -errno;
	return 0;
}

int ports_destroy_new(struct loop *loop, bool tcp, bool udp, void (*kick)(void *arg), void *arg,
		      struct ports_destroy **ret, struct error *err)
{
	struct sock_fprog prog = { .len = ARRAY_SIZE(no_peer), .filter = (struct sock_filter *)no_peer };
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK };
	scoped_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK,
				  NETLINK_SOCK_DIAG);
	scoped_free struct ports_destroy *d = xnew(struct ports_destroy);
	int rc;

	if (fd < 0)
		return error_sys(err, -errno, "sock_diag: socket for events");
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) < 0 ||
	    bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_sys(err, -errno, "sock_diag: events");
	rc = join(fd, tcp, udp);
	if (rc == 0)
		rc = uv_poll_init(&loop->uv, &d->poll, fd);
	if (rc < 0)
		return error_sys(err, rc, "sock_diag: events");
	d->poll.data = d;
	d->kick = kick;
	d->arg = arg;
	d->fd = steal_fd(&fd);
	uv_poll_start(&d->poll, UV_READABLE, on_readable);
	*ret = steal_ptr(&d);
	return 0;
}

static void on_closed(uv_handle_t *h)
{
	struct ports_destroy *d = h->data;
	void (*closed)(void *arg) = d->closed;
	void *arg = d->closed_arg;

	close(d->fd);
	free(d);
	closed(arg);
}

void ports_destroy_close(struct ports_destroy *d, void (*closed)(void *arg), void *arg)
{
	d->closing = true;
	d->closed = closed;
	d->closed_arg = arg;
	uv_close((uv_handle_t *)&d->poll, on_closed);
}
