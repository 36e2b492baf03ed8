/* What QEMU and a guest can do to the vsock device: vhost-user messages, any state
 * of the virtqueues, any packet, with two connections alive. An input is a list of
 * steps; the first byte of each says what it is. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
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
	int fd, far;
	uint32_t host_port;
};

static struct loop loop;
static struct vsock *device;
static struct client clients[CONNS];
static int memfd, qemu, kicks[2], call;
static uint8_t *memory;
static uint16_t added[2];
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static void turn(unsigned n)
{
	while (n--)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
}

static void message(uint32_t request, const void *payload, uint32_t len, int fd)
{
	uint32_t head[3] = { request, 1, len };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov[] = { { head, sizeof(head) }, { (void *)payload, len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	if (fd >= 0) {
		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &fd, sizeof(fd));
	}
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
	uint32_t num[] = { i, RING }, base[] = { i, 0 }, on[] = { i, 1 };
	uint64_t at = RINGS + i * RING_STRIDE, word = i;
	struct { uint32_t ring, flags; uint64_t desc, used, avail, log; } addr = {
		i, 0, at, at + USED, at + AVAIL, 0 };

	message(8, num, sizeof(num), -1);
	message(10, base, sizeof(base), -1);
	message(9, &addr, sizeof(addr), -1);
	message(12, &word, sizeof(word), kicks[i]);
	message(13, &word, sizeof(word), call);
	message(18, on, sizeof(on), -1);
}

static void boot(uint64_t features)
{
	struct { uint32_t n, pad; uint64_t gpa, size, uva, offset; } m = { 1, 0, 0, MEMORY, 0, 0 };

	qemu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connect(qemu, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
	memset(memory, 0, BUFFERS);
	added[0] = added[1] = 0;
	message(2, &features, sizeof(features), -1);
	message(5, &m, sizeof(m), memfd);
	for (unsigned i = 0; i < RING; i++) {
		describe(0, i, buffer(0, i), 4140, 2, 0);
		offer(0, (uint16_t)i);
	}
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
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	c->fd = pair[0];
	if (c->far >= 0)
		close(c->far);
	c->far = pair[1];
}

static void on_opened(void *arg)
{
	struct client *c = arg;
	struct vsock_relay relay = { .fd = c->fd, .hello = "hello", .hello_len = 5 };

	if (c == &clients[1]) {		/* as the forwards have it; the other one as ssh */
		relay.prologue_len = 8;
		relay.prologue = on_prologue;
		relay.framed = true;
	}
	vsock_conn_relay(c->conn, &relay);
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

static void dial(unsigned i)
{
	struct client *c = &clients[i];
	struct vsock_conn_callbacks cb = { .opened = on_opened, .finished = on_finished,
					   .idle = on_idle, .ended = on_ended, .arg = c };
	struct error err = ERROR_NONE;
	struct vsock_packet p;

	*c = (struct client){ .fd = -1, .far = -1 };
	if (vsock_connect(device, 1000 + i, &cb, &c->conn, &err) < 0)
		return;
	new_client(c);
	vsock_packet_decode(memory + buffer(0, i), &p);
	c->host_port = p.src_port;
	p = (struct vsock_packet){ .src_cid = CID, .dst_cid = 2, .src_port = 1000 + i,
				   .dst_port = c->host_port, .type = 1, .op = VSOCK_OP_RESPONSE,
				   .buf_alloc = 65536 };
	packet(&p, i);
	turn(2);
}

/* --- steps ---------------------------------------------------------------- */

static void step_describe(struct fuzz_input *in)
{
	static const uint64_t high[] = { 0, 0, 0, MEMORY - 64, 1ull << 32, UINT64_MAX - 0xffff };
	unsigned ring = fuzz_take(in) & 1, slot = fuzz_take(in);
	uint64_t addr = high[fuzz_take(in) % ARRAY_SIZE(high)] + fuzz_take16(in) * 16ull;
	uint32_t len = (uint32_t)fuzz_take16(in) << (fuzz_take(in) & 16);
	uint16_t flags = fuzz_take(in), next = fuzz_take(in);

	describe(ring, slot, addr, len, flags, next);
}

static void step_offer(struct fuzz_input *in)
{
	unsigned ring = fuzz_take(in) & 1;

	offer(ring, fuzz_take(in));
}

static void step_jump(struct fuzz_input *in)
{
	unsigned ring = fuzz_take(in) & 1;

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
	p.flags = fuzz_take(in);
	p.buf_alloc = odd & 32 ? fuzz_take16(in) : 65536;
	p.fwd_cnt = (uint32_t)fuzz_take16(in) << (odd & 64 ? 16 : 0);
	packet(&p, fuzz_take(in));
}

static void step_message(struct fuzz_input *in)
{
	uint32_t request = fuzz_take(in) % 32;
	unsigned with_fd = fuzz_take(in);
	uint32_t want = fuzz_take(in) % 48 & ~3u, len = (uint32_t)MIN(want, in->len);

	message(request, in->data, len, with_fd & 1 ? memfd : with_fd & 2 ? kicks[0] : -1);
	in->data += len;
	in->len -= len;
	turn(1);
}

static void step_client(struct fuzz_input *in)
{
	struct client *c = &clients[fuzz_take(in) % CONNS];
	static char block[65536];
	unsigned what = fuzz_take(in) % 5;

	if (c->far < 0)
		return;
	if (what == 0 && send(c->far, block, 1 + fuzz_take16(in), MSG_NOSIGNAL) < 0)
		return;
	if (what == 1 && recv(c->far, block, sizeof(block), 0) < 0)
		return;
	if (what == 2)
		shutdown(c->far, SHUT_WR);
	if (what == 3)
		close(c->far), c->far = -1;
	if (what == 4 && c->conn) {
		vsock_conn_reset(c->conn);
		c->conn = NULL;
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

static void step_turn(struct fuzz_input *in)
{
	turn(1 + (fuzz_take(in) & 3));
}

static void (*const steps[])(struct fuzz_input *in) = { step_describe, step_offer, step_jump, step_packet,
							step_message,  step_client, step_turn,
							step_fill };

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
	unsigned bits = fuzz_take(&in);
	struct vsock_stats st;

	boot(1ull << 32 | 1ull << 30 | (uint64_t)(bits & 3) << 28);
	for (unsigned i = 0; i < CONNS; i++)
		dial(i);
	for (unsigned i = 0; in.len && i < STEPS_MAX; i++)
		steps[fuzz_take(&in) % ARRAY_SIZE(steps)](&in);
	come_to_rest();
	close(qemu);
	do {
		turn(4);
		vsock_get_stats(device, &st);
	} while (vsock_is_up(device) || st.connections);
	assert(st.buffered == 0);
	for (unsigned i = 0; i < CONNS; i++) {
		assert(!clients[i].conn);
		if (clients[i].far >= 0)
			close(clients[i].far);
	}
	return 0;
}

void fuzz_seeds(void)
{
	static const uint8_t seeds[][24] = {
		{ 3, 3, 0, 0, 5, 100, 0, 0, 0, 0, 3, 6, 1, 5, 0, 0, 200, 1, 6, 3 },	/* bytes both ways */
		{ 2, 3, 0, 0, 4, 3, 0, 0, 1, 6, 1, 3, 0, 0, 4, 3, 5, 0, 2 },	/* shutdown */
		{ 1, 0, 1, 5, 0, 0, 16, 44, 0, 0, 4, 0, 1, 1, 5, 6, 1 },	/* indirect */
		/* a reply, a frame, an end and done; the client ends */
		{ 3, 7, 3, 0, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 255, 255 },
		{ 0, 2, 1, 100, 0, 3, 6, 1 },					/* avail jumps */
		{ 3, 4, 11, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 6, 1 },		/* GET_VRING_BASE */
		{ 3, 4, 18, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 6, 1 },		/* ring disabled */
	};
	struct vsock_options opts = { .loop = &loop, .guest_cid = CID,
				      .limits = { .max_connections = 16, .buffered_max = 1 << 20 } };
	struct error err = ERROR_NONE;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		fuzz_seed_add(seeds[i], sizeof(seeds[i]));
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
