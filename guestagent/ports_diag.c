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
	REPLY_BYTES = 32 * 1024,	/* the kernel fills at most this much per datagram */
	REPLIES = 2,			/* taken by one call: sockets, and the end of the dump */
	INTR_RETRIES = 3,
};

struct ports_diag {
	int fd;			/* -1: not open (yet) */
	uint32_t seq;
	bool proc_only;		/* asked for by ports_diag_use_proc() */
	bool proc_now;		/* netlink does not work at present */
	unsigned worked;	/* PORTS_*: of which there was an answer once */
	bool by_family;		/* the kernel does not know both_families */
	_Alignas(struct nlmsghdr) uint8_t reply[REPLIES][REPLY_BYTES];
};

/* TCP_CLOSE is "bound, not connected" for UDP, TCP_ESTABLISHED "connected": a
 * server that connected to its first client stays a server (ports_udp.h). */
static const struct query {
	int family, proto;	/* AF_UNSPEC: both, by TCPDIAG_GETSOCK */
	uint32_t states;
} queries[] = {
	{ AF_INET, IPPROTO_TCP, 1u << TCP_LISTEN },
	{ AF_INET6, IPPROTO_TCP, 1u << TCP_LISTEN },
	{ AF_INET, IPPROTO_UDP, 1u << TCP_CLOSE | 1u << TCP_ESTABLISHED },
	{ AF_INET6, IPPROTO_UDP, 1u << TCP_CLOSE | 1u << TCP_ESTABLISHED },
};

/* The request from before SOCK_DIAG_BY_FAMILY names no family, and its dump has all
 * (Linux net/ipv4/inet_diag.c, inet_diag_dump_compat()). For TCP only. */
static const struct query both_families = { AF_UNSPEC, IPPROTO_TCP, 1u << TCP_LISTEN };

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
	d->proc_now = d->by_family = false;
}

void ports_diag_use_proc(struct ports_diag *d)
{
	d->proc_only = true;
}

bool ports_diag_by_proc(const struct ports_diag *d)
{
	return d->proc_only || d->proc_now;
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
	bool both = q->family == AF_UNSPEC;
	struct {
		struct nlmsghdr head;
		union {
			struct inet_diag_req_v2 one;
			struct inet_diag_req both;
		} req;
	} msg = {
		.head = { .nlmsg_type = both ? TCPDIAG_GETSOCK : SOCK_DIAG_BY_FAMILY,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
			  .nlmsg_seq = ++d->seq },
	};

	if (both)
		msg.req.both = (struct inet_diag_req){ .idiag_states = q->states };
	else
		msg.req.one = (struct inet_diag_req_v2){ .sdiag_family = (uint8_t)q->family,
							 .sdiag_protocol = (uint8_t)q->proto,
							 .idiag_states = q->states };
	msg.head.nlmsg_len = NLMSG_LENGTH(both ? sizeof(msg.req.both) : sizeof(msg.req.one));
	if (send(d->fd, &msg, msg.head.nlmsg_len, 0) < 0)
		return error_sys(err, -errno, "sock_diag: request");
	return 0;
}

static void take_socket(const struct query *q, const struct inet_diag_msg *m, struct sock_list *ret)
{
	uint64_t cookie = m->id.idiag_cookie[0] | (uint64_t)m->id.idiag_cookie[1] << 32;

	if (m->idiag_family != AF_INET && m->idiag_family != AF_INET6)
		return;
	/* an IPv6 dump may list IPv4 sockets */
	if (q->family != AF_UNSPEC && m->idiag_family != q->family)
		return;
	sock_list_add(ret, q->proto, m->idiag_family, m->id.idiag_src, ntohs(m->id.idiag_sport),
		      q->proto == IPPROTO_UDP && m->idiag_state == TCP_ESTABLISHED, cookie);
}

/* One datagram of the answer. 1: that was the end; 0: more follows. */
static int take_reply(struct ports_diag *d, const struct query *q, const uint8_t *reply, size_t len,
		      struct sock_list *ret, struct error *err)
{
	const struct nlmsghdr *h = (const void *)reply;

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

/* As take_reply(), of what is there: the kernel has the first part ready when the
 * request returns, and each next one when the one before was taken. */
static int take_replies(struct ports_diag *d, const struct query *q, struct sock_list *ret,
			struct error *err)
{
	struct iovec iov[REPLIES];
	struct mmsghdr msgs[REPLIES] = { 0 };
	int n, rc = 0;

	for (int i = 0; i < REPLIES; i++) {
		iov[i] = (struct iovec){ d->reply[i], sizeof(d->reply[i]) };
		msgs[i].msg_hdr.msg_iov = &iov[i];
		msgs[i].msg_hdr.msg_iovlen = 1;
	}
	n = recvmmsg(d->fd, msgs, REPLIES, 0, NULL);
	if (n < 0)
		return errno == EINTR ? 0 : error_sys(err, -errno, "sock_diag: answer");
	for (int i = 0; i < n && rc == 0; i++)
		rc = take_reply(d, q, d->reply[i], msgs[i].msg_len, ret, err);
	return rc;
}

static int diag_query(struct ports_diag *d, const struct query *q, struct sock_list *ret,
		      struct error *err)
{
	int rc = diag_open(d, err);

	if (rc == 0)
		rc = diag_send(d, q, err);
	while (rc == 0)
		rc = take_replies(d, q, ret, err);
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

/* False: families have to be asked for one by one. */
static bool dump_both_families(struct ports_diag *d, struct sock_list *ret)
{
	struct error why = ERROR_NONE;
	size_t start = ret->len;

	if (d->by_family || query_with_retry(d, &both_families, ret, &why) == 0)
		return !d->by_family;
	log_debug("ports: %s, asking for each family", why.msg);
	ret->len = start;
	d->by_family = true;
	return false;
}

static int dump_each_family(struct ports_diag *d, int proto, struct sock_list *ret,
			    struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(queries) && rc == 0; i++)
		if (queries[i].proto == proto)
			rc = query_with_retry(d, &queries[i], ret, err);
	return rc;
}

/* ENOENT: no handler (module) for this family or protocol, as where IPv6 is left out of
 * the kernel; the others: not even sock_diag. */
static bool is_missing(int code)
{
	return code == -ENOENT || code == -EOPNOTSUPP || code == -EPROTONOSUPPORT;
}

int ports_diag_dump(struct ports_diag *d, int proto, struct sock_list *ret, struct error *err)
{
	unsigned bit = proto == IPPROTO_TCP ? PORTS_TCP : PORTS_UDP;
	struct error why = ERROR_NONE;
	size_t start = ret->len;

	if (ports_diag_by_proc(d))
		return ports_proc_dump(proto, ret, err);
	if ((proto == IPPROTO_TCP && dump_both_families(d, ret)) ||
	    dump_each_family(d, proto, ret, &why) == 0) {
		d->worked |= bit;
		return 0;
	}
	ret->len = start;
	if (d->worked & bit && !is_missing(why.code)) {
		*err = why;
		return err->code;
	}
	log_debug("ports: %s, reading /proc/net", why.msg);
	d->proc_now = true;
	return ports_proc_dump(proto, ret, err);
}
