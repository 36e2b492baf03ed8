#include "guestagent/ports_diag.h"

#include <assert.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestagent/ports_proc.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	REPLY_BYTES = 32 * 1024,	/* the kernel fills at most this much per recv() */
	INTR_RETRIES = 3,
};

struct ports_diag {
	int fd;			/* -1: not open (yet) */
	uint32_t seq;
	bool proc_only;		/* asked for by ports_diag_use_proc() */
	bool proc_now;		/* netlink does not work at present */
	_Alignas(struct nlmsghdr) uint8_t reply[REPLY_BYTES];
};

/* TCP_CLOSE is "bound, not connected" for UDP, TCP_ESTABLISHED "connected": a
 * server that connected to its first client stays a server (ports_udp.h). */
static const struct query {
	int family, proto;
	uint32_t states;
} queries[] = {
	{ AF_INET, IPPROTO_TCP, 1u << TCP_LISTEN },
	{ AF_INET6, IPPROTO_TCP, 1u << TCP_LISTEN },
	{ AF_INET, IPPROTO_UDP, 1u << TCP_CLOSE | 1u << TCP_ESTABLISHED },
	{ AF_INET6, IPPROTO_UDP, 1u << TCP_CLOSE | 1u << TCP_ESTABLISHED },
};

struct ports_diag *ports_diag_new(void)
{
	struct ports_diag *d = xnew(struct ports_diag);

	d->fd = -1;
	return d;
}

void ports_diag_free(struct ports_diag *d)
{
	if (d->fd >= 0)
		close(d->fd);
	free(d);
}

void ports_diag_retry(struct ports_diag *d)
{
	d->proc_now = false;
}

void ports_diag_use_proc(struct ports_diag *d)
{
	d->proc_only = true;
}

static int diag_open(struct ports_diag *d, struct error *err)
{
	if (d->fd >= 0)
		return 0;
	d->fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);
	if (d->fd < 0)
		return error_sys(err, -errno, "sock_diag: socket");
	return 0;
}

/* A half-read dump would mix with the next one: begin with a new socket. */
static void diag_reset(struct ports_diag *d)
{
	if (d->fd >= 0)
		close(d->fd);
	d->fd = -1;
}

static int diag_send(struct ports_diag *d, const struct query *q, struct error *err)
{
	struct {
		struct nlmsghdr head;
		struct inet_diag_req_v2 req;
	} msg = {
		.head = { .nlmsg_len = sizeof(msg),
			  .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
			  .nlmsg_seq = ++d->seq },
		.req = { .sdiag_family = (uint8_t)q->family,
			 .sdiag_protocol = (uint8_t)q->proto,
			 .idiag_states = q->states },
	};

	if (send(d->fd, &msg, sizeof(msg), 0) < 0)
		return error_sys(err, -errno, "sock_diag: request");
	return 0;
}

static void take_socket(const struct query *q, const struct inet_diag_msg *m, struct sock_list *ret)
{
	uint64_t cookie = m->id.idiag_cookie[0] | (uint64_t)m->id.idiag_cookie[1] << 32;

	if (m->idiag_family != q->family)	/* an IPv6 dump may list IPv4 sockets */
		return;
	sock_list_add(ret, q->proto, q->family, m->id.idiag_src, ntohs(m->id.idiag_sport),
		      q->proto == IPPROTO_UDP && m->idiag_state == TCP_ESTABLISHED, cookie);
}

/* One datagram of the answer. 1: that was the end; 0: more follows. */
static int take_reply(struct ports_diag *d, const struct query *q, size_t len,
		      struct sock_list *ret, struct error *err)
{
	const struct nlmsghdr *h = (const void *)d->reply;

	for (; NLMSG_OK(h, len); h = NLMSG_NEXT(h, len)) {
		if (h->nlmsg_seq != d->seq)
			continue;
		if (h->nlmsg_flags & NLM_F_DUMP_INTR)
			return error_set(err, -EINTR, "sock_diag: dump interrupted");
		if (h->nlmsg_type == NLMSG_DONE)
			return 1;
		if (h->nlmsg_type == NLMSG_ERROR) {
			const struct nlmsgerr *e = NLMSG_DATA(h);
			int code = h->nlmsg_len >= NLMSG_LENGTH(sizeof(*e)) ? e->error : -EPROTO;

			return error_sys(err, code < 0 ? code : -EPROTO, "sock_diag: dump");
		}
		if (h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
			take_socket(q, NLMSG_DATA(h), ret);
	}
	return 0;
}

static int diag_query(struct ports_diag *d, const struct query *q, struct sock_list *ret,
		      struct error *err)
{
	int rc = diag_open(d, err);

	if (rc == 0)
		rc = diag_send(d, q, err);
	while (rc == 0) {
		ssize_t n = recv(d->fd, d->reply, sizeof(d->reply), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = error_sys(err, -errno, "sock_diag: answer");
		else
			rc = take_reply(d, q, (size_t)n, ret, err);
	}
	if (rc < 0)
		diag_reset(d);
	return rc < 0 ? rc : 0;
}

static int query_with_retry(struct ports_diag *d, const struct query *q, struct sock_list *ret,
			    struct error *err)
{
	size_t start = ret->len;
	int rc = -EINTR;

	for (int i = 0; rc == -EINTR && i < INTR_RETRIES; i++) {
		ret->len = start;
		rc = diag_query(d, q, ret, err);
	}
	return rc;
}

int ports_diag_dump(struct ports_diag *d, struct sock_list *ret, struct error *err)
{
	struct error why = ERROR_NONE;
	size_t start = ret->len;

	if (d->proc_only || d->proc_now)
		return ports_proc_dump(ret, err);
	for (size_t i = 0; i < ARRAY_SIZE(queries); i++) {
		int rc = query_with_retry(d, &queries[i], ret, &why);

		/* ENOENT: no handler (module) for this family, as where IPv6 is
		 * left out of the kernel; /proc knows all there is. */
		if (rc < 0) {
			log_debug("ports: %s, reading /proc/net", why.msg);
			ret->len = start;
			d->proc_now = true;
			return ports_proc_dump(ret, err);
		}
	}
	return 0;
}
