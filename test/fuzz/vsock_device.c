/* What a guest can do to the vsock device: any packet in any state of the virtqueues,
 * with two connections made, alive or ending, while QEMU pauses the machine, maps its
 * memory anew, or starts it again. The clock is ours. An input is a list of steps; the
 * first byte of each says what it is. (What QEMU sends beyond that: vhost_user.c.)
 *
 * Bytes are numbered, from 0 in each direction of a client: what arrives is checked, as
 * long as the guest has done nothing after which its memory is anybody's. */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <fcntl.h>

#include "lib/base/mem.h"
#include "lib/virtio/vsock.h"
#include "lib/virtio/vsock_packet.h"
#include "test/fuzz/fuzz.h"

enum {
	CID = 7, MEMORY = 1 << 20, RING = 16, CONNS = 2, STEPS_MAX = 200,
	RINGS = 0x1000, RING_STRIDE = 0x1000, AVAIL = 0x400, USED = 0x600,
	BUFFERS = 0x10000, STRIDE = 0x2000,
};

struct client {
	struct vsock_conn *conn;
	bool lazy, ready;	/* has its relay later; could have one now */
	bool framed;
	uint64_t to_guest, from_guest;
	int fd, far;
	uint32_t host_port;
	uint8_t next, expected;	/* numbers of the bytes it sends and gets */
	/* the guest's side */
	bool said_prologue;
	uint8_t guest_next;
	struct hearing {
		uint32_t host_port, left;	/* of a frame */
		uint8_t hello, have, head[4], expected;
	} hearing;
};

static struct loop loop;
static struct vsock *device;
static struct client clients[CONNS];
static int memfd, qemu, kicks[2], call;
static uint8_t *memory;
static uint16_t added[2], bases[2];
static uint16_t refilled;	/* entries of the rx ring that were given back and taken */
static bool paused, in_pieces;	/* receive buffers are */
static bool rx_in_disorder, tx_in_disorder;	/* what comes to the guest, and from it */
static uint8_t block[1 << 16], numbers[sizeof(block) + 256];	/* 0, 1, … 255, 0, … */
static uint64_t now_ms = 1000000;
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static void turn(unsigned n)
{
	while (n--)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
}

/* libuv's, too: what is defined here comes before the C library's. */
int clock_gettime(clockid_t id, struct timespec *ret)
{
	if (id != CLOCK_MONOTONIC && id != CLOCK_MONOTONIC_COARSE)
		return (int)syscall(SYS_clock_gettime, id, ret);
	*ret = (struct timespec){ (time_t)(now_ms / 1000), (long)(now_ms % 1000) * 1000000 };
	return 0;
}

static void message(uint32_t request, const void *payload, uint32_t len, int fd, unsigned n)
{
	uint32_t head[3] = { request, 1, len };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec iov[] = { { head, sizeof(head) }, { (void *)payload, len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	if (n > 0) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		*CMSG_FIRSTHDR(&msg) = (struct cmsghdr){ CMSG_LEN(n * sizeof(int)), SOL_SOCKET,
							 SCM_RIGHTS };
	}
	for (unsigned i = 0; i < n; i++)
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)) + i * sizeof(fd), &fd, sizeof(fd));
	if (sendmsg(qemu, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;		/* it hung up on us */
}

static void kick(unsigned ring)
{
	uint64_t one = 1;

	if (write(kicks[ring], &one, sizeof(one)) < 0)
		return;
}

static void describe(unsigned ring, unsigned slot, uint64_t addr, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	uint8_t *d = memory + RINGS + ring * RING_STRIDE + 16 * (slot % RING);

	memcpy(d, &addr, 8);
	memcpy(d + 8, &len, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
}

static void offer(unsigned ring, uint16_t head)
{
	uint16_t *avail = (uint16_t *)(memory + RINGS + ring * RING_STRIDE + AVAIL);

	avail[2 + added[ring]++ % RING] = head;
	avail[1] = added[ring];
	kick(ring);
}

static uint64_t buffer(unsigned ring, unsigned slot)
{
	return BUFFERS + (ring * RING + slot % RING) * (uint64_t)STRIDE;
}

static void start_ring(unsigned i)
{
	uint32_t num[] = { i, RING }, base[] = { i, bases[i] }, on[] = { i, 1 };
	uint64_t at = RINGS + i * RING_STRIDE, word = i;
	struct { uint32_t ring, flags; uint64_t desc, used, avail, log; } addr = {
		i, 0, at, at + USED, at + AVAIL, 0 };

	message(8, num, sizeof(num), -1, 0);
	message(10, base, sizeof(base), -1, 0);
	message(9, &addr, sizeof(addr), -1, 0);
	message(12, &word, sizeof(word), kicks[i], 1);
	message(13, &word, sizeof(word), call, 1);
	message(18, on, sizeof(on), -1, 0);
}

/* In @n pieces; the guest sees one. */
static void map_memory(unsigned n)
{
	enum { HALF = MEMORY / 2 };
	struct { uint32_t n, pad; struct { uint64_t gpa, size, uva, offset; } at[2]; } m = {
		n, 0, { { 0, MEMORY / n, 0, 0 }, { HALF, HALF, HALF, HALF } } };

	message(5, &m, 8 + n * sizeof(m.at[0]), memfd, n);
}

static void new_driver(void)
{
	memset(memory, 0, BUFFERS);
	added[0] = added[1] = bases[0] = bases[1] = refilled = 0;
	for (unsigned i = 0; i < RING && !in_pieces; i++) {
		describe(0, i, buffer(0, i), 4140, 2, 0);
		offer(0, (uint16_t)i);
	}
	for (unsigned i = 0; i + 3 <= RING && in_pieces; i += 3) {
		describe(0, i, buffer(0, i), 44, 3, (uint16_t)(i + 1));
		describe(0, i + 1, buffer(0, i) + 44, 3, 3, (uint16_t)(i + 2));
		describe(0, i + 2, buffer(0, i) + 47, 4000, 2, 0);
		offer(0, (uint16_t)i);
	}
}

static void boot(uint64_t features)
{
	qemu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connect(qemu, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
	paused = false;
	new_driver();
	message(2, &features, sizeof(features), -1, 0);
	map_memory(1);
	start_ring(0);
	start_ring(1);
	turn(4);
}

static void on_up(void *arg)
{
}

static void on_down(void *arg, const struct error *why)
{
}

/* --- connections ---------------------------------------------------------- */

static int on_prologue(void *arg, const uint8_t *bytes)
{
	return bytes[0] & 1 ? EPROTO : 0;
}

static void new_client(struct client *c)
{
	int pair[2], size = 1;		/* the smallest there is */

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	c->fd = pair[0];
	if (c->far >= 0)
		close(c->far);
	c->far = pair[1];
	c->next = c->expected = 0;
}

/* *@next: the number of the first. */
static void check_numbers(uint8_t *next, const uint8_t *bytes, size_t len)
{
	assert(memcmp(bytes, numbers + *next, len) == 0);
	*next = (uint8_t)(*next + len);
}

static void relay(struct client *c)
{
	struct vsock_relay r = { .fd = c->fd, .hello = "hello", .hello_len = 5 };

	c->ready = false;
	if (c == &clients[1]) {		/* as the forwards have it; the other one as ssh */
		r.prologue_len = 8;
		r.prologue = on_prologue;
		r.framed = c->framed;
		r.to_guest = &c->to_guest;
		r.from_guest = &c->from_guest;
	}
	vsock_conn_relay(c->conn, &r);
}

static void on_opened(void *arg)
{
	struct client *c = arg;

	c->ready = true;
	if (!c->lazy)
		relay(c);
}

static void on_finished(void *arg)
{
	struct client *c = arg;

	close(c->fd);
	c->fd = -1;
}

static void on_idle(void *arg)
{
	new_client(arg);
	on_opened(arg);
}

static void on_ended(void *arg, const struct error *why)
{
	struct client *c = arg;

	c->conn = NULL;
	c->ready = false;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

static void packet(const struct vsock_packet *p, unsigned slot)
{
	slot %= RING;
	vsock_packet_encode(p, memory + buffer(1, slot));
	describe(1, slot, buffer(1, slot), 44 + MIN(p->len, STRIDE - 44u), 0, 0);
	offer(1, (uint16_t)slot);
}

/* The buffer that the driver got back last. */
static unsigned last_used(void)
{
	const uint16_t *used = (uint16_t *)(memory + RINGS + USED);

	return used[2 + 4 * ((uint16_t)(used[1] - 1) % RING)] % RING;
}

static void answer(unsigned i, enum vsock_op op)
{
	struct vsock_packet p = { .src_cid = CID, .dst_cid = 2, .src_port = 1000 + i,
				  .dst_port = clients[i].host_port, .type = 1, .op = (uint16_t)op,
				  .buf_alloc = 65536,
				  .flags = op == VSOCK_OP_SHUTDOWN ? VSOCK_SHUTDOWN_SEND : 0 };

	packet(&p, i);
	turn(2);
}

static void dial(unsigned i, enum vsock_op op)
{
	struct client *c = &clients[i];
	struct vsock_conn_callbacks cb = { .opened = on_opened, .finished = on_finished,
					   .idle = on_idle, .ended = on_ended, .arg = c };
	struct error err = ERROR_NONE;
	struct vsock_packet p;

	if (vsock_connect(device, 1000 + i, &cb, &c->conn, &err) < 0)
		return;
	new_client(c);
	c->said_prologue = false;
	c->guest_next = 0;
	vsock_packet_decode(memory + buffer(0, last_used()), &p);
	if (p.op == VSOCK_OP_REQUEST)
		c->host_port = p.src_port;
	if (op != VSOCK_OP_INVALID)
		answer(i, op);
}

/* --- what comes to the guest ------------------------------------------------ */

static void hear_head(struct hearing *h, uint8_t byte)
{
	uint32_t len;

	h->head[h->have++] = byte;
	if (h->have < sizeof(h->head))
		return;
	memcpy(&len, h->head, sizeof(len));
	h->have = 0;
	h->left = ntohl(len);
	if (h->left == 0)	/* the next client has this connection */
		*h = (struct hearing){ .host_port = h->host_port };
}

/* A hello, and behind it frames or just bytes. */
static void hear(struct client *c, const uint8_t *bytes, size_t len)
{
	struct hearing *h = &c->hearing;
	bool framed = c == &clients[1] && c->framed;

	for (size_t i = 0, n; i < len; i += n) {
		n = 1;
		if (h->hello < 5) {
			assert(bytes[i] == "hello"[h->hello++]);
		} else if (framed && h->left == 0) {
			hear_head(h, bytes[i]);
		} else {
			n = framed ? MIN(len - i, (size_t)h->left) : len - i;
			check_numbers(&h->expected, bytes + i, n);
			h->left -= framed ? (uint32_t)n : 0;
		}
	}
}

static void hear_packet(const uint8_t *at)
{
	struct vsock_packet p;
	struct client *c;

	vsock_packet_decode(at, &p);
	if (p.dst_port < 1000 || p.dst_port >= 1000 + CONNS)
		return;
	c = &clients[p.dst_port - 1000];
	if (p.op == VSOCK_OP_REQUEST)
		c->hearing = (struct hearing){ .host_port = p.src_port };
	else if (p.op == VSOCK_OP_RW && p.src_port == c->hearing.host_port)
		hear(c, at + VSOCK_PACKET_HEADER, p.len);
}

/* The buffers that the driver got back; @again: it offers them anew. */
static void take_received(bool again)
{
	const uint16_t *used = (uint16_t *)(memory + RINGS + USED);

	for (unsigned n = 0; n < RING && refilled != used[1]; n++) {
		uint16_t id = used[2 + 4 * (refilled++ % RING)] % RING;

		if (!rx_in_disorder)
			hear_packet(memory + buffer(0, id));
		if (!again)
			continue;
		describe(0, id, buffer(0, id), 4140, 2, 0);
		offer(0, id);
	}
}

/* --- steps ---------------------------------------------------------------- */

/* The device may write to anywhere, or read from there. */
static void lose_order(unsigned ring)
{
	rx_in_disorder |= ring == 0;
	tx_in_disorder = true;
}

static void step_describe(struct fuzz_input *in)
{
	static const uint64_t high[] = { 0, 0, 0, MEMORY - 64, 1ull << 32, UINT64_MAX - 0xffff };
	unsigned ring = fuzz_take(in) & 1, slot = fuzz_take(in);
	uint64_t addr = high[fuzz_take(in) % ARRAY_SIZE(high)] + fuzz_take16(in) * 16ull;
	uint32_t len = (uint32_t)fuzz_take16(in) << (fuzz_take(in) & 16);
	uint16_t flags = fuzz_take(in), next = fuzz_take(in);

	lose_order(ring);
	describe(ring, slot, addr, len, flags, next);
}

static void step_offer(struct fuzz_input *in)
{
	unsigned ring = fuzz_take(in) & 1;

	lose_order(ring);
	offer(ring, fuzz_take(in));
}

static void step_jump(struct fuzz_input *in)
{
	unsigned ring = fuzz_take(in) & 1;

	lose_order(ring);
	added[ring] = (uint16_t)(added[ring] + fuzz_take16(in));
	offer(ring, fuzz_take(in));
}

static void step_packet(struct fuzz_input *in)
{
	const struct client *c = &clients[fuzz_take(in) % CONNS];
	struct vsock_packet p = { .src_cid = CID, .dst_cid = 2, .type = 1 };
	unsigned odd = fuzz_take(in);

	p.src_port = 1000 + (uint32_t)(c - clients) + (odd & 1);
	p.dst_port = c->host_port + (odd >> 1 & 1);
	p.src_cid += odd >> 2 & 1;
	p.type = (uint16_t)(p.type + (odd >> 3 & 1));
	p.op = fuzz_take(in) % 10;
	p.len = p.op == VSOCK_OP_RW || odd & 16 ? fuzz_take16(in) : 0;
	tx_in_disorder |= p.op == VSOCK_OP_RW;
	p.flags = fuzz_take(in);
	p.buf_alloc = odd & 32 ? fuzz_take16(in) : 65536;
	p.fwd_cnt = (uint32_t)fuzz_take16(in) << (odd & 64 ? 16 : 0);
	for (unsigned slot = fuzz_take(in), n = odd & 128 ? 12 : 1; n > 0; n--)
		packet(&p, slot++);
}

/* Where a ring stood. The device may have hung up by then. */
static uint16_t stop_ring(uint32_t ring)
{
	uint32_t got[5] = { 0 };

	message(11, (uint32_t[]){ ring, 0 }, 8, -1, 0);
	turn(1);
	return recv(qemu, got, sizeof(got), MSG_DONTWAIT) == sizeof(got) ? (uint16_t)got[4] : 0;
}

static void pause_machine(bool on)
{
	for (unsigned i = 0; i < 2 && on != paused; i++) {
		if (on)
			bases[i] = stop_ring(i);
		else
			start_ring(i);
	}
	paused = on;
}

/* What QEMU does. */
static void step_machine(struct fuzz_input *in)
{
	unsigned what = fuzz_take(in) % 8, arg = fuzz_take(in);

	lose_order(0);
	if (what < 2) {
		pause_machine(what == 0);
	} else if (what == 2) {
		map_memory(1 + (arg & 1));
	} else if (what == 3) {
		message(18, (uint32_t[]){ arg & 1, arg >> 1 & 1 }, 8, -1, 0);
	} else if (what == 4) {		/* the driver is loaded anew */
		pause_machine(true);
		new_driver();
		pause_machine(false);
	} else if (what == 5) {
		bases[arg & 1] = (uint16_t)(stop_ring(arg & 1) + (arg >> 1 & 3));
		start_ring(arg & 1);
	} else if (what == 6) {
		vsock_guest_was_reset(device);
	} else {
		close(qemu);
		turn(2);
		boot(1ull << 32 | 1ull << 30 | (uint64_t)(arg & 3) << 28);
	}
	turn(1);
}

static void step_dial(struct fuzz_input *in)
{
	static const uint8_t ops[] = { VSOCK_OP_RESPONSE, VSOCK_OP_INVALID, VSOCK_OP_RST, VSOCK_OP_SHUTDOWN };
	unsigned i = fuzz_take(in) % CONNS, how = fuzz_take(in);

	if (clients[i].conn)
		return;
	clients[i].lazy = how & 4;
	dial(i, ops[how % ARRAY_SIZE(ops)]);
}

static void step_time(struct fuzz_input *in)
{
	static const uint16_t times[] = { 5, 1000, 5000, 10000 };

	now_ms += times[fuzz_take(in) % ARRAY_SIZE(times)];
	turn(2);
}

/* The driver offers again what it got back. */
static void step_refill(struct fuzz_input *in)
{
	take_received(true);
	turn(1 + (fuzz_take(in) & 1));
}

static void client_talks(struct client *c, size_t len)
{
	ssize_t n = send(c->far, numbers + c->next, len, MSG_NOSIGNAL);

	c->next = (uint8_t)(c->next + MAX(n, (ssize_t)0));
}

static void client_reads(struct client *c)
{
	ssize_t n = recv(c->far, block, sizeof(block), 0);

	if (n > 0 && !tx_in_disorder)
		check_numbers(&c->expected, block, (size_t)n);
}

static void step_client(struct fuzz_input *in)
{
	struct client *c = &clients[fuzz_take(in) % CONNS];
	unsigned what = fuzz_take(in) % 6;

	if (what == 5 && c->ready)
		relay(c);
	if (c->far < 0)
		return;
	if (what == 0)
		client_talks(c, 1 + fuzz_take16(in));
	if (what == 1)
		client_reads(c);
	if (what == 2)
		shutdown(c->far, SHUT_WR);
	if (what == 3)
		close(c->far), c->far = -1;
	if (what == 4 && c->conn) {
		vsock_conn_reset(c->conn);
		c->conn = NULL;
		c->ready = false;
		if (c->fd >= 0)
			close(c->fd);
		c->fd = -1;
	}
}

/* What packets will carry: heads of frames, for one. */
static void step_fill(struct fuzz_input *in)
{
	uint8_t *to = memory + buffer(1, fuzz_take(in)) + 44 + fuzz_take(in) % 64;

	for (unsigned n = fuzz_take(in) % 32; n > 0; n--)
		*to++ = fuzz_take(in);
}

/* The device is through with what the driver gave it to send. */
static bool all_sent(void)
{
	const uint16_t *used = (uint16_t *)(memory + RINGS + RING_STRIDE + USED);

	return used[1] == added[1];
}

/* The guest's server says something, as a relay does: the reply, then frames. */
static void step_say(struct fuzz_input *in)
{
	struct client *c = &clients[fuzz_take(in) % CONNS];
	unsigned slot = fuzz_take(in), what = fuzz_take(in);
	uint32_t len = (uint32_t)fuzz_take(in) << (what & 3), mark = what & 8 ? UINT32_MAX : 0;
	uint8_t *begin = memory + buffer(1, slot) + VSOCK_PACKET_HEADER, *at = begin;
	bool forward = c == &clients[1];

	turn(1);
	if (!all_sent())
		return;		/* the buffer may be in use */
	if (forward && !c->said_prologue) {
		memset(at, 0, 8);
		at += 8;
		c->said_prologue = true;
	}
	if (forward && c->framed && len) {
		memcpy(at, &(uint32_t){ htonl(len) }, 4);
		at += 4;
	}
	memcpy(at, numbers + c->guest_next, len);
	at += len;
	c->guest_next = (uint8_t)(c->guest_next + len);
	if (forward && c->framed && what & 4) {
		memcpy(at, &mark, 4);
		at += 4;
		if (mark) {	/* what comes is the next client's */
			c->said_prologue = false;
			c->guest_next = 0;
		}
	}
	packet(&(struct vsock_packet){ .src_cid = CID, .dst_cid = 2, .src_port = 1000 + (uint32_t)(c - clients),
				       .dst_port = c->host_port, .type = 1, .op = VSOCK_OP_RW,
				       .len = (uint32_t)(at - begin), .buf_alloc = 65536 },
	       slot);
	turn(1);
}

static void step_turn(struct fuzz_input *in)
{
	turn(1 + (fuzz_take(in) & 3));
}

static void (*const steps[])(struct fuzz_input *in) = { step_describe, step_offer, step_jump, step_packet,
							step_machine,  step_client, step_turn, step_fill,
							step_dial,     step_time,  step_refill, step_say };

/* Whatever came: with nobody offering anything more, the device comes to rest. */
static void come_to_rest(void)
{
	unsigned turns = 0;

	while (uv_backend_timeout(&loop.uv) == 0) {
		assert(turns++ < 10000);
		turn(1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct fuzz_input in = { data, len };
	unsigned bits = fuzz_take(&in), turns = 0;
	struct vsock_stats st;

	fuzz_note_descriptors();
	in_pieces = bits & 32;
	rx_in_disorder = tx_in_disorder = false;
	boot(1ull << 32 | 1ull << 30 | (uint64_t)(bits & 3) << 28);
	for (unsigned i = 0; i < CONNS; i++) {
		clients[i].lazy = bits >> 2 >> i & 1;
		clients[i].framed = !(bits & 16);
		dial(i, VSOCK_OP_RESPONSE);
	}
	for (unsigned i = 0; in.len && i < STEPS_MAX; i++)
		steps[fuzz_take(&in) % ARRAY_SIZE(steps)](&in);
	come_to_rest();
	take_received(false);
	close(qemu);
	do {
		assert(turns++ < 1000);
		turn(4);
		vsock_get_stats(device, &st);
	} while (vsock_is_up(device) || st.connections);
	assert(st.buffered == 0);
	for (unsigned i = 0; i < CONNS; i++) {
		assert(!clients[i].conn);
		if (clients[i].far >= 0)
			close(clients[i].far);
		clients[i].far = -1;
	}
	now_ms += 60000;	/* nothing of this input is waited for in the next */
	turn(2);
	fuzz_check_descriptors();
	return 0;
}

void fuzz_seeds(void)
{
	enum { DESC, OFFER, JUMP, PACKET, MACHINE, CLIENT, TURN, FILL, DIAL, TIME, REFILL, SAY };	/* as in steps */
	static const uint8_t seeds[][96] = {
		/* bytes both ways */
		{ 3, PACKET, 0, 0, 5, 100, 0, 0, 0, 0, 3, TURN, 1, CLIENT, 0, 0, 200, 1, TURN, 3, REFILL, 1 },
		/* shutdown of one direction, of both; the client ends; lingers for 20 s */
		{ 2, PACKET, 0, 0, 4, 2, 0, 0, 1, TURN, 1, PACKET, 0, 0, 4, 3, 0, 0, 2, CLIENT, 0, 2, TURN, 1 },
		{ 2, PACKET, 0, 0, 4, 2, 0, 0, 1, CLIENT, 0, 2, TURN, 1, TIME, 3, REFILL, 0, TIME, 3, TURN, 1 },
		{ 1, DESC, 1, 5, 0, 0, 16, 44, 0, 0, 4, 0, OFFER, 1, 5, TURN, 1 },	/* indirect */
		/* a reply, a frame, an end and done; the client ends */
		{ 3, FILL, 3, 0, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 255, 255, 255, 255,
		  CLIENT, 1, 2, TURN, 1, PACKET, 1, 0, 5, 21, 0, 0, 0, 0, 3, TURN, 3, REFILL, 0 },
		{ 0, JUMP, 1, 100, 0, 3, TURN, 1 },				/* avail jumps */
		/* a pause, with the clock going on and a client that talks; then on */
		{ 3, MACHINE, 0, 0, CLIENT, 0, 0, 9, 1, TIME, 3, TURN, 1, MACHINE, 1, 0, PACKET, 0, 0, 5, 9, 0, 0, 0, 0, 3,
		  TURN, 2 },
		/* memory comes anew, in two pieces, with bytes under way */
		{ 3, CLIENT, 0, 0, 255, 255, MACHINE, 2, 1, PACKET, 0, 0, 5, 9, 0, 0, 0, 0, 3, REFILL, 1, MACHINE, 2, 0,
		  REFILL, 1 },
		/* a new driver; a new QEMU; each then called */
		{ 3, MACHINE, 4, 0, DIAL, 0, 0, DIAL, 1, 1, TIME, 2, TURN, 1, MACHINE, 7, 3, DIAL, 0, 2, DIAL, 1, 0 },
		/* bytes before there is a client: the reply, frames */
		{ 15, FILL, 3, 0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x', PACKET, 1, 0, 5, 8, 0, 0, 0, 0, 3,
		  PACKET, 0, 0, 5, 8, 0, 0, 0, 0, 4, TURN, 1, CLIENT, 1, 5, CLIENT, 0, 5, TURN, 1 },
		/* more than the client takes; it comes late; the guest shuts down, and closes */
		{ 3, PACKET, 0, 128, 5, 0, 8, 0, 0, 0, 0, TURN, 1, CLIENT, 0, 2, TURN, 1, PACKET, 0, 0, 4, 2, 0, 0, 13,
		  PACKET, 0, 0, 4, 3, 0, 0, 14, TURN, 1, CLIENT, 0, 1, TURN, 1, CLIENT, 0, 1, TURN, 1, REFILL, 1 },
		/* more than was promised */
		{ 3, PACKET, 0, 128, 5, 200, 31, 0, 0, 0, 0, TURN, 1 },
		/* the client closes with bytes unread; the guest is deaf and the client talks */
		{ 3, PACKET, 0, 0, 5, 100, 0, 0, 0, 0, 3, TURN, 1, CLIENT, 0, 3, TURN, 1 },
		{ 3, TURN, 1, PACKET, 0, 0, 4, 1, 5, 0, 3, TURN, 1, CLIENT, 0, 0, 9, 0, TURN, 1 },
		/* a window that is small; both clients' buffers together too much */
		{ 3, PACKET, 0, 32, 5, 100, 0, 0, 100, 0, 0, 0, 3, TURN, 1 },
		{ 19, PACKET, 0, 128, 5, 100, 10, 0, 0, 0, 0, TURN, 1, FILL, 3, 0, 1, 0, PACKET, 1, 0, 5, 0, 31, 0, 0, 0, 3, TURN, 1,
		  PACKET, 1, 0, 5, 0, 31, 0, 0, 0, 4, TURN, 1 },
		/* ended in order, and closed; or not closed, though all was read */
		{ 3, PACKET, 0, 0, 4, 2, 5, 0, 3, TURN, 1, CLIENT, 0, 2, TURN, 1, PACKET, 0, 0, 4, 3, 5, 0, 4, TURN, 1 },
		{ 3, PACKET, 0, 0, 4, 2, 5, 0, 3, TURN, 1, CLIENT, 0, 2, TURN, 1, TIME, 3, TURN, 1, PACKET, 0, 0, 6, 0, 5, 0, 4,
		  TURN, 1, TIME, 3, TURN, 1 },
		/* what is none of an answer */
		{ 3, CLIENT, 0, 4, TURN, 1, DIAL, 0, 3, CLIENT, 1, 4, TURN, 1, DIAL, 1, 1, PACKET, 1, 0, 5, 1, 0, 0, 0, 0, 3, TURN, 1 },
		/* the prologue: early; refused; the guest ends within */
		{ 15 | 16, PACKET, 1, 0, 5, 9, 0, 0, 0, 0, 3, TURN, 1, CLIENT, 1, 5, TURN, 1 },
		{ 3, FILL, 3, 0, 1, 1, PACKET, 1, 0, 5, 9, 0, 0, 0, 0, 3, TURN, 1 },
		{ 3 | 16, PACKET, 1, 0, 5, 3, 0, 0, 0, 0, 3, PACKET, 1, 0, 4, 2, 0, 0, 4, TURN, 1 },
		/* receive buffers in pieces */
		{ 3 | 32, CLIENT, 0, 0, 0, 16, CLIENT, 1, 0, 200, 1, TURN, 3, REFILL, 1 },
		/* a header apart from its payload; a receive buffer of three pieces */
		{ 3, PACKET, 0, 0, 5, 100, 0, 0, 0, 0, 3, DESC, 1, 3, 0, 0, 0x36, 44, 0, 0, 1, 4,
		  DESC, 1, 4, 0, 3, 0x36, 100, 0, 0, 0, 0, DESC, 0, 0, 0, 0, 0x10, 44, 0, 0, 3, 1,
		  DESC, 0, 1, 0, 0, 0x11, 3, 0, 0, 3, 2, OFFER, 0, 0, CLIENT, 1, 0, 200, 1, TURN, 3 },
		/* resting, then done; the next client */
		{ 3, FILL, 3, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, CLIENT, 1, 2, TURN, 1,
		  PACKET, 1, 0, 5, 12, 0, 0, 9, 0, 3, TURN, 1, FILL, 4, 0, 4, 255, 255, 255, 255,
		  PACKET, 1, 0, 5, 4, 0, 0, 9, 0, 4, TURN, 1, CLIENT, 1, 0, 9, 0, TURN, 1 },
		/* a question and its answer; more than fits in; both end, and the next client has it */
		{ 3, CLIENT, 1, 0, 8, 0, TURN, 1, SAY, 1, 0, 0, 9, CLIENT, 1, 1, REFILL, 1, CLIENT, 1, 0, 0, 200, TURN, 3, REFILL, 1,
		  TURN, 3, REFILL, 1, SAY, 1, 1, 3, 200, SAY, 0, 2, 3, 90, CLIENT, 1, 1, CLIENT, 0, 1, CLIENT, 1, 2, TURN, 1,
		  REFILL, 1, SAY, 1, 3, 4, 5, SAY, 1, 4, 12, 0, TURN, 1, CLIENT, 1, 0, 9, 0, TURN, 1, SAY, 1, 5, 0, 7, CLIENT, 1, 1 },
		{ 3, MACHINE, 3, 0, TURN, 1, MACHINE, 3, 2, MACHINE, 5, 2, MACHINE, 0, 0, MACHINE, 6, 0 },
	};
	struct vsock_options opts = { .loop = &loop, .guest_cid = CID,
				      .limits = { .max_connections = CONNS, .buffer_bytes = 32768,
						  .buffered_max = 40000 } };
	struct error err = ERROR_NONE;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < sizeof(numbers); i++)
		numbers[i] = (uint8_t)i;
	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		fuzz_seed_add_steps(seeds[i], sizeof(seeds[i]));
	for (unsigned i = 0; i < CONNS; i++)
		clients[i] = (struct client){ .fd = -1, .far = -1 };
	memfd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	snprintf(address.sun_path + 1, 64, "lima-fuzz-vsock-%d", getpid());	/* abstract */
	if (ftruncate(memfd, MEMORY) < 0 || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 4) < 0)
		abort();
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	kicks[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	kicks[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	opts.up = on_up;
	opts.down = on_down;
	if (loop_init(&loop, &err) < 0 || vsock_new(&opts, fd, &device, &err) < 0)
		abort();
}
