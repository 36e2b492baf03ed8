#include "test/mock/vsock_guest.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"

/* The guest's memory: two regions side by side for the guest, far apart for QEMU.
 * rx descriptors, tx descriptors, indirect tables, then the buffers. The border is
 * within the buffers of tx. */
static const uint64_t BORDER = 5 << 20, UVA_LOW = 0x7f1000000000, UVA_HIGH = 0x7f7000000000;

enum {
	RX_RING = 0x1000, TX_RING = 0x3000,
	AVAIL = 0x800, USED = 0xa00,	/* within a ring of 128: 2048 bytes of descriptors first */
	RX_TABLES = 0x6000, TX_TABLES = 0x8000,
	RX_BUFFERS = 0x10000, RX_STRIDE = 0x1100,
	TX_BUFFERS = 0x100000, TX_STRIDE = 0x10100,
	F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4,
	REPLY_MS = 20000,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct guest_sock {
	struct vsock_guest *g;
	TAILQ_ENTRY(guest_sock) in_all, in_busy;
	uint32_t host_port, guest_port;
	enum guest_service service;
	uint32_t sent, peer_alloc, peer_fwd;
	uint32_t received, fwd, last_fwd;
	uint8_t *out;			/* to be echoed */
	size_t out_len, out_off;
	uint64_t to_send;		/* source */
	uint64_t count;
	uint32_t skip;			/* bytes of a hello still to come */
	bool busy, peer_ended, ended, closed, gone;
};

/* --- rings, the driver's side --------------------------------------------- */

static struct desc *desc_of(struct vsock_guest *g, uint64_t table, unsigned i)
{
	return (struct desc *)(g->memory + table) + i;
}

static volatile uint16_t *avail_of(struct vsock_guest *g, struct guest_ring *r)
{
	return (volatile uint16_t *)(g->memory + r->at + AVAIL);
}

static volatile uint16_t *used_of(struct vsock_guest *g, struct guest_ring *r)
{
	return (volatile uint16_t *)(g->memory + r->at + USED);
}

static bool has(const struct vsock_guest *g, unsigned bit)
{
	return g->features >> bit & 1;
}

static void ring_kick_always(struct guest_ring *r)
{
	uint64_t one = 1;

	if (r->kick_fd >= 0 && write(r->kick_fd, &one, sizeof(one)) < 0)
		assert(errno == EAGAIN);
}

/* Linux virtqueue_kick_prepare */
static void ring_kick(struct vsock_guest *g, struct guest_ring *r)
{
	volatile uint16_t *avail = avail_of(g, r), *used = used_of(g, r);
	uint16_t old = r->published, event;
	bool kick;

	if (r->added == old)
		return;
	__atomic_store_n(&avail[1], r->added, __ATOMIC_RELEASE);
	r->published = r->added;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (has(g, 29)) {
		event = __atomic_load_n(&used[2 + 4 * r->size], __ATOMIC_RELAXED);
		kick = (uint16_t)(r->added - event - 1) < (uint16_t)(r->added - old);
	} else {
		kick = !(used[0] & 1);
	}
	if (kick)
		ring_kick_always(r);
}

static void ring_add(struct vsock_guest *g, struct guest_ring *r, uint16_t head)
{
	avail_of(g, r)[2 + (r->added++ & (r->size - 1))] = head;
}

static bool ring_take(struct vsock_guest *g, struct guest_ring *r, uint32_t *id, uint32_t *len)
{
	volatile uint16_t *used = used_of(g, r);
	volatile uint32_t *entry;

	if (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == r->last_used)
		return false;
	entry = (volatile uint32_t *)(used + 2 + 4 * (r->last_used++ & (r->size - 1)));
	*id = entry[0];
	*len = entry[1];
	assert(*id < r->size);
	return true;
}

/* Interrupts on; true when something came meanwhile. */
static bool ring_listen(struct vsock_guest *g, struct guest_ring *r)
{
	avail_of(g, r)[0] = 0;
	avail_of(g, r)[2 + r->size] = r->last_used;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&used_of(g, r)[1], __ATOMIC_RELAXED) != r->last_used;
}

static void ring_deaf(struct vsock_guest *g, struct guest_ring *r)
{
	avail_of(g, r)[0] = 1;
	avail_of(g, r)[2 + r->size] = (uint16_t)(r->last_used - 1);
}

/* Two descriptors, header and payload, by an indirect table if there are such. */
static void ring_describe(struct vsock_guest *g, struct guest_ring *r, unsigned slot,
			  uint64_t tables, uint64_t buffer, uint32_t len, uint16_t write_flag)
{
	uint64_t table = tables + slot * 2 * sizeof(struct desc);
	struct desc *d;
	bool indirect = has(g, 28);
	unsigned first = indirect ? 0 : 2 * slot;

	d = indirect ? desc_of(g, table, 0) : desc_of(g, r->at, first);
	d[0] = (struct desc){ buffer, VSOCK_PACKET_HEADER, (uint16_t)(write_flag | (len ? F_NEXT : 0)),
			      (uint16_t)(first + 1) };
	d[1] = (struct desc){ buffer + VSOCK_PACKET_HEADER, len, write_flag, 0 };
	if (indirect)
		*desc_of(g, r->at, slot) = (struct desc){
			table, (len ? 2 : 1) * (uint32_t)sizeof(struct desc), F_INDIRECT, 0 };
	ring_add(g, r, (uint16_t)(indirect ? slot : first));
}

static unsigned slots_of(const struct vsock_guest *g)
{
	return has(g, 28) ? VSOCK_GUEST_RING : VSOCK_GUEST_RING / 2;
}

static unsigned slot_of(const struct vsock_guest *g, uint32_t id)
{
	return has(g, 28) ? id : id / 2;
}

static void post_rx(struct vsock_guest *g, unsigned slot)
{
	ring_describe(g, &g->rx, slot, RX_TABLES, RX_BUFFERS + slot * RX_STRIDE,
		      VSOCK_GUEST_RX_BUFFER, F_WRITE);
}

void vsock_guest_offer(struct vsock_guest *g, struct guest_ring *r, uint16_t slot, uint64_t addr,
		       uint32_t len, uint16_t flags, uint16_t next)
{
	*desc_of(g, r->at, slot) = (struct desc){ addr, len, flags, next };
	ring_add(g, r, slot);
	__atomic_store_n(&avail_of(g, r)[1], r->added, __ATOMIC_RELEASE);
	r->published = r->added;
	ring_kick_always(r);
}

/* --- QEMU ----------------------------------------------------------------- */

int vsock_guest_raw(struct vsock_guest *g, const void *bytes, size_t len, const int *fds,
		    unsigned n_fds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 32)] = { 0 };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (n_fds) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	return sendmsg(g->qemu, &msg, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -1;
}

static int read_all(struct vsock_guest *g, void *to, size_t len)
{
	for (size_t have = 0; have < len;) {
		struct pollfd p = { g->qemu, POLLIN, 0 };
		ssize_t n = poll(&p, 1, REPLY_MS) == 1
			? recv(g->qemu, (uint8_t *)to + have, len - have, 0) : -1;

		if (n <= 0)
			return -1;
		have += (size_t)n;
	}
	return 0;
}

int vsock_guest_message(struct vsock_guest *g, uint32_t request, const void *payload, uint32_t len,
			const int *fds, unsigned n_fds, void *reply, uint32_t reply_max)
{
	uint32_t head[3 + 128] = { request, 1, len }, answer[3];

	assert(len <= sizeof(head) - 12);
	if (len)
		memcpy(head + 3, payload, len);
	if (vsock_guest_raw(g, head, 12 + len, fds, n_fds) < 0)
		return -1;
	if (!reply_max)
		return 0;
	if (read_all(g, answer, sizeof(answer)) < 0 || answer[0] != request || answer[1] != 5 ||
	    answer[2] > reply_max || read_all(g, reply, answer[2]) < 0)
		return -1;
	return (int)answer[2];
}

static void say(struct vsock_guest *g, uint32_t request, const void *payload, uint32_t len, int fd)
{
	int rc = vsock_guest_message(g, request, payload, len, &fd, fd >= 0, NULL, 0);

	assert(rc == 0);
}

static uint64_t ask(struct vsock_guest *g, uint32_t request)
{
	uint64_t word = 0;
	int rc = vsock_guest_message(g, request, NULL, 0, NULL, 0, &word, sizeof(word));

	assert(rc == sizeof(word));
	return word;
}

bool vsock_guest_hung_up_on(struct vsock_guest *g)
{
	uint8_t byte;

	for (;;) {
		struct pollfd p = { g->qemu, POLLIN, 0 };

		if (poll(&p, 1, REPLY_MS) != 1)
			return false;
		if (recv(g->qemu, &byte, 1, 0) <= 0)
			return true;
	}
}

void vsock_guest_connect(struct vsock_guest *g)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct { uint32_t offset, size, flags; uint64_t cid; } __attribute__((packed)) config = {
		0, 8, 0, 0 };
	uint64_t word;
	int rc;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", g->path);
	g->qemu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	rc = connect(g->qemu, (struct sockaddr *)&sa, sizeof(sa));
	assert(rc == 0);
	ask(g, 1);
	word = ask(g, 15);
	assert(word & 1u << 9);		/* CONFIG: QEMU does without nothing else */
	say(g, 16, &word, sizeof(word), -1);
	word = ask(g, 17);
	assert(word == 2);
	say(g, 3, NULL, 0, -1);
	g->features = ask(g, 1) & ~g->features_off;
	for (unsigned i = 0; i < 2; i++) {
		word = i;
		g->rx.call_fd = i == 0 ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : g->rx.call_fd;
		g->tx.call_fd = i == 1 ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : g->tx.call_fd;
		say(g, 13, &word, sizeof(word), i ? g->tx.call_fd : g->rx.call_fd);
	}
	rc = vsock_guest_message(g, 24, &config, sizeof(config), NULL, 0, &config, sizeof(config));
	assert(rc == sizeof(config) && config.cid == VSOCK_GUEST_CID);
}

static void send_memory(struct vsock_guest *g)
{
	struct { uint32_t n, pad; struct { uint64_t gpa, size, uva, offset; } r[2]; } m = {
		2, 0, { { 0, BORDER, UVA_LOW, 0 },
			{ BORDER, VSOCK_GUEST_MEMORY - BORDER, UVA_HIGH, BORDER } } };
	int fds[] = { g->memfd, g->memfd };
	int rc = vsock_guest_message(g, 5, &m, sizeof(m), fds, 2, NULL, 0);

	assert(rc == 0);
}

static void start_ring(struct vsock_guest *g, struct guest_ring *r, uint32_t base)
{
	uint32_t num[] = { r->index, r->size }, at[] = { r->index, base }, on[] = { r->index, 1 };
	struct { uint32_t ring, flags; uint64_t desc, used, avail, log; } addr = {
		r->index, 0, UVA_LOW + r->at, UVA_LOW + r->at + USED, UVA_LOW + r->at + AVAIL, 0 };
	uint64_t word = r->index;

	if (r->kick_fd < 0)
		r->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	say(g, 8, num, sizeof(num), -1);
	say(g, 10, at, sizeof(at), -1);
	say(g, 9, &addr, sizeof(addr), -1);
	say(g, 12, &word, sizeof(word), r->kick_fd);
	say(g, 18, on, sizeof(on), -1);
	say(g, 13, &word, sizeof(word), r->call_fd);
}

static uint32_t stop_ring(struct vsock_guest *g, struct guest_ring *r)
{
	uint32_t state[] = { r->index, 0 };
	int rc = vsock_guest_message(g, 11, state, sizeof(state), NULL, 0, state, sizeof(state));

	assert(rc == sizeof(state));
	return state[1];
}

static void drop_socks(struct vsock_guest *g);

void vsock_guest_boot(struct vsock_guest *g)
{
	drop_socks(g);
	memset(g->memory, 0, RX_BUFFERS);
	g->rx.added = g->rx.published = g->rx.last_used = 0;
	g->tx.added = g->tx.published = g->tx.last_used = 0;
	g->rx.size = g->tx.size = VSOCK_GUEST_RING;
	g->rx.index = 0, g->tx.index = 1;
	g->rx.at = RX_RING, g->tx.at = TX_RING;
	g->tx.free = slots_of(g);
	g->rx.free = 0;
	for (unsigned i = 0; i < slots_of(g); i++) {
		g->tx.free_slots[i] = (uint16_t)i;
		post_rx(g, i);
	}
	__atomic_store_n(&avail_of(g, &g->rx)[1], g->rx.added, __ATOMIC_RELEASE);
	g->rx.published = g->rx.added;
	say(g, 2, &g->features, sizeof(g->features), -1);
	send_memory(g);
	start_ring(g, &g->rx, 0);
	start_ring(g, &g->tx, 0);
}

static uint32_t bases[2];

void vsock_guest_pause(struct vsock_guest *g)
{
	bases[0] = stop_ring(g, &g->rx);
	bases[1] = stop_ring(g, &g->tx);
}

void vsock_guest_resume(struct vsock_guest *g)
{
	say(g, 2, &g->features, sizeof(g->features), -1);
	send_memory(g);
	start_ring(g, &g->rx, bases[0]);
	start_ring(g, &g->tx, bases[1]);
	ring_kick_always(&g->rx);
	ring_kick_always(&g->tx);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void vsock_guest_hang_up(struct vsock_guest *g)
{
	close_fd(&g->qemu);
	close_fd(&g->rx.kick_fd);
	close_fd(&g->rx.call_fd);
	close_fd(&g->tx.kick_fd);
	close_fd(&g->tx.call_fd);
}

/* --- packets -------------------------------------------------------------- */

static void reclaim_tx(struct vsock_guest *g)
{
	uint32_t id, len;

	while (ring_take(g, &g->tx, &id, &len)) {
		assert(g->tx.free < slots_of(g));
		g->tx.free_slots[g->tx.free++] = (uint16_t)slot_of(g, id);
	}
}

/* @data NULL: what lies in the buffer goes as it is. */
static void put_packet(struct vsock_guest *g, const struct vsock_packet *p, const void *data)
{
	unsigned slot = g->tx.free_slots[--g->tx.free];
	uint8_t *to = g->memory + TX_BUFFERS + slot * TX_STRIDE;

	vsock_packet_encode(p, to);
	if (data && p->len)
		memcpy(to + VSOCK_PACKET_HEADER, data, p->len);
	ring_describe(g, &g->tx, slot, TX_TABLES, TX_BUFFERS + slot * TX_STRIDE, p->len, 0);
}

void vsock_guest_send(struct vsock_guest *g, const struct vsock_packet *p, const void *payload)
{
	struct guest_packet *w;

	reclaim_tx(g);
	if (g->tx.free && STAILQ_EMPTY(&g->waiting)) {
		put_packet(g, p, payload);
		return;
	}
	w = xmalloc(sizeof(*w) + p->len);
	w->head = *p;
	if (p->len)
		memcpy(w->data, payload, p->len);
	STAILQ_INSERT_TAIL(&g->waiting, w, next);
	g->n_waiting++;
}

static void send_waiting(struct vsock_guest *g)
{
	struct guest_packet *w;

	reclaim_tx(g);
	while (g->tx.free && (w = STAILQ_FIRST(&g->waiting))) {
		STAILQ_REMOVE_HEAD(&g->waiting, next);
		g->n_waiting--;
		put_packet(g, &w->head, w->data);
		free(w);
	}
}

static struct vsock_packet packet(struct vsock_guest *g, enum vsock_op op, uint32_t guest_port,
				  uint32_t host_port, uint32_t flags)
{
	return (struct vsock_packet){
		.src_cid = VSOCK_GUEST_CID, .dst_cid = 2, .src_port = guest_port,
		.dst_port = host_port, .type = VSOCK_STREAM, .op = (uint16_t)op, .flags = flags,
		.buf_alloc = g->buf_alloc,
	};
}

void vsock_guest_say(struct vsock_guest *g, enum vsock_op op, uint32_t guest_port,
		     uint32_t host_port, uint32_t flags)
{
	struct vsock_packet p = packet(g, op, guest_port, host_port, flags);

	vsock_guest_send(g, &p, NULL);
	ring_kick(g, &g->tx);
}

/* --- sockets -------------------------------------------------------------- */

static struct vsock_packet from_sock(struct guest_sock *s, enum vsock_op op, uint32_t flags)
{
	struct vsock_packet p = packet(s->g, op, s->guest_port, s->host_port, flags);

	p.fwd_cnt = s->fwd;
	if (s->service == GUEST_FULL_CREDIT && s->received)
		p.fwd_cnt = s->fwd + 100000;
	s->last_fwd = s->fwd;
	return p;
}

static void sock_say(struct guest_sock *s, enum vsock_op op, uint32_t flags)
{
	struct vsock_packet p = from_sock(s, op, flags);

	vsock_guest_send(s->g, &p, NULL);
}

static void sock_free(struct guest_sock *s)
{
	struct vsock_guest *g = s->g;

	g->socks[s->host_port & 0xffff] = NULL;
	TAILQ_REMOVE(&g->all, s, in_all);
	if (s->busy)
		TAILQ_REMOVE(&g->busy, s, in_busy);
	g->sockets--;
	free(s->out);
	free(s);
}

static void drop_socks(struct vsock_guest *g)
{
	struct guest_packet *w;

	while (!TAILQ_EMPTY(&g->all))
		sock_free(TAILQ_FIRST(&g->all));
	while ((w = STAILQ_FIRST(&g->waiting))) {
		STAILQ_REMOVE_HEAD(&g->waiting, next);
		free(w);
	}
	g->n_waiting = 0;
}

static void sock_busy(struct guest_sock *s)
{
	if (s->busy)
		return;
	s->busy = true;
	TAILQ_INSERT_TAIL(&s->g->busy, s, in_busy);
}

/* The program read @n bytes; Linux tells when less than a packet is left. */
static void sock_consumed(struct guest_sock *s, uint32_t n)
{
	s->fwd += n;
	if (s->g->buf_alloc - MIN(s->g->buf_alloc, s->fwd - s->last_fwd) < VSOCK_PACKET_MAX)
		sock_say(s, VSOCK_OP_CREDIT_UPDATE, 0);
}

static void sock_end(struct guest_sock *s)
{
	if (s->ended)
		return;
	s->ended = true;
	sock_say(s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND);
}

/* close(): the host answers with RST */
static void sock_close(struct guest_sock *s)
{
	if (s->closed)
		return;
	s->closed = s->ended = true;
	sock_say(s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND | VSOCK_SHUTDOWN_RCV);
}

static void sock_queue(struct guest_sock *s, const void *data, size_t len)
{
	if (s->out_off) {
		memmove(s->out, s->out + s->out_off, s->out_len - s->out_off);
		s->out_len -= s->out_off;
		s->out_off = 0;
	}
	s->out = xrealloc(s->out, s->out_len + len);
	memcpy(s->out + s->out_len, data, len);
	s->out_len += len;
	sock_busy(s);
}

static uint32_t sock_credit(const struct guest_sock *s)
{
	if (s->service == GUEST_GREEDY)
		return VSOCK_PACKET_MAX;
	return MIN(vsock_credit(s->peer_alloc, s->peer_fwd, s->sent), s->g->buf_alloc);
}

/* Sends what it has and may. false: nothing more now. */
static bool sock_pump(struct guest_sock *s)
{
	uint64_t have = s->to_send ? s->to_send : s->out_len - s->out_off;
	uint32_t most = MIN(sock_credit(s), (uint32_t)VSOCK_PACKET_MAX);
	uint32_t n = (uint32_t)MIN(have, (uint64_t)most);
	struct vsock_packet p;

	if (s->closed)
		return false;
	if (n && s->g->tx.free) {
		p = from_sock(s, VSOCK_OP_RW, 0);
		p.len = n;
		put_packet(s->g, &p, s->to_send ? NULL : s->out + s->out_off);
		s->sent += n;
		s->g->bytes_out += n;
		if (s->to_send)
			s->to_send -= n;
		else
			s->out_off += n;
		have -= n;
		if (have)
			return true;
	}
	if (have == 0 && s->service == GUEST_SOURCE && s->sent)
		sock_end(s);
	if (have == 0 && s->peer_ended && s->service != GUEST_STUCK) {
		if (s->service == GUEST_SINK && !s->ended && s->sent == 0) {
			sock_queue(s, &s->count, sizeof(s->count));
			return true;
		}
		sock_end(s);
		if (s->service != GUEST_KEEP)
			sock_close(s);
	}
	return false;
}

static void pump_all(struct vsock_guest *g)
{
	struct guest_sock *s, *next;

	for (s = TAILQ_FIRST(&g->busy); s; s = next) {
		next = TAILQ_NEXT(s, in_busy);
		while (g->tx.free && STAILQ_EMPTY(&g->waiting) && sock_pump(s))
			;
		if (s->to_send == 0 && s->out_off == s->out_len && (!s->peer_ended || s->closed ||
								    s->service == GUEST_KEEP)) {
			TAILQ_REMOVE(&g->busy, s, in_busy);
			s->busy = false;
		}
	}
}

/* --- what comes from the device ------------------------------------------- */

static struct guest_sock *sock_new(struct vsock_guest *g, const struct vsock_packet *p,
				   enum guest_service service)
{
	struct guest_sock *s = xnew(struct guest_sock);

	s->g = g;
	s->host_port = p->src_port;
	s->guest_port = p->dst_port;
	s->service = service;
	s->skip = service == GUEST_RELAY || service == GUEST_RELAY_REFUSE ? 24 : 0;
	g->socks[s->host_port & 0xffff] = s;
	TAILQ_INSERT_TAIL(&g->all, s, in_all);
	g->sockets++;
	return s;
}

static void on_request(struct vsock_guest *g, const struct vsock_packet *p)
{
	enum guest_service service = g->service(p->dst_port);
	struct guest_sock *s;

	g->requests++;
	if (service == GUEST_SILENT)
		return;
	if (service == GUEST_REFUSE) {
		vsock_guest_say(g, VSOCK_OP_RST, p->dst_port, p->src_port, 0);
		return;
	}
	s = sock_new(g, p, service);
	s->peer_alloc = p->buf_alloc;
	s->peer_fwd = p->fwd_cnt;
	sock_say(s, VSOCK_OP_RESPONSE, 0);
	if (service == GUEST_HALF)
		sock_end(s);
	if (service == GUEST_DEAF)
		sock_say(s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_RCV);
	if (service == GUEST_GREEDY) {
		s->to_send = 64 << 20;
		sock_busy(s);
	}
}

static void answer_hello(struct guest_sock *s)
{
	static const uint8_t yes[8], no[8] = { 0, 0, 0, 0, 0, 0, 0, 111 };

	sock_queue(s, s->service == GUEST_RELAY ? yes : no, 8);
	if (s->service == GUEST_RELAY_REFUSE) {
		sock_pump(s);
		sock_close(s);
	}
}

static void on_bytes(struct guest_sock *s, const uint8_t *data, uint32_t len)
{
	struct vsock_guest *g = s->g;
	uint32_t all = len;

	s->received += len;
	g->bytes_in += len;
	if (s->skip) {
		uint32_t n = MIN(s->skip, len);

		s->skip -= n;
		data += n;
		len -= n;
		if (s->skip == 0)
			answer_hello(s);
	}
	s->count += len;
	if (s->service == GUEST_STUCK || s->closed)
		return;
	if (s->service == GUEST_CLOSE)
		sock_close(s);
	else if (s->service == GUEST_RESET)
		sock_say(s, VSOCK_OP_RST, 0), s->gone = true;
	else if (s->service == GUEST_SOURCE && s->count == 8)
		memcpy(&s->to_send, data + len - 8, 8), sock_busy(s);
	else if (s->service == GUEST_LATE)
		sock_end(s), sock_queue(s, "late", 4);
	else if (s->service != GUEST_SINK && s->service != GUEST_HALF && len)
		sock_queue(s, data, len);
	sock_consumed(s, all);
}

static void on_packet(struct vsock_guest *g, const struct vsock_packet *p, const uint8_t *data)
{
	struct guest_sock *s = g->socks[p->src_port & 0xffff];

	assert(p->src_cid == 2 && p->dst_cid == VSOCK_GUEST_CID);
	if (p->op == VSOCK_OP_RST)
		g->resets++;
	if (p->op == VSOCK_OP_SHUTDOWN)
		g->shutdowns++;
	if (p->op == VSOCK_OP_REQUEST) {
		on_request(g, p);
		return;
	}
	if (!s || s->host_port != p->src_port)
		return;
	if (p->op == VSOCK_OP_RST) {
		sock_free(s);
		return;
	}
	s->peer_alloc = p->buf_alloc;
	s->peer_fwd = p->fwd_cnt;
	if (p->op == VSOCK_OP_RW)
		on_bytes(s, data, p->len);
	if (s->gone) {
		sock_free(s);
		return;
	}
	if (p->op == VSOCK_OP_CREDIT_REQUEST)
		sock_say(s, VSOCK_OP_CREDIT_UPDATE, 0);
	if (p->op == VSOCK_OP_SHUTDOWN) {
		s->peer_ended = true;
		sock_busy(s);
	}
	if (s->to_send || s->out_len > s->out_off)
		sock_busy(s);
}

/* Linux virtio_transport_rx_work: posted again when half of them are gone. */
static void refill_rx(struct vsock_guest *g, bool all)
{
	if (!all && g->rx.free <= slots_of(g) / 2)
		return;
	while (g->rx.free)
		post_rx(g, g->rx.free_slots[--g->rx.free]);
	ring_kick(g, &g->rx);
}

static const uint8_t *take_rx(struct vsock_guest *g, struct vsock_packet *p)
{
	uint32_t id, len;
	uint8_t *at;

	if (!ring_take(g, &g->rx, &id, &len))
		return NULL;
	id = slot_of(g, id);
	at = g->memory + RX_BUFFERS + id * RX_STRIDE;
	vsock_packet_decode(at, p);
	assert(len == VSOCK_PACKET_HEADER + p->len);
	g->rx.free_slots[g->rx.free++] = (uint16_t)id;
	return at + VSOCK_PACKET_HEADER;
}

bool vsock_guest_step(struct vsock_guest *g)
{
	struct vsock_packet p;
	const uint8_t *data;
	bool some = false;

	while (g->n_waiting < 2 * VSOCK_GUEST_RING && (data = take_rx(g, &p))) {
		on_packet(g, &p, data);
		some = true;
	}
	refill_rx(g, false);
	send_waiting(g);
	pump_all(g);
	ring_kick(g, &g->tx);
	return some;
}

void vsock_guest_wait(struct vsock_guest *g, int ms)
{
	struct pollfd p[] = { { g->stop_fd, POLLIN, 0 }, { g->rx.call_fd, POLLIN, 0 },
			      { g->tx.call_fd, POLLIN, 0 } };
	uint64_t n;
	bool tx_matters = g->n_waiting || !TAILQ_EMPTY(&g->busy);

	if (ring_listen(g, &g->rx) || (tx_matters && ring_listen(g, &g->tx)))
		ms = 0;
	poll(p, 3, ms);
	if (read(g->rx.call_fd, &n, sizeof(n)) < 0 || read(g->tx.call_fd, &n, sizeof(n)) < 0)
		assert(errno == EAGAIN);
	ring_deaf(g, &g->rx);
	ring_deaf(g, &g->tx);
}

void vsock_guest_want_sent(struct vsock_guest *g)
{
	do
		reclaim_tx(g);
	while (ring_listen(g, &g->tx));
}

void vsock_guest_serve(struct vsock_guest *g)
{
	struct pollfd p = { g->stop_fd, POLLIN, 0 };

	while (poll(&p, 1, 0) == 0)
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 1000);
}

const struct vsock_packet *vsock_guest_receive(struct vsock_guest *g, const uint8_t **ret, int ms)
{
	uint64_t deadline = clock_mono_ms() + (uint64_t)ms;

	for (;;) {
		const uint8_t *data = take_rx(g, &g->received);

		if (data) {
			*ret = data;
			return &g->received;
		}
		refill_rx(g, true);
		if (clock_mono_ms() >= deadline)
			return NULL;
		vsock_guest_wait(g, 50);
	}
}

/* --- the test's thread ---------------------------------------------------- */

void vsock_guest_init(struct vsock_guest *g, const char *path)
{
	int rc;

	memset(g, 0, sizeof(*g));
	g->path = path;
	g->buf_alloc = 256 << 10;
	g->qemu = g->rx.kick_fd = g->rx.call_fd = g->tx.kick_fd = g->tx.call_fd = -1;
	g->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	g->memfd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	rc = ftruncate(g->memfd, VSOCK_GUEST_MEMORY);
	assert(rc == 0);
	rc = fcntl(g->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	assert(rc == 0);
	g->memory = mmap(NULL, VSOCK_GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
	assert(g->memory != MAP_FAILED);
	STAILQ_INIT(&g->waiting);
	TAILQ_INIT(&g->all);
	TAILQ_INIT(&g->busy);
}

static void *run(void *arg)
{
	struct vsock_guest *g = arg;

	g->script(g, g->arg);
	g->done = true;
	return NULL;
}

void vsock_guest_run(struct vsock_guest *g, void (*script)(struct vsock_guest *g, void *arg),
		     void *arg)
{
	int rc;

	g->script = script;
	g->arg = arg;
	g->done = false;
	g->running = true;
	rc = pthread_create(&g->thread, NULL, run, g);
	assert(rc == 0);
}

void vsock_guest_stop(struct vsock_guest *g)
{
	uint64_t one = 1;

	if (write(g->stop_fd, &one, sizeof(one)) < 0)
		assert(errno == EAGAIN);
}

void vsock_guest_done(struct vsock_guest *g)
{
	if (g->running)
		pthread_join(g->thread, NULL);
	drop_socks(g);
	vsock_guest_hang_up(g);
	close(g->stop_fd);
	close(g->memfd);
	munmap(g->memory, VSOCK_GUEST_MEMORY);
}
