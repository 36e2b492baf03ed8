#include "lib/virtio/vhost_user.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

/* QEMU docs/interop/vhost-user, "Message Specification"; host byte order */
struct header {
	uint32_t request, flags, size;
};

enum {
	FLAG_VERSION = 1, FLAG_VERSION_MASK = 3,
	FLAG_REPLY = 4,
	FLAG_NEED_REPLY = 8,
	NO_FD = 1 << 8,		/* in the word that comes with an eventfd */
	RING_MASK = 0xff,
	FDS_MAX = MEMORY_REGIONS_MAX,
	ACCEPT_AGAIN_MS = 250,	/* when there is no descriptor left */
};

struct memory_message {
	uint32_t n, padding;
	struct memory_range ranges[MEMORY_REGIONS_MAX];
};

struct ring_state {
	uint32_t ring, num;
};

struct ring_addr {
	uint32_t ring, flags;
	uint64_t desc, used, avail, log;
};

struct config_message {
	uint32_t offset, size, flags;
	uint8_t bytes[VHOST_USER_CONFIG_MAX];
};

union payload {
	uint64_t word;
	struct memory_message memory;
	struct ring_state state;
	struct ring_addr addr;
	struct config_message config;
};

/* virtio 1.2 §6, vhost-user "Protocol features" */
#define BIT(n) (1ull << (n))
static const uint64_t FEATURE_INDIRECT = BIT(28), FEATURE_EVENT_IDX = BIT(29),
		      FEATURE_PROTOCOL = BIT(30), FEATURE_VERSION_1 = BIT(32);
static const uint64_t PROTOCOL_MQ = BIT(0), PROTOCOL_REPLY_ACK = BIT(3), PROTOCOL_CONFIG = BIT(9);

static uint64_t features_offered(void)
{
	return FEATURE_INDIRECT | FEATURE_EVENT_IDX | FEATURE_PROTOCOL | FEATURE_VERSION_1;
}

static uint64_t protocol_offered(void)
{
	return PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG;
}

struct watch {			/* a polled descriptor; frees itself after closing */
	uv_poll_t poll;
	struct vhost_user *vu;	/* NULL once closed, but for its count of handles */
	struct vhost_user *counted;
	unsigned ring;
	int fd;
};

struct ring_setup {		/* beside the ring itself */
	struct watch *kick;
	uint16_t base;
	bool enabled;
	bool has_addr;
};

struct vhost_user {
	struct vhost_user_device dev;
	struct watch *listener;
	uv_timer_t again;	/* runs while the listener rests */
	struct watch *qemu;	/* NULL: nobody is connected */
	unsigned handles;
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;

	/* one connection's */
	uint64_t features, protocol;
	struct memory memory;
	struct ring_setup setup[VHOST_USER_RINGS_MAX];

	/* the message being read */
	struct header head;
	union payload body;
	size_t have;		/* bytes of both */
	int fds[FDS_MAX];
	unsigned n_fds;

	struct vring rings[VHOST_USER_RINGS_MAX];
};

struct vring *vhost_user_ring(struct vhost_user *vu, unsigned ring)
{
	assert(ring < vu->dev.n_rings);
	return &vu->rings[ring];
}

/* --- watched descriptors -------------------------------------------------- */

static void handle_is_closed(struct vhost_user *vu)
{
	if (--vu->handles > 0 || !vu->closing)
		return;
	vu->closed(vu->closed_arg);
	free(vu);
}

static void on_timer_closed(uv_handle_t *h)
{
	handle_is_closed(h->data);
}

static void on_watch_closed(uv_handle_t *h)
{
	struct watch *w = h->data;
	struct vhost_user *vu = w->counted;

	free(w);
	handle_is_closed(vu);
}

/* Takes @fd, also on failure. */
static struct watch *watch_new(struct vhost_user *vu, int fd, uv_poll_cb cb, struct error *err)
{
	struct watch *w = xnew(struct watch);
	int rc = uv_poll_init(&vu->dev.loop->uv, &w->poll, fd);	/* makes it non-blocking, too */

	if (rc < 0) {
		close(fd);
		free(w);
		error_sys(err, rc, "watch a descriptor");
		return NULL;
	}
	w->vu = w->counted = vu;
	w->fd = fd;
	w->poll.data = w;
	vu->handles++;
	rc = uv_poll_start(&w->poll, UV_READABLE, cb);
	assert(rc == 0);	/* fails for a descriptor that uv_poll_init refused */
	return w;
}

static void watch_close(struct watch **p)
{
	struct watch *w = *p;

	if (!w)
		return;
	*p = NULL;
	w->vu = NULL;
	uv_close((uv_handle_t *)&w->poll, on_watch_closed);
	close(w->fd);
}

/* --- rings ---------------------------------------------------------------- */

static bool ring_ready(const struct vhost_user *vu, unsigned i)
{
	const struct ring_setup *s = &vu->setup[i];

	/* "Ring states": without protocol features there is no enabling */
	return s->kick && s->has_addr && vu->memory.n &&
	       (s->enabled || !(vu->features & FEATURE_PROTOCOL));
}

static int ring_start_if_ready(struct vhost_user *vu, unsigned i, struct error *err)
{
	struct vring *r = &vu->rings[i];

	if (r->running || !ring_ready(vu, i))
		return 0;
	r->mem = &vu->memory;
	r->event_idx = vu->features & FEATURE_EVENT_IDX;
	r->indirect = vu->features & FEATURE_INDIRECT;
	if (vring_start(r, vu->setup[i].base, err) < 0)
		return error_wrap(err, "ring %u", i);
	vu->dev.started(vu->dev.arg, i);
	return 0;
}

static void ring_stop(struct vhost_user *vu, unsigned i)
{
	struct vring *r = &vu->rings[i];

	if (!r->running)
		return;
	vu->dev.stopping(vu->dev.arg, i);
	vu->setup[i].base = vring_stop(r);
}

static void on_kick(uv_poll_t *poll, int status, int events)
{
	struct watch *w = poll->data;
	struct vhost_user *vu = w->vu;
	uint64_t count;

	if (!vu || (read(w->fd, &count, sizeof(count)) < 0 && errno == EAGAIN))
		return;
	if (vu->rings[w->ring].running)
		vu->dev.kicked(vu->dev.arg, w->ring);
}

/* --- messages ------------------------------------------------------------- */

static void drop_fds(struct vhost_user *vu)
{
	while (vu->n_fds > 0)
		close(vu->fds[--vu->n_fds]);
}

static int take_fd(struct vhost_user *vu)
{
	return vu->n_fds ? vu->fds[--vu->n_fds] : -1;
}

static int reply(struct vhost_user *vu, const void *payload, size_t len, struct error *err)
{
	struct header head = { vu->head.request, FLAG_VERSION | FLAG_REPLY, (uint32_t)len };
	struct iovec iov[] = { { &head, sizeof(head) }, { (void *)payload, len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t n = sendmsg(vu->qemu->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return error_sys(err, -errno, "answer QEMU");
	if ((size_t)n != sizeof(head) + len)
		return error_set(err, -EAGAIN, "answer QEMU: it does not read");
	return 0;
}

static int reply_word(struct vhost_user *vu, uint64_t word, struct error *err)
{
	return reply(vu, &word, sizeof(word), err);
}

static int ring_index(const struct vhost_user *vu, uint64_t i, struct error *err)
{
	if (i >= vu->dev.n_rings)
		return error_set(err, -EINVAL, "ring %" PRIu64 " of %u", i, vu->dev.n_rings);
	return (int)i;
}

static int get_features(struct vhost_user *vu, struct error *err)
{
	return reply_word(vu, features_offered(), err);
}

static int set_features(struct vhost_user *vu, struct error *err)
{
	uint64_t f = vu->body.word;

	if (f & ~features_offered())
		return error_set(err, -EINVAL, "features %#" PRIx64 " were not offered",
				 f & ~features_offered());
	vu->features = f;
	return 0;
}

static int nothing(struct vhost_user *vu, struct error *err)
{
	return 0;
}

static int get_protocol(struct vhost_user *vu, struct error *err)
{
	return reply_word(vu, protocol_offered(), err);
}

static int set_protocol(struct vhost_user *vu, struct error *err)
{
	uint64_t f = vu->body.word;

	if (f & ~protocol_offered())
		return error_set(err, -EINVAL, "protocol features %#" PRIx64 " were not offered",
				 f & ~protocol_offered());
	vu->protocol = f;
	return 0;
}

static int get_queue_num(struct vhost_user *vu, struct error *err)
{
	return reply_word(vu, vu->dev.n_rings, err);
}

/* The rings that run go on, at their new addresses: their queues point into the
 * old mapping and are given back first. */
static int set_mem_table(struct vhost_user *vu, struct error *err)
{
	const struct memory_message *m = &vu->body.memory;

	if (m->n == 0 || m->n > MEMORY_REGIONS_MAX || m->n != vu->n_fds ||
	    vu->head.size != offsetof(struct memory_message, ranges[m->n]))
		return error_set(err, -EINVAL, "%u memory regions in %u bytes with %u descriptors",
				 m->n, vu->head.size, vu->n_fds);
	for (unsigned i = 0; i < vu->dev.n_rings; i++)
		ring_stop(vu, i);
	memory_done(&vu->memory);
	for (unsigned i = 0; i < m->n; i++)
		if (memory_add(&vu->memory, &m->ranges[i], vu->fds[i], err) < 0)
			return err->code;
	for (unsigned i = 0; i < vu->dev.n_rings; i++)
		if (ring_start_if_ready(vu, i, err) < 0)
			return err->code;
	return 0;
}

/* Size, place and base of a ring are not for changing while it runs. */
static int idle_ring(struct vhost_user *vu, uint64_t index, struct error *err)
{
	int i = ring_index(vu, index, err);

	if (i >= 0 && vu->rings[i].running)
		return error_set(err, -EBUSY, "ring %d runs", i);
	return i;
}

static int set_vring_num(struct vhost_user *vu, struct error *err)
{
	uint32_t n = vu->body.state.num;
	int i = idle_ring(vu, vu->body.state.ring, err);

	if (i < 0)
		return i;
	if (n == 0 || n > VRING_SIZE_MAX || (n & (n - 1)))
		return error_set(err, -EINVAL, "a ring of %u entries", n);
	vu->rings[i].size = (uint16_t)n;
	return 0;
}

static int set_vring_addr(struct vhost_user *vu, struct error *err)
{
	const struct ring_addr *a = &vu->body.addr;
	int i = idle_ring(vu, a->ring, err);

	if (i < 0)
		return i;
	vu->rings[i].addr = (struct vring_addr){ .desc = a->desc, .avail = a->avail, .used = a->used };
	vu->setup[i].has_addr = true;
	return ring_start_if_ready(vu, (unsigned)i, err);
}

static int set_vring_base(struct vhost_user *vu, struct error *err)
{
	int i = idle_ring(vu, vu->body.state.ring, err);

	if (i < 0)
		return i;
	if (vu->body.state.num > UINT16_MAX)
		return error_set(err, -EINVAL, "ring base %u", vu->body.state.num);
	vu->setup[i].base = (uint16_t)vu->body.state.num;
	return 0;
}

/* Stops the ring: its kick descriptor goes, too, so that it starts again only
 * with a new one ("Starting and stopping rings"). */
static int get_vring_base(struct vhost_user *vu, struct error *err)
{
	struct ring_state answer = vu->body.state;
	int i = ring_index(vu, answer.ring, err);

	if (i < 0)
		return i;
	ring_stop(vu, (unsigned)i);
	watch_close(&vu->setup[i].kick);
	answer.num = vu->setup[i].base;
	return reply(vu, &answer, sizeof(answer), err);
}

/* The ring of an eventfd message, with the descriptor or -1. */
static int eventfd_ring(struct vhost_user *vu, int *ret_fd, struct error *err)
{
	uint64_t word = vu->body.word;
	int i = ring_index(vu, word & RING_MASK, err);

	if (i < 0)
		return i;
	if (word & ~(uint64_t)(RING_MASK | NO_FD) || vu->n_fds != (word & NO_FD ? 0 : 1))
		return error_set(err, -EINVAL, "ring word %#" PRIx64 " with %u descriptors", word,
				 vu->n_fds);
	*ret_fd = take_fd(vu);
	return i;
}

static int set_vring_kick(struct vhost_user *vu, struct error *err)
{
	int fd = -1, i = eventfd_ring(vu, &fd, err);

	if (i < 0)
		return i;
	if (fd < 0)
		return error_set(err, -EINVAL, "ring %d without a kick descriptor", i);
	watch_close(&vu->setup[i].kick);
	vu->setup[i].kick = watch_new(vu, fd, on_kick, err);
	if (!vu->setup[i].kick)
		return err->code;
	vu->setup[i].kick->ring = (unsigned)i;
	return ring_start_if_ready(vu, (unsigned)i, err);
}

static int set_vring_call(struct vhost_user *vu, struct error *err)
{
	int fd = -1, i = eventfd_ring(vu, &fd, err);

	if (i < 0)
		return i;
	if (vu->rings[i].call_fd >= 0)
		close(vu->rings[i].call_fd);
	vu->rings[i].call_fd = fd;
	/* we write to it on the loop: it must not make us wait */
	if (fd >= 0 && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		return error_sys(err, -errno, "call descriptor of ring %d", i);
	/* QEMU masks and unmasks the guest's interrupt by changing descriptors, and by
	 * now has looked at the old one for the last time: what we wrote there since
	 * is lost. An interrupt too many costs nothing. */
	vring_call(&vu->rings[i]);
	return 0;
}

static int set_vring_err(struct vhost_user *vu, struct error *err)
{
	int fd = -1, i = eventfd_ring(vu, &fd, err);

	if (fd >= 0)
		close(fd);	/* a broken ring is told in the log */
	return MIN(i, 0);
}

static int set_vring_enable(struct vhost_user *vu, struct error *err)
{
	int i = ring_index(vu, vu->body.state.ring, err);

	if (i < 0)
		return i;
	if (vu->body.state.num > 1)
		return error_set(err, -EINVAL, "ring enabled: %u", vu->body.state.num);
	vu->setup[i].enabled = vu->body.state.num;
	if (!vu->setup[i].enabled)
		ring_stop(vu, (unsigned)i);
	return ring_start_if_ready(vu, (unsigned)i, err);
}

static int get_config(struct vhost_user *vu, struct error *err)
{
	struct config_message *c = &vu->body.config;
	size_t fixed = offsetof(struct config_message, bytes);

	if (c->size > VHOST_USER_CONFIG_MAX || vu->head.size != fixed + c->size)
		return error_set(err, -EINVAL, "configuration of %u bytes asked for in %u", c->size,
				 vu->head.size);
	if (c->offset > vu->dev.config_len || c->size > vu->dev.config_len - c->offset)
		return reply(vu, NULL, 0, err);	/* as the document has it */
	memcpy(c->bytes, (const uint8_t *)vu->dev.config + c->offset, c->size);
	return reply(vu, c, fixed + c->size, err);
}

static const struct request {
	const char *name;
	int (*handle)(struct vhost_user *vu, struct error *err);
	size_t size_min, size_max;
	unsigned fds_max;
	bool replies;		/* by itself, so REPLY_ACK adds nothing */
} requests[] = {
	[1] = { "GET_FEATURES", get_features, 0, 0, 0, true },
	[2] = { "SET_FEATURES", set_features, 8, 8, 0, false },
	[3] = { "SET_OWNER", nothing, 0, 0, 0, false },
	[4] = { "RESET_OWNER", nothing, 0, 0, 0, false },	/* "no longer used" */
	[5] = { "SET_MEM_TABLE", set_mem_table, offsetof(struct memory_message, ranges[1]),
		sizeof(struct memory_message), FDS_MAX, false },
	[8] = { "SET_VRING_NUM", set_vring_num, 8, 8, 0, false },
	[9] = { "SET_VRING_ADDR", set_vring_addr, 40, 40, 0, false },
	[10] = { "SET_VRING_BASE", set_vring_base, 8, 8, 0, false },
	[11] = { "GET_VRING_BASE", get_vring_base, 8, 8, 0, true },
	[12] = { "SET_VRING_KICK", set_vring_kick, 8, 8, 1, false },
	[13] = { "SET_VRING_CALL", set_vring_call, 8, 8, 1, false },
	[14] = { "SET_VRING_ERR", set_vring_err, 8, 8, 1, false },
	[15] = { "GET_PROTOCOL_FEATURES", get_protocol, 0, 0, 0, true },
	[16] = { "SET_PROTOCOL_FEATURES", set_protocol, 8, 8, 0, false },
	[17] = { "GET_QUEUE_NUM", get_queue_num, 0, 0, 0, true },
	[18] = { "SET_VRING_ENABLE", set_vring_enable, 8, 8, 0, false },
	[24] = { "GET_CONFIG", get_config, 12, sizeof(struct config_message), 0, true },
};

static int check_header(const struct vhost_user *vu, struct error *err)
{
	uint32_t n = vu->head.request;

	if (n >= ARRAY_SIZE(requests) || !requests[n].name)
		return error_set(err, -EPROTO, "QEMU sent message %u, which we do not know", n);
	if ((vu->head.flags & FLAG_VERSION_MASK) != FLAG_VERSION || vu->head.flags & FLAG_REPLY)
		return error_set(err, -EPROTO, "QEMU sent %s with flags %#x", requests[n].name,
				 vu->head.flags);
	if (vu->head.size < requests[n].size_min || vu->head.size > requests[n].size_max)
		return error_set(err, -EPROTO, "QEMU sent %s of %u bytes", requests[n].name,
				 vu->head.size);
	return 0;
}

static int handle_message(struct vhost_user *vu, struct error *err)
{
	const struct request *q = &requests[vu->head.request];

	if (vu->n_fds > q->fds_max)
		return error_set(err, -EPROTO, "QEMU sent %s with %u descriptors", q->name, vu->n_fds);
	if (q->handle(vu, err) < 0)
		return error_wrap(err, "QEMU sent %s", q->name);
	drop_fds(vu);
	if ((vu->head.flags & FLAG_NEED_REPLY) && (vu->protocol & PROTOCOL_REPLY_ACK) && !q->replies)
		return reply_word(vu, 0, err);
	return 0;
}

/* --- a connection --------------------------------------------------------- */

/* Leaves nothing of the connection behind; no callback but `stopping`. */
static void hang_up(struct vhost_user *vu)
{
	for (unsigned i = 0; i < vu->dev.n_rings; i++) {
		ring_stop(vu, i);
		watch_close(&vu->setup[i].kick);
		if (vu->rings[i].call_fd >= 0)
			close(vu->rings[i].call_fd);
		vu->rings[i].call_fd = -1;
		vu->rings[i].size = 0;
		vu->setup[i] = (struct ring_setup){ 0 };
	}
	memory_done(&vu->memory);
	drop_fds(vu);
	vu->have = 0;
	vu->features = vu->protocol = 0;
	watch_close(&vu->qemu);
}

/* Descriptors come with a message's first byte; one read never goes past the
 * message, so they cannot be taken for another's. */
static int store_fds(struct vhost_user *vu, struct msghdr *msg, struct error *err)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		int fd;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (vu->n_fds == FDS_MAX) {
				close(fd);
				error_set(err, -EPROTO, "QEMU sent too many descriptors");
			} else {
				vu->fds[vu->n_fds++] = fd;
			}
		}
	}
	if (msg->msg_flags & MSG_CTRUNC)
		return error_set(err, -EPROTO, "QEMU sent more descriptors than we can take");
	return err->code;
}

/* One recvmsg(): of the header, or of the rest. 1: something came, 0: nothing now. */
static int read_some(struct vhost_user *vu, struct error *err)
{
	bool in_head = vu->have < sizeof(vu->head);
	struct iovec iov = in_head
		? (struct iovec){ (uint8_t *)&vu->head + vu->have, sizeof(vu->head) - vu->have }
		: (struct iovec){ (uint8_t *)&vu->body + (vu->have - sizeof(vu->head)),
				  sizeof(vu->head) + vu->head.size - vu->have };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(vu->qemu->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		return error_sys(err, -errno, "read from QEMU");
	if (n == 0)
		return error_set(err, -ECONNRESET, "QEMU hung up");
	vu->have += (size_t)n;
	return store_fds(vu, &msg, err) < 0 ? err->code : 1;
}

static int read_messages(struct vhost_user *vu, struct error *err)
{
	int rc;

	while (!vu->closing && vu->qemu && (rc = read_some(vu, err)) != 0) {
		if (rc < 0)
			return rc;
		if (vu->have < sizeof(vu->head))
			continue;
		if (check_header(vu, err) < 0)
			return err->code;
		if (vu->have < sizeof(vu->head) + vu->head.size)
			continue;
		vu->have = 0;
		if (handle_message(vu, err) < 0)
			return err->code;
	}
	return 0;
}

static void serve_qemu(struct vhost_user *vu)
{
	struct error err = ERROR_NONE;

	if (read_messages(vu, &err) == 0)
		return;
	hang_up(vu);
	if (err.code != -ECONNRESET)
		log_warn_limited("vhost-user: hung up on QEMU: %s", err.msg);
	vu->dev.gone(vu->dev.arg, &err);
}

static void on_message(uv_poll_t *poll, int status, int events)
{
	struct watch *w = poll->data;

	if (w->vu && w == w->vu->qemu)
		serve_qemu(w->vu);
}

static void on_caller(uv_poll_t *poll, int status, int events);

static void on_again(uv_timer_t *timer)
{
	struct vhost_user *vu = timer->data;

	if (!vu->closing)
		uv_poll_start(&vu->listener->poll, UV_READABLE, on_caller);
}

/* It stays readable as long as QEMU waits there. */
static void accept_later(struct vhost_user *vu, int errnum)
{
	log_warn_limited("vhost-user: cannot accept QEMU: %s; trying again in %d ms",
			 error_text(-errnum), ACCEPT_AGAIN_MS);
	uv_poll_stop(&vu->listener->poll);
	uv_timer_start(&vu->again, on_again, ACCEPT_AGAIN_MS, 0);
}

static void on_caller(uv_poll_t *poll, int status, int events)
{
	struct watch *w = poll->data;
	struct vhost_user *vu = w->vu;
	struct error err = ERROR_NONE;
	int fd;

	if (!vu)
		return;
	fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			accept_later(vu, errno);
		return;
	}
	if (vu->qemu)	/* the one before may just have hung up */
		serve_qemu(vu);
	if (vu->closing || vu->qemu) {
		log_warn_limited("vhost-user: a second QEMU called; hung up on it");
		close(fd);
		return;
	}
	vu->qemu = watch_new(vu, fd, on_message, &err);
	if (!vu->qemu)
		log_warn_limited("vhost-user: hung up on QEMU: %s", err.msg);
}

int vhost_user_new(const struct vhost_user_device *dev, int listen_fd, struct vhost_user **ret,
		   struct error *err)
{
	struct vhost_user *vu = xnew(struct vhost_user);

	assert(dev->n_rings <= VHOST_USER_RINGS_MAX && dev->config_len <= VHOST_USER_CONFIG_MAX);
	vu->dev = *dev;
	for (unsigned i = 0; i < VHOST_USER_RINGS_MAX; i++)
		vu->rings[i].call_fd = -1;
	vu->listener = watch_new(vu, listen_fd, on_caller, err);
	if (!vu->listener) {
		free(vu);
		return error_wrap(err, "vhost-user socket");
	}
	uv_timer_init(&dev->loop->uv, &vu->again);
	vu->again.data = vu;
	vu->handles++;
	*ret = vu;
	return 0;
}

void vhost_user_close(struct vhost_user *vu, void (*closed)(void *arg), void *arg)
{
	assert(!vu->closing);
	vu->closing = true;
	vu->closed = closed;
	vu->closed_arg = arg;
	hang_up(vu);
	watch_close(&vu->listener);
	uv_close((uv_handle_t *)&vu->again, on_timer_closed);
}
