#include "lib/virtio/vring.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <unistd.h>

#include "lib/base/mem.h"

/* virtio 1.2 §2.7.5 to §2.7.8; all little-endian */
struct vring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

enum {
	DESC_NEXT = 1,
	DESC_WRITE = 2,
	DESC_INDIRECT = 4,
	AVAIL_NO_INTERRUPT = 1,
	USED_NO_NOTIFY = 1,
	FLAGS = 0, IDX = 1, RING = 2,	/* 16-bit words of avail and used */
};

static uint16_t load16(const volatile uint16_t *p)
{
	return le16toh(__atomic_load_n(p, __ATOMIC_RELAXED));
}

static void store16(volatile uint16_t *p, uint16_t v)
{
	__atomic_store_n(p, htole16(v), __ATOMIC_RELAXED);
}

/* used_event: where the driver wants to be interrupted, behind avail's ring;
 * avail_event: where we want to be kicked, behind used's (§2.7.7.2, §2.7.10). */
static volatile uint16_t *used_event(const struct vring *r)
{
	return &r->avail[RING + r->size];
}

static volatile uint16_t *avail_event(const struct vring *r)
{
	return &r->used[RING + 4 * r->size];
}

int vring_start(struct vring *r, uint16_t base, struct error *err)
{
	if (r->size == 0 || r->size > VRING_SIZE_MAX || (r->size & (r->size - 1)))
		return error_set(err, -EINVAL, "a ring of %u entries", r->size);
	r->desc = memory_at_uva(r->mem, r->addr.desc, 16ul * r->size, 16);
	r->avail = memory_at_uva(r->mem, r->addr.avail, 6 + 2ul * r->size, 2);
	r->used = memory_at_uva(r->mem, r->addr.used, 6 + 8ul * r->size, 4);
	if (!r->desc || !r->avail || !r->used)
		return error_set(err, -EINVAL, "a ring of %u entries is not within guest memory, "
				 "or not aligned", r->size);
	r->avail_next = r->avail_seen = base;
	r->used_next = r->used_published = load16(&r->used[IDX]);
	r->first = r->fetched = 0;
	r->broken = ERROR_NONE;
	r->running = true;
	r->call_due = false;
	r->kicks = true;
	vring_kicks_off(r);
	return 0;
}

uint16_t vring_stop(struct vring *r)
{
	if (!r->running)
		return r->avail_next;
	if (!r->broken.code)
		vring_publish(r);
	if (r->call_due)
		vring_call(r);
	r->avail_next = (uint16_t)(r->avail_next - r->fetched);
	r->first = r->fetched = 0;
	r->running = false;
	r->desc = NULL;
	r->avail = r->used = NULL;
	return r->avail_next;
}

uint16_t vring_used_idx(const struct vring *r)
{
	return r->used_next;
}

/* --- taking --------------------------------------------------------------- */

struct table {				/* where a chain's descriptors are */
	volatile struct vring_desc *at;
	uint32_t n;
};

static struct vring_desc read_desc(const struct table *t, uint16_t i)
{
	volatile struct vring_desc *d = &t->at[i];

	return (struct vring_desc){
		.addr = le64toh(__atomic_load_n(&d->addr, __ATOMIC_RELAXED)),
		.len = le32toh(__atomic_load_n(&d->len, __ATOMIC_RELAXED)),
		.flags = le16toh(__atomic_load_n(&d->flags, __ATOMIC_RELAXED)),
		.next = le16toh(__atomic_load_n(&d->next, __ATOMIC_RELAXED)),
	};
}

static int add_segment(struct vring *r, struct vring_chain *c, const struct vring_desc *d)
{
	bool in = d->flags & DESC_WRITE;
	unsigned have = c->n_out + c->n_in;
	uint32_t *len = in ? &c->in_len : &c->out_len;
	int n;

	if (!in && c->n_in)
		return error_set(&r->broken, -EINVAL, "a readable buffer behind a writable one");
	if (__builtin_add_overflow(*len, d->len, len))
		return error_set(&r->broken, -EINVAL, "a chain of more than 4 GiB");
	n = memory_at_gpa(r->mem, d->addr, d->len, &c->iov[have], (int)(VRING_SEGMENTS_MAX - have));
	if (n < 0)
		return error_set(&r->broken, -EINVAL, have == VRING_SEGMENTS_MAX
				 ? "a chain of too many buffers" : "a buffer outside guest memory");
	if (in)
		c->n_in = (uint8_t)(c->n_in + n);
	else
		c->n_out = (uint8_t)(c->n_out + n);
	return 0;
}

/* An indirect table lies in one piece of memory; it must be the chain's only
 * descriptor here, though §2.7.5.3.1 would allow more before it. */
static int enter_indirect(struct vring *r, const struct vring_chain *c, const struct vring_desc *d,
			  struct table *t)
{
	struct iovec piece;

	if (!r->indirect || t->at != r->desc || c->n_out || c->n_in || (d->flags & DESC_NEXT))
		return error_set(&r->broken, -EINVAL, "an indirect table where none may be");
	if (d->len == 0 || d->len % sizeof(struct vring_desc) ||
	    d->len / sizeof(struct vring_desc) > VRING_SIZE_MAX ||
	    memory_at_gpa(r->mem, d->addr, d->len, &piece, 1) != 1)
		return error_set(&r->broken, -EINVAL, "an indirect table outside guest memory");
	if ((uintptr_t)piece.iov_base % 8)
		return error_set(&r->broken, -EINVAL, "an indirect table that is not aligned");
	*t = (struct table){ piece.iov_base, d->len / (uint32_t)sizeof(struct vring_desc) };
	return 0;
}

static int read_chain(struct vring *r, uint16_t head, struct vring_chain *c)
{
	struct table t = { r->desc, r->size };
	uint16_t i = head;

	c->head = head;
	c->n_out = c->n_in = 0;
	c->out_len = c->in_len = 0;
	/* one more step for the entry into an indirect table */
	for (unsigned steps = 0; steps <= VRING_SEGMENTS_MAX; steps++) {
		struct vring_desc d;

		if (i >= t.n)
			return error_set(&r->broken, -EINVAL, "descriptor %u of %u", i, t.n);
		d = read_desc(&t, i);
		if (d.flags & DESC_INDIRECT) {
			if (enter_indirect(r, c, &d, &t) < 0)
				return r->broken.code;
			i = 0;
			continue;
		}
		if (add_segment(r, c, &d) < 0)
			return r->broken.code;
		if (!(d.flags & DESC_NEXT))
			return 0;
		i = d.next;
	}
	return error_set(&r->broken, -EINVAL, "a chain of too many buffers");
}

static int read_chain_checked(struct vring *r, uint16_t head, struct vring_chain *c)
{
	if (read_chain(r, head, c) < 0)
		return r->broken.code;
	if (r->in_min && (c->n_out || c->in_len < r->in_min))
		return error_set(&r->broken, -EINVAL, "a receive buffer of %u bytes", c->in_len);
	return 0;
}

static bool more_offered(struct vring *r)
{
	if (r->avail_seen == r->avail_next)
		/* acquire: what the driver wrote before it moved idx */
		r->avail_seen = le16toh(__atomic_load_n(&r->avail[IDX], __ATOMIC_ACQUIRE));
	if ((uint16_t)(r->avail_seen - r->avail_next) > r->size) {
		error_set(&r->broken, -EINVAL, "avail moved from %u to %u in a ring of %u",
			  r->avail_next, r->avail_seen, r->size);
		return false;
	}
	return r->avail_seen != r->avail_next;
}

unsigned vring_fetch(struct vring *r, unsigned want)
{
	assert(want <= VRING_AHEAD);
	while (r->running && !r->broken.code && r->fetched < want && more_offered(r)) {
		uint16_t head = load16(&r->avail[RING + (r->avail_next & (r->size - 1))]);

		if (read_chain_checked(r, head, &r->ahead[(r->first + r->fetched) % VRING_AHEAD]) < 0)
			break;
		r->avail_next++;
		r->fetched++;
	}
	return r->running && !r->broken.code ? r->fetched : 0;
}

struct vring_chain *vring_peek(struct vring *r, unsigned i)
{
	assert(i < r->fetched);
	return &r->ahead[(r->first + i) % VRING_AHEAD];
}

/* --- giving back ---------------------------------------------------------- */

void vring_push(struct vring *r, uint32_t written)
{
	volatile uint32_t *entry = (volatile uint32_t *)
			(r->used + RING + 4 * (r->used_next & (r->size - 1)));

	assert(r->fetched > 0);
	__atomic_store_n(&entry[0], htole32(r->ahead[r->first].head), __ATOMIC_RELAXED);
	__atomic_store_n(&entry[1], htole32(written), __ATOMIC_RELAXED);
	r->used_next++;
	r->first = (r->first + 1) % VRING_AHEAD;
	r->fetched--;
}

/* Did idx, moving from @old to @now, pass @event? §2.7.10 */
static bool passed(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

void vring_call(const struct vring *r)
{
	static const uint64_t one = 1;

	/* full (EAGAIN): then it is signalled already */
	if (r->running && r->call_fd >= 0 && write(r->call_fd, &one, sizeof(one)) < 0)
		return;
}

/* True: the driver hears of it later. */
static bool put_off(struct vring *r, uint16_t old)
{
	if (!r->lazy || !r->event_idx)
		return false;
	if (!r->call_due)
		r->due_from = old;
	r->call_due = (uint16_t)(r->used_next - r->due_from) < r->size / 4;
	return r->call_due;
}

void vring_call_due(struct vring *r)
{
	uint16_t event;

	if (!r->call_due || !r->running)
		return;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* Linux moves the event behind what it took (virtqueue_enable_cb()) */
	event = load16(used_event(r));
	r->call_due = passed(event, r->used_published, r->due_from);
	if (r->call_due && event != r->due_from) {
		r->due_from = event;
		return;
	}
	if (r->call_due)
		vring_call(r);
	r->call_due = false;
}

void vring_publish(struct vring *r)
{
	uint16_t old = r->used_published;
	bool call;

	if (!r->running || r->used_next == old)
		return;
	/* release: the entries, and what is in the buffers, come first */
	__atomic_store_n(&r->used[IDX], htole16(r->used_next), __ATOMIC_RELEASE);
	r->used_published = r->used_next;
	/* idx must be visible before we look whether the driver sleeps: it does the
	 * reverse */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (r->event_idx)
		call = passed(load16(used_event(r)), r->used_next, old);
	else
		call = !(load16(&r->avail[FLAGS]) & AVAIL_NO_INTERRUPT);
	if ((call || r->call_due) && !put_off(r, old))
		vring_call(r);
}

/* --- kicks ---------------------------------------------------------------- */

bool vring_kicks_on(struct vring *r)
{
	if (!r->running || r->broken.code)
		return false;
	if (r->event_idx)	/* stale as soon as we went on, so write it each time */
		store16(avail_event(r), r->avail_next);
	else if (!r->kicks)
		store16(&r->used[FLAGS], 0);
	r->kicks = true;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!more_offered(r))
		return false;
	vring_kicks_off(r);
	return true;
}

void vring_kicks_off(struct vring *r)
{
	if (!r->running || !r->kicks)
		return;
	r->kicks = false;
	if (!r->event_idx)	/* with event_idx no word is needed: idx has passed it */
		store16(&r->used[FLAGS], USED_NO_NOTIFY);
}
