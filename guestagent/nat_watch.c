#include "guestagent/nat_watch.h"

#include <assert.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

enum { UEVENT_GROUP_KERNEL = 1 };	/* lib/kobject_uevent.c */

struct part {
	uv_poll_t poll;
	struct nat_watch *watch;
	int fd;			/* -1: not open */
};

struct nat_watch {
	struct loop *loop;
	void (*changed)(void *arg);
	void *arg;
	struct part nft, uevent;
	unsigned open_parts;
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* NFT_MSG_NEWGEN, which comes last, in a datagram of its own. A load from the
 * packet is big-endian, the field in the machine's order. */
static const struct sock_filter nft_filter[] = {
	BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 4),	/* nlmsg_type */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
		 __builtin_bswap16(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN), 0, 1),
	BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	BPF_STMT(BPF_RET | BPF_K, 0),
};
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "nft_filter swaps");

#define FOUR(a, b, c, d) ((uint32_t)(a) << 24 | (b) << 16 | (c) << 8 | (d))

/* "add@/module/" and then nf_tables, iptable_nat or ip6table_nat. */
static const struct sock_filter uevent_filter[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FOUR('a', 'd', 'd', '@'), 0, 8),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FOUR('/', 'm', 'o', 'd'), 0, 6),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 12),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FOUR('n', 'f', '_', 't'), 3, 0),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FOUR('i', 'p', 't', 'a'), 2, 0),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FOUR('i', 'p', '6', 't'), 1, 0),
	BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0),
	BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	BPF_STMT(BPF_RET | BPF_K, 0),
};

/* Listening will not load a module: it is loaded, built in, or cannot be. */
static bool nft_is_loaded(void)
{
	scoped_free char *path = NULL;
	struct utsname uts;
	char line[512];

	if (access("/sys/module/nf_tables", F_OK) == 0 || access("/proc/modules", F_OK) < 0)
		return true;
	uname(&uts);
	path = xasprintf("/lib/modules/%s/modules.builtin", uts.release);

	scoped_file FILE *f = fopen(path, "re");

	if (!f)
		return true;
	while (fgets(line, sizeof(line), f))
		if (strstr(line, "/nf_tables.ko"))
			return true;
	return false;
}

static void try_nft(struct nat_watch *w);

static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct part *p = poll->data;
	struct nat_watch *w = p->watch;
	uint8_t sink[64];

	if (w->closing)
		return;
	/* an overflow is a change as well */
	while (recv(p->fd, sink, sizeof(sink), MSG_DONTWAIT | MSG_TRUNC) >= 0 || errno == ENOBUFS ||
	       errno == EINTR)
		;
	try_nft(w);
	w->changed(w->arg);
}

static bool part_start(struct nat_watch *w, struct part *p, int protocol, int group,
		       const struct sock_filter *filter, size_t len)
{
	struct sock_fprog prog = { .len = (unsigned short)len, .filter = (struct sock_filter *)filter };
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK };

	p->watch = w;
	p->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
	if (p->fd < 0)
		return false;
	/* Without bind() nothing is delivered to a member of a group, either. */
	if (setsockopt(p->fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) < 0 ||
	    bind(p->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    setsockopt(p->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0 ||
	    uv_poll_init(&w->loop->uv, &p->poll, p->fd) < 0) {
		log_debug("ports: no events of netlink %d: %s", protocol, strerror(errno));
		close(p->fd);
		p->fd = -1;
		return false;
	}
	p->poll.data = p;
	w->open_parts++;
	uv_poll_start(&p->poll, UV_READABLE, on_readable);
	return true;
}

static void try_nft(struct nat_watch *w)
{
	if (w->nft.fd < 0 && nft_is_loaded())
		part_start(w, &w->nft, NETLINK_NETFILTER, NFNLGRP_NFTABLES, nft_filter,
			   ARRAY_SIZE(nft_filter));
}

struct nat_watch *nat_watch_new(struct loop *loop, void (*changed)(void *arg), void *arg)
{
	struct nat_watch *w = xnew(struct nat_watch);

	w->loop = loop;
	w->changed = changed;
	w->arg = arg;
	w->nft.fd = w->uevent.fd = -1;
	part_start(w, &w->uevent, NETLINK_KOBJECT_UEVENT, UEVENT_GROUP_KERNEL, uevent_filter,
		   ARRAY_SIZE(uevent_filter));
	try_nft(w);
	return w;
}

bool nat_watch_has_nft(const struct nat_watch *w)
{
	return w->nft.fd >= 0;
}

static void done(struct nat_watch *w)
{
	void (*closed)(void *arg) = w->closed;
	void *arg = w->closed_arg;

	free(w);
	closed(arg);
}

static void on_part_closed(uv_handle_t *h)
{
	struct part *p = h->data;
	struct nat_watch *w = p->watch;

	close(p->fd);
	if (--w->open_parts == 0)
		done(w);
}

static void done_later(void *arg)
{
	done(arg);
}

void nat_watch_close(struct nat_watch *w, void (*closed)(void *arg), void *arg)
{
	w->closing = true;
	w->closed = closed;
	w->closed_arg = arg;
	if (w->open_parts == 0)
		loop_post(w->loop, done_later, w);
	if (w->nft.fd >= 0)
		uv_close((uv_handle_t *)&w->nft.poll, on_part_closed);
	if (w->uevent.fd >= 0)
		uv_close((uv_handle_t *)&w->uevent.poll, on_part_closed);
}
