/* What a guest's driver can write into a virtqueue, and when: descriptors, chains
 * across memory regions, indirect tables, avail and used with their events, in places
 * that overlap. The memory is on the heap, each region exactly as long as it is told
 * to be, so that ASan sees one byte too many. An input is a list of steps. */
#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/virtio/vring.h"
#include "test/fuzz/fuzz.h"

enum { RINGS, NEAR, ODD, TOP, REGIONS, STEPS_MAX = 400 };

/* NEAR follows RINGS for the guest; ODD begins at an odd place here; TOP ends with
 * the last address but one. */
static const struct {
	uint64_t gpa, uva;
	size_t size, skew;
} places[REGIONS] = {
	[RINGS] = { 0x1000, 0x7f0000001000, 0x6000, 0 },
	[NEAR] = { 0x7000, 0x7f0000010000, 0x400, 0 },
	[ODD] = { 0x100000000, 0x7f0000020000, 0x83, 1 },
	[TOP] = { UINT64_MAX - 0x101, 0x7f0000030000, 0x101, 0 },
};

static struct memory memory;
static struct vring ring;
static unsigned seen;		/* chains of the queue that were looked at */
static uint16_t offered, base;
static uint16_t given;		/* chains pushed since the ring started */
static bool owed;		/* an interrupt was put off, and nothing has changed since */
static volatile uint8_t sink;

static void new_memory(void)
{
	memory.n = REGIONS;
	for (unsigned i = 0; i < REGIONS; i++) {
		uint8_t *map = xcalloc(1, places[i].size + places[i].skew);

		memory.regions[i] = (struct memory_region){ .gpa = places[i].gpa, .uva = places[i].uva,
							    .size = places[i].size,
							    .at = map + places[i].skew, .map = map };
	}
}

static bool was_called(void)
{
	uint64_t n;

	return read(ring.call_fd, &n, sizeof(n)) == sizeof(n);
}

/* --- what must be true -------------------------------------------------------- */

static bool within_memory(const struct iovec *v)
{
	for (unsigned i = 0; i < REGIONS; i++) {
		const struct memory_region *r = &memory.regions[i];
		size_t skip = (size_t)((uint8_t *)v->iov_base - r->at);

		if (skip < r->size && v->iov_len <= r->size - skip)
			return true;
	}
	return false;
}

static uint64_t check_pieces(const struct iovec *iov, unsigned n, bool write)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *at = iov[i].iov_base;

		assert(iov[i].iov_len > 0 && within_memory(&iov[i]));
		sum += iov[i].iov_len;
		if (write)
			at[0] = at[iov[i].iov_len - 1] = 0x11;	/* maybe the ring's own words */
		sink ^= at[0] ^ at[iov[i].iov_len - 1];
	}
	return sum;
}

static void check_chain(const struct vring_chain *c)
{
	assert(c->head < ring.size && c->n_out + c->n_in <= VRING_SEGMENTS_MAX);
	assert(check_pieces(c->iov, c->n_out, false) == c->out_len);
	assert(check_pieces(c->iov + c->n_out, c->n_in, true) == c->in_len);
	assert(!ring.in_min || (c->n_out == 0 && c->in_len >= ring.in_min));
}

/* Does the driver want to be interrupted for the entries from @old on? virtio 1.2
 * §2.7.7.2, word by word. */
static bool wants_call(uint16_t old)
{
	uint16_t event = ring.avail[2 + ring.size];
	bool passed = false;

	if (!ring.event_idx)
		return !(ring.avail[0] & 1);
	for (uint16_t i = old; i != ring.used_next; i++)
		passed |= i == event;
	return passed;
}

/* --- steps ---------------------------------------------------------------------- */

static uint64_t take_address(struct fuzz_input *in)
{
	unsigned where = fuzz_take(in);
	uint64_t gpa = places[where % REGIONS].gpa;

	if (where & 0x10)	/* around its end */
		return gpa + places[where % REGIONS].size - 64 + fuzz_take(in);
	return gpa + fuzz_take16(in);
}

static void put(unsigned region, size_t at, const void *bytes, size_t len)
{
	const struct memory_region *r = &memory.regions[region];

	owed = false;
	if (at < r->size)
		memcpy(r->at + at, bytes, MIN(len, r->size - at));
}

static void put16(uint64_t uva, size_t at, uint16_t v)
{
	put(RINGS, uva - places[RINGS].uva + at, &v, sizeof(v));
}

static void step_describe(struct fuzz_input *in)
{
	struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d;
	unsigned slot = fuzz_take(in), where = fuzz_take(in);

	d.flags = fuzz_take(in);
	d.next = fuzz_take(in);
	d.len = fuzz_take16(in);
	if (where & 0x80)
		d.len = d.len << 16 | 0xffff;
	d.addr = take_address(in);
	if (where & 1)		/* of an indirect table */
		put(NEAR, 16 * (slot % 64), &d, sizeof(d));
	else
		put(RINGS, ring.addr.desc - places[RINGS].uva + 16 * (slot % ring.size), &d, sizeof(d));
}

static void step_offer(struct fuzz_input *in)
{
	for (unsigned n = fuzz_take(in) % 80, head = fuzz_take(in); n > 0; n--) {
		put16(ring.addr.avail, 4 + 2 * (offered % ring.size), (uint16_t)head++);
		put16(ring.addr.avail, 2, ++offered);
	}
}

static void step_jump(struct fuzz_input *in)
{
	offered = fuzz_take16(in);
	put16(ring.addr.avail, 2, offered);
}

static void step_events(struct fuzz_input *in)
{
	uint16_t near = (uint16_t)(vring_used_idx(&ring) + fuzz_take(in) - 128);

	put16(ring.addr.avail, 0, fuzz_take(in) & 1);
	put16(ring.addr.avail, 4 + 2ul * ring.size, near);
}

static void step_write(struct fuzz_input *in)
{
	unsigned region = fuzz_take(in) % REGIONS;
	size_t at = fuzz_take16(in);
	const uint8_t *bytes;
	size_t len = fuzz_take_bytes(in, 64, &bytes);

	put(region, at, bytes, len);
}

static void step_fetch(struct fuzz_input *in)
{
	unsigned have = vring_fetch(&ring, fuzz_take(in) % (VRING_AHEAD + 1));

	assert(have <= VRING_AHEAD && (!ring.broken.code || have == 0));
	assert(!ring.broken.code || (ring.broken.code < 0 && ring.broken.msg[0]));
	for (; seen < have; seen++)
		check_chain(vring_peek(&ring, seen));
}

static void step_push(struct fuzz_input *in)
{
	for (unsigned n = fuzz_take(in) % 80; n > 0 && seen > 0 && !ring.broken.code; n--, seen--, given++)
		vring_push(&ring, fuzz_take(in));
}

static void step_publish(struct fuzz_input *in)
{
	uint16_t old = ring.used_published;
	bool called, wanted, was_due = ring.call_due;

	vring_publish(&ring);
	if (old == ring.used_next || !ring.running)
		return;
	wanted = wants_call(old);
	called = was_called();
	assert(ring.used_published == ring.used_next && (called || !wanted || ring.call_due));
	if (!ring.lazy || !ring.event_idx)
		assert(called == (wanted || was_due));
	owed = !called && (owed || wanted);
}

/* Whoever looks twice and finds that the driver has not moved interrupts it. */
static void step_call_due(struct fuzz_input *in)
{
	vring_call_due(&ring);
	if (fuzz_take(in) & 1)
		vring_call_due(&ring);
	else
		owed &= ring.call_due;
	if (was_called())
		owed = false;
	assert(!owed || ring.call_due);
}

static void step_kicks(struct fuzz_input *in)
{
	bool more;

	owed = false;		/* the word may be one that the driver reads */
	if (fuzz_take(in) & 1) {
		vring_kicks_off(&ring);
		return;
	}
	more = vring_kicks_on(&ring);
	assert(!more || (ring.running && !ring.broken.code && !ring.kicks));
	if (!more && ring.running && !ring.broken.code && ring.event_idx)
		assert(ring.used[2 + 4 * ring.size] == ring.avail_next);
}

/* Sizes and places may change, and what was negotiated. */
static void start(struct fuzz_input *in)
{
	static const uint16_t sizes[] = { 16, 1, 4, 256, 1024, 128, 0, 24 };
	unsigned bits = fuzz_take(in), odd = fuzz_take(in);
	struct error err = ERROR_NONE;

	ring.mem = &memory;
	ring.size = sizes[bits & 7];
	ring.indirect = bits & 8;
	ring.event_idx = bits & 16;
	ring.lazy = bits & 32;
	ring.in_min = bits & 64 ? 108 : 0;
	if (bits & 128)
		base = offered = fuzz_take16(in);
	ring.addr = (struct vring_addr){ .desc = places[RINGS].uva, .avail = places[RINGS].uva + 0x4000,
					 .used = places[RINGS].uva + 0x4000 + 0x900 };
	if (odd & 1)
		ring.addr.desc += fuzz_take16(in);
	if (odd & 2)
		ring.addr.avail = places[RINGS].uva + fuzz_take16(in);
	if (odd & 4)
		ring.addr.used = places[RINGS].uva + fuzz_take16(in);
	seen = given = 0;
	owed = false;
	if (vring_start(&ring, base, &err) < 0) {
		assert(err.code < 0 && err.msg[0] && !ring.running);
		ring.size = 16;		/* of what the driver goes on writing */
	}
}

static void stop(void)
{
	bool running = ring.running;
	uint16_t next = vring_stop(&ring);

	if (running)
		assert(next == (uint16_t)(base + given));
	base = next;
	was_called();
}

static void step_restart(struct fuzz_input *in)
{
	stop();
	start(in);
}

static void (*const steps[])(struct fuzz_input *in) = { step_describe, step_offer,  step_jump,
							step_events,   step_write,  step_fetch,
							step_push,     step_publish, step_call_due,
							step_kicks,    step_restart };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct fuzz_input in = { data, len };
	int call = ring.call_fd;

	memset(&ring, 0, offsetof(struct vring, ahead));
	ring.call_fd = call;
	offered = base = 0;
	new_memory();
	start(&in);
	for (unsigned i = 0; in.len && i < STEPS_MAX; i++)
		steps[fuzz_take(&in) % ARRAY_SIZE(steps)](&in);
	stop();
	for (unsigned i = 0; i < REGIONS; i++)
		free(memory.regions[i].map);
	return 0;
}

void fuzz_seeds(void)
{
	enum { D, O, J, E, W, F, P, U, C, K, R };	/* as in steps */
	static const uint8_t seeds[][64] = {
		/* a readable and a writable buffer, one chain, given back */
		{ 8, 0, D, 0, 0, 1, 1, 16, 0, 1, 0, 0, D, 1, 0, 2, 0, 32, 0, 1, 64, 0,
		  O, 1, 0, F, 64, P, 1, 32, U, K, 0 },
		/* an indirect table of two */
		{ 8, 0, D, 0, 0, 4, 0, 32, 0, 1, 0, 0, D, 0, 1, 1, 1, 16, 0, 2, 0, 0,
		  D, 1, 1, 2, 0, 64, 0, 2, 16, 0, O, 1, 0, F, 64, P, 1, 64, U },
		/* across two regions, and up to the last address */
		{ 8, 0, D, 0, 0, 0, 0, 128, 0, 0x10, 0, D, 1, 0, 0, 0, 63, 0, 0x13, 1, O, 2, 0,
		  F, 64, P, 2, 0, 0, U },
		/* lazy with events, much of it; called when due */
		{ 16 | 32 | 5, 0, D, 0, 0, 0, 0, 8, 0, 1, 0, 0, E, 129, 0, O, 60, 0, F, 64, P, 3, 0, 0, 0,
		  U, C, 1, P, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
		/* the base wraps; restarted with fetched chains; event_idx */
		{ 16 | 128, 0, 254, 255, D, 0, 0, 0, 0, 8, 0, 1, 0, 0, O, 5, 0, F, 3, K, 0, P, 2, 0, 0,
		  R, 16, 0, F, 5, P, 3, 0, 0, 0, U, K, 0 },
		/* more than 4 GiB */
		{ 8, 0, D, 0, 0, 1, 1, 16, 0, 1, 0, 0, D, 1, 0x80, 0, 0, 255, 255, 1, 0, 0, O, 1, 0, F, 1 },
		/* receive buffers */
		{ 64, 0, D, 0, 0, 2, 0, 200, 0, 1, 0, 0, D, 1, 0, 2, 0, 50, 0, 1, 0, 0, O, 2, 0, F, 64 },
		/* used over avail over the descriptors */
		{ 16, 7, 16, 0, 0, 0, 4, 0, O, 9, 1, F, 9, P, 4, 1, 2, 3, 4, U, K, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		fuzz_seed_add_steps(seeds[i], sizeof(seeds[i]));
	ring.call_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}
