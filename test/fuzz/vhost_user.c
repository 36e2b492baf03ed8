/* What QEMU can send on a vhost-user socket: bytes and descriptors, in whatever pieces,
 * well-formed messages in any order, memory of several regions that changes under
 * running rings, and kicks; behind it a device that serves the rings as they are.
 * An input is a list of steps. All it leaves behind is looked for: descriptors, and
 * mappings of guest memory. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/virtio/vhost_user.h"
#include "test/fuzz/fuzz.h"

enum {
	PAGE = 4096, MEMORY = 32 * PAGE, RING = 16, RINGS = 2, SEND_FDS_MAX = 9,
	/* of guest memory: each ring has a page, buffers are behind both */
	AVAIL = 0x400, USED = 0x600, BUFFERS = RINGS * PAGE,
	VERSION = 1, REPLY = 4, NEED_REPLY = 8,
};

static const uint64_t UVA = 0x7f0000000000;

/* What may be passed along; the first ones are the right ones. */
enum { MEMFD, KICK_0, KICK_1, CALL, UNSEALED, SHORT, PIPE_OUT, PIPE_IN, NOTHING, FOLDER, PATH, FDS };

static struct loop loop;
static struct vhost_user *vu;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static int fds[FDS], qemu;
static uint8_t *memory;
static bool running[RINGS], is_up;
static uint8_t appetite;	/* how the device serves */
static volatile uint8_t sink;

/* --- the device --------------------------------------------------------------- */

static void touch(const struct iovec *iov, unsigned n, bool write)
{
	for (unsigned i = 0; i < n; i++) {
		volatile uint8_t *at = iov[i].iov_base;

		if (write)
			at[0] = at[iov[i].iov_len - 1] = 1;
		sink ^= at[0] ^ at[iov[i].iov_len - 1];
	}
}

static void give_back(struct vring *r, unsigned n)
{
	while (n-- > 0) {
		const struct vring_chain *c = vring_peek(r, 0);

		touch(c->iov, c->n_out, false);
		touch(c->iov + c->n_out, c->n_in, true);
		vring_push(r, c->in_len);
	}
	vring_publish(r);
}

/* Some chains stay behind, fetched, as those of the vsock device do. */
static void serve(unsigned i)
{
	struct vring *r = vhost_user_ring(vu, i);

	for (unsigned turns = 0; turns < 4; turns++) {
		unsigned have = vring_fetch(r, appetite % (VRING_AHEAD + 1));

		give_back(r, have / (1 + (appetite >> 7)));
		if (!vring_kicks_on(r))
			break;
	}
}

static void on_started(void *arg, unsigned i)
{
	assert(!running[i] && vhost_user_ring(vu, i)->running);
	running[i] = true;
}

static void on_stopping(void *arg, unsigned i)
{
	struct vring *r = vhost_user_ring(vu, i);

	assert(running[i] && r->running);
	if (!r->broken.code)
		give_back(r, r->fetched / 2);
	running[i] = false;
}

static void on_kicked(void *arg, unsigned i)
{
	assert(running[i]);
	serve(i);
}

static void on_gone(void *arg, const struct error *why)
{
	assert(is_up && !running[0] && !running[1] && why->code < 0 && why->msg[0]);
	is_up = false;
}

static void turn(unsigned n)
{
	while (n--)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
}

/* --- QEMU --------------------------------------------------------------------- */

static void send_bytes(const void *bytes, size_t len, const uint8_t *kinds, unsigned n)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * SEND_FDS_MAX)] = { 0 };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c = (struct cmsghdr *)control;
	int *to = (int *)(void *)CMSG_DATA(c);

	if (n > 0) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		*c = (struct cmsghdr){ CMSG_LEN(sizeof(int) * n), SOL_SOCKET, SCM_RIGHTS };
	}
	for (unsigned i = 0; i < n; i++)
		to[i] = fds[kinds[i] % FDS];
	if (len > 0 && sendmsg(qemu, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;		/* it hung up on us, or does not read */
}

/* One answer, as it must look; false: there is none. */
static bool take_answer(void)
{
	static const struct {
		uint32_t min, max;
	} sizes[32] = { [1] = { 8, 8 },   [11] = { 8, 8 },   [15] = { 8, 8 },
			[17] = { 8, 8 },  [24] = { 0, 12 + VHOST_USER_CONFIG_MAX } };
	struct { uint32_t request, flags, size; uint8_t payload[512]; } a;
	ssize_t n = recv(qemu, &a, 12, MSG_DONTWAIT);
	uint64_t word;

	if (n <= 0)
		return false;
	assert(n == 12 && a.request < 32 && a.flags == (VERSION | REPLY) && a.size <= sizeof(a.payload));
	n = a.size ? recv(qemu, a.payload, a.size, MSG_DONTWAIT) : 0;
	assert(n == (ssize_t)a.size);
	if (sizes[a.request].max) {
		assert(a.size >= sizes[a.request].min && a.size <= sizes[a.request].max);
		return true;
	}
	memcpy(&word, a.payload, sizeof(word));	/* it was asked for: all is well */
	assert(a.size == sizeof(word) && word == 0);
	return true;
}

/* The last byte of @how: in one piece or two, flags. */
static void message(uint32_t request, const void *payload, uint32_t len, const uint8_t *kinds,
		    unsigned n, uint8_t how)
{
	uint8_t bytes[12 + 512];
	uint32_t head[3] = { request, VERSION | (how & 1 ? NEED_REPLY : 0), len };
	size_t all = 12 + len, cut = how & 2 ? (how >> 2) % all : 0;

	memcpy(bytes, head, sizeof(head));
	if (len)
		memcpy(bytes + 12, payload, len);
	if (cut) {
		send_bytes(bytes, cut, kinds, n);
		turn(1);
		n = 0;
	}
	send_bytes(bytes + cut, all - cut, kinds, n);
}

static void message_word(uint32_t request, uint64_t word, int kind, uint8_t how)
{
	uint8_t kinds[] = { (uint8_t)kind };

	message(request, &word, sizeof(word), kinds, kind >= 0, how);
}

static void message_state(uint32_t request, uint32_t i, uint32_t num, uint8_t how)
{
	message(request, &(uint32_t[]){ i, num }, 8, NULL, 0, how);
}

static void message_address(uint32_t i, uint32_t odd, uint8_t how)
{
	struct { uint32_t ring, flags; uint64_t desc, used, avail, log; } a = {
		i, 0, UVA + i * PAGE, UVA + i * PAGE + USED, UVA + i * PAGE + AVAIL, 0 };

	if (odd & 0x8000)
		(&a.desc)[odd % 3] += odd & 0xfff;
	if (odd & 0x4000)
		(&a.desc)[odd % 3] = UVA + MEMORY - (odd & 0xfff);
	message(9, &a, sizeof(a), NULL, 0, how);
}

/* All of memory in @n pieces of the same size: where QEMU has them is up to @order,
 * that is, one may follow the next or lie before it; the guest sees them in a row. */
struct ranges {
	uint32_t n, pad;
	struct memory_range at[SEND_FDS_MAX];
};

static struct ranges split_memory(unsigned n, uint8_t order)
{
	struct ranges m = { .n = n };
	uint64_t size = MEMORY / (n ? n : 1) & ~(uint64_t)(PAGE - 1);

	for (unsigned i = 0; i < n; i++)
		m.at[i] = (struct memory_range){ .gpa = i * size, .size = size, .offset = i * size,
						 .uva = UVA + (i ^ (order & 7)) * size };
	return m;
}

static void message_memory(const struct ranges *m, unsigned n_fds, int odd_kind, uint8_t how)
{
	uint8_t kinds[SEND_FDS_MAX] = { 0 };

	if (odd_kind >= 0 && n_fds)
		kinds[n_fds - 1] = (uint8_t)odd_kind;
	message(5, m, offsetof(struct ranges, at[m->n]), kinds, n_fds, how);
}

static void start_ring(unsigned i, uint32_t base, uint8_t how)
{
	message_state(8, i, RING, how);
	message_state(10, i, base, how);
	message_address(i, 0, how);
	message_word(13, i, CALL, how);
	message_word(12, i, KICK_0 + (int)i, how);
	message_state(18, i, 1, how);
}

static void kick(unsigned ring)
{
	if (write(fds[KICK_0 + ring], &(uint64_t){ 1 }, 8) < 0)
		return;
}

/* --- steps -------------------------------------------------------------------- */

/* Bytes as they are. */
static void step_raw(struct fuzz_input *in)
{
	uint8_t kinds[SEND_FDS_MAX];
	unsigned n = fuzz_take(in) % (SEND_FDS_MAX + 1);
	const uint8_t *bytes;
	size_t len;

	for (unsigned i = 0; i < n; i++)
		kinds[i] = fuzz_take(in);
	len = fuzz_take_bytes(in, 128, &bytes);
	send_bytes(bytes, len, kinds, n);
	turn(1);
}

/* A header whose size is that of what follows, or nearly. */
static void step_message(struct fuzz_input *in)
{
	uint32_t request = fuzz_take(in) % 32, flags = fuzz_take(in), size;
	uint8_t kinds[SEND_FDS_MAX], bytes[12 + 512] = { 0 }, odd = fuzz_take(in);
	unsigned n = fuzz_take(in) % (SEND_FDS_MAX + 1);

	for (unsigned i = 0; i < n; i++)
		kinds[i] = fuzz_take(in);
	size = fuzz_take16(in) % 512;
	for (uint32_t i = 0; i < size && in->len; i++)
		bytes[12 + i] = fuzz_take(in);
	memcpy(bytes, (uint32_t[]){ request, flags, odd & 1 ? size + odd - 128u : size }, 12);
	send_bytes(bytes, 12 + size, kinds, n);
	turn(1);
}

static void step_features(struct fuzz_input *in)
{
	uint8_t bits = fuzz_take(in), how = fuzz_take(in);

	message_word(2, 1ull << 32 | (uint64_t)(bits & 7) << 28, -1, how);
	message_word(16, bits & 8 ? 1 | 8 | 512 : 1, -1, how);
	turn(1);
}

static void step_memory(struct fuzz_input *in)
{
	unsigned n = fuzz_take(in) % (SEND_FDS_MAX + 1), odd = fuzz_take(in), which = fuzz_take(in);
	struct ranges m = split_memory(n, fuzz_take(in));
	uint64_t word = fuzz_take16(in) * (odd & 8 ? UINT64_MAX / 0xffff : 1);

	if (odd & 1)
		((uint64_t *)&m.at[which % SEND_FDS_MAX])[which >> 6] = word;
	message_memory(&m, odd & 2 ? fuzz_take(in) % (SEND_FDS_MAX + 1) : n,
		       odd & 4 ? (int)(which % FDS) : -1, fuzz_take(in));
	turn(1);
}

static void step_ring(struct fuzz_input *in)
{
	unsigned i = fuzz_take(in) & 1, base = fuzz_take(in);

	start_ring(i, base, fuzz_take(in));
	turn(1);
}

/* One setting, perhaps of a ring that is none. */
static void step_setting(struct fuzz_input *in)
{
	static const uint8_t requests[] = { 8, 9, 10, 11, 12, 13, 14, 18, 24 };
	uint32_t request = requests[fuzz_take(in) % ARRAY_SIZE(requests)];
	unsigned i = fuzz_take(in) % 3, value = fuzz_take16(in);
	uint8_t how = fuzz_take(in);
	uint32_t config[3 + 64] = { value & 0xff, value >> 8 };

	if (request == 9)
		message_address(i, value, how);
	else if (request == 24)
		message(24, config, 12 + (value >> 8), NULL, 0, how);
	else if (request >= 12 && request <= 14)
		message_word(request, i | (value & 0x8000 ? 256 : 0), value & 0x4000 ? -1 : (int)value % FDS,
			     how);
	else
		message_state(request, i, value << (how & 16), how);
	turn(1);
}

/* A driver at work. */
static void step_offer(struct fuzz_input *in)
{
	unsigned i = fuzz_take(in) & 1, n = fuzz_take(in) % (RING + 4), odd = fuzz_take(in);
	uint8_t *page = memory + i * PAGE;
	uint16_t *avail = (uint16_t *)(void *)(page + AVAIL);

	for (; n > 0; n--) {
		struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d = {
			BUFFERS + (n + odd) * 1000, odd * 100, odd & 3, (n + 1) % RING };

		if (odd & 64)
			d.addr = (uint64_t)fuzz_take16(in) * 2;
		memcpy(page + 16 * (n % RING), &d, sizeof(d));
		avail[2 + avail[1]++ % RING] = (uint16_t)(n % RING);
	}
	kick(i);
	turn(odd >> 7);
}

static void step_write(struct fuzz_input *in)
{
	size_t at = fuzz_take16(in) % (RINGS * PAGE - 64);
	const uint8_t *bytes;
	size_t len = fuzz_take_bytes(in, 64, &bytes);

	memcpy(memory + at, bytes, len);
}

static void step_serve(struct fuzz_input *in)
{
	appetite = fuzz_take(in);
	for (unsigned i = 0; i < RINGS; i++)
		if (running[i])
			serve(i);
}

static int call(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
	return fd;
}

/* Another QEMU: instead of this one, which may be gone already, or beside it. */
static void step_call(struct fuzz_input *in)
{
	bool beside = fuzz_take(in) & 1 && is_up;
	int fd;

	turn(1);
	beside &= is_up;
	if (!beside)
		close(qemu);
	fd = call();
	turn(2);
	if (beside) {
		assert(recv(fd, &fd, 1, MSG_DONTWAIT) == 0 || !is_up);
		close(fd);
		return;
	}
	assert(!is_up && !running[0] && !running[1]);
	qemu = fd;
	is_up = true;
}

static void step_turn(struct fuzz_input *in)
{
	unsigned what = fuzz_take(in);

	kick(what & 1);
	turn(1 + (what >> 1 & 3));
	while (what & 8 && take_answer())
		;
}

/* Asks and asks, and reads nothing. */
static void step_flood(struct fuzz_input *in)
{
	uint32_t request = fuzz_take(in) % 32, heads[255][3];
	unsigned n = fuzz_take(in);

	for (unsigned i = 0; i < n; i++)
		memcpy(heads[i], (uint32_t[]){ request, VERSION, 0 }, sizeof(heads[i]));
	send_bytes(heads, n * sizeof(heads[0]), NULL, 0);
	turn(1);
}

static void (*const steps[])(struct fuzz_input *in) = { step_raw,   step_message, step_features, step_memory,
							step_ring,  step_setting, step_offer,    step_write,
							step_serve, step_turn,    step_flood,
							step_call };

/* --- an input ------------------------------------------------------------------- */

static int new_memfd(const char *name, size_t size, int seals)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || (seals && fcntl(fd, F_ADD_SEALS, seals) < 0))
		abort();
	return fd;
}

static void begin(void)
{
	uint64_t n;

	appetite = 0x80 | RING;
	fds[MEMFD] = new_memfd("guest", MEMORY, F_SEAL_SHRINK);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fds[MEMFD], 0);
	for (int i = KICK_0; i <= CALL; i++)
		if (read(fds[i], &n, sizeof(n)) < 0 && errno != EAGAIN)
			abort();
	if (memory == MAP_FAILED)
		abort();
	qemu = call();
	is_up = true;
	turn(1);
}

/* Its pipe is full of what it wrote there as an interrupt, perhaps. */
static void empty_pipe(void)
{
	uint8_t bytes[4096];

	while (read(fds[PIPE_OUT], bytes, sizeof(bytes)) > 0)
		;
}

static void end(void)
{
	turn(2);
	while (take_answer())
		;
	close(qemu);
	for (unsigned turns = 0; is_up || turns < 2; turns++) {
		assert(turns < 1000);
		turn(1);
	}
	assert(!running[0] && !running[1]);
	munmap(memory, MEMORY);
	/* refused while somebody has it mapped to write (fcntl(2)) */
	assert(fcntl(fds[MEMFD], F_ADD_SEALS, F_SEAL_WRITE) == 0);
	close(fds[MEMFD]);
	fds[MEMFD] = -1;
	empty_pipe();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const struct fuzz_steps all = { begin, end, steps, ARRAY_SIZE(steps) };

	return fuzz_run_steps(&all, data, len);
}

static void add_seeds(void)
{
	enum { RAW, MSG, FEAT, MEM, SETUP, SET, OFFER, WRITE, SERVE, TURN, FLOOD, AGAIN };	/* as in steps */
	static const uint8_t seeds[][96] = {
		/* as QEMU does it, with an answer to each; then a pause: GET_VRING_BASE */
		{ FEAT, 15, 1, MEM, 1, 0, 0, 0, 0, 0, 1, SETUP, 0, 0, 1, SETUP, 1, 0, 1, OFFER, 0, 8, 0x82,
		  TURN, 9, OFFER, 1, 8, 0x81, TURN, 11, SET, 3, 0, 0, 0, 0, SET, 3, 1, 0, 0, 0, TURN, 15 },
		/* memory comes anew under running rings, in other pieces */
		{ FEAT, 11, 0, MEM, 1, 0, 0, 0, 0, 0, 0, SETUP, 0, 0, 0, SETUP, 1, 0, 0, OFFER, 0, 15, 2,
		  MEM, 8, 0, 0, 0, 0, 0, 1, TURN, 1, SERVE, 0x90, MEM, 2, 0, 0, 0, 0, 0, 0, OFFER, 0, 9, 0x82,
		  MEM, 4, 0, 0, 1, 0, 0, 0, SERVE, 64 },
		/* buffers across regions */
		{ FEAT, 8, 0, MEM, 8, 0, 0, 0, 0, 0, 0, SETUP, 0, 0, 0, OFFER, 0, 9, 0xfd, TURN, 0 },
		/* whole messages in pieces */
		{ FEAT, 15, 0x16, MEM, 3, 0, 0, 0, 0, 0, 0x86, SETUP, 0, 0, 0x2a, SETUP, 1, 5, 0x3a, TURN, 15 },
		/* raw: GET_FEATURES, and half of SET_OWNER with nine descriptors */
		{ RAW, 0, 12, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, RAW, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8,
		  5, 3, 0, 0, 0, 1, RAW, 0, 7, 0, 0, 0, 0, 0, 0, 0, TURN, 15 },
		/* messages as bytes: SET_FEATURES, the configuration, an unknown one */
		{ MSG, 2, 9, 0, 0, 8, 0, 0, 0, 0, 0x40, 1, 0, 0, 0, MSG, 24, 1, 0, 0, 20, 0, 0, 0, 0, 0, 8, 0, 0, 0,
		  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, MSG, 6, 1, 0, 0, 0, 0 },
		/* kick and call descriptors of all kinds; none; an error one */
		{ FEAT, 15, 0, MEM, 1, 0, 0, 0, 0, 0, 0, SETUP, 0, 0, 0, SET, 4, 0, 6, 0, 0, SET, 5, 0, 7, 0, 0,
		  SET, 6, 0, 3, 0, 0, OFFER, 0, 4, 0x82, SET, 5, 0, 0, 0xc0, 0, SET, 5, 1, 10, 0, 0 },
		{ FEAT, 15, 0, SET, 4, 1, 8, 0, 1 },
		/* wrong places of a ring; enabled before it is there; disabled */
		{ FEAT, 12, 0, SET, 7, 0, 1, 0, 1, MEM, 1, 0, 0, 0, 0, 0, 0, SETUP, 0, 0, 0, SET, 7, 0, 0, 0, 1,
		  SET, 1, 0, 0, 0x40, 0, SET, 7, 0, 1, 0, 1 },
		/* unsealed memory; overlapping; without features */
		{ MEM, 2, 4, 4, 0, 0, 0, 0 },
		{ MEM, 2, 1, 1, 0, 0, 0, 0 },
		/* another QEMU beside it, then instead; instead of one that broke the rules */
		{ FEAT, 15, 0, MEM, 1, 0, 0, 0, 0, 0, 0, SETUP, 0, 0, 0, AGAIN, 1, AGAIN, 0, FEAT, 8, 0, MEM, 1, 0, 0, 0, 0,
		  0, 0, SETUP, 0, 0, 0, OFFER, 0, 4, 0x82, SET, 2, 0, 255, 255, 16, FLOOD, 30, 1, AGAIN, 0, FEAT, 8, 0 },
		{ FLOOD, 15, 255, FLOOD, 15, 255, FLOOD, 15, 255, TURN, 15 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		fuzz_seed_add_steps(seeds[i], sizeof(seeds[i]));
}

void fuzz_seeds(void)
{
	static const uint64_t config = 7;
	struct vhost_user_device dev = { .loop = &loop, .n_rings = RINGS, .config = &config,
					 .config_len = sizeof(config), .started = on_started,
					 .stopping = on_stopping, .kicked = on_kicked, .gone = on_gone };
	struct error err = ERROR_NONE;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), pipes[2];

	signal(SIGPIPE, SIG_IGN);
	add_seeds();
	for (int i = KICK_0; i <= CALL; i++)
		fds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	fds[UNSEALED] = new_memfd("unsealed", MEMORY, 0);
	fds[SHORT] = new_memfd("short", 100, F_SEAL_SHRINK);
	fds[NOTHING] = open("/dev/null", O_RDWR | O_CLOEXEC);
	fds[FOLDER] = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fds[PATH] = open("/", O_PATH | O_CLOEXEC);
	snprintf(address.sun_path + 1, 64, "lima-fuzz-vhost-%d", getpid());	/* abstract */
	if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK) < 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 4) < 0 ||
	    loop_init(&loop, &err) < 0 || vhost_user_new(&dev, fd, &vu, &err) < 0)
		abort();
	fds[PIPE_OUT] = pipes[0];
	fds[PIPE_IN] = pipes[1];
}
