#include "lib/virtio/vsock_packet.h"

#include <endian.h>
#include <stddef.h>
#include <string.h>

/* As it is on the wire, little-endian. */
struct wire {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct wire) == VSOCK_PACKET_HEADER, "virtio 1.2 §5.10.6");

void vsock_packet_decode(const uint8_t in[VSOCK_PACKET_HEADER], struct vsock_packet *ret)
{
	struct wire w;

	memcpy(&w, in, sizeof(w));
	*ret = (struct vsock_packet){
		.src_cid = le64toh(w.src_cid), .dst_cid = le64toh(w.dst_cid),
		.src_port = le32toh(w.src_port), .dst_port = le32toh(w.dst_port),
		.len = le32toh(w.len), .type = le16toh(w.type), .op = le16toh(w.op),
		.flags = le32toh(w.flags), .buf_alloc = le32toh(w.buf_alloc),
		.fwd_cnt = le32toh(w.fwd_cnt),
	};
}

void vsock_packet_encode(const struct vsock_packet *p, uint8_t out[VSOCK_PACKET_HEADER])
{
	struct wire w = {
		.src_cid = htole64(p->src_cid), .dst_cid = htole64(p->dst_cid),
		.src_port = htole32(p->src_port), .dst_port = htole32(p->dst_port),
		.len = htole32(p->len), .type = htole16(p->type), .op = htole16(p->op),
		.flags = htole32(p->flags), .buf_alloc = htole32(p->buf_alloc),
		.fwd_cnt = htole32(p->fwd_cnt),
	};

	memcpy(out, &w, sizeof(w));
}

const char *vsock_packet_check(const struct vsock_packet *p, uint64_t payload)
{
	if (p->type != VSOCK_STREAM)
		return "not a stream";
	if (p->op == VSOCK_OP_INVALID || p->op >= VSOCK_OP_COUNT)
		return "unknown operation";
	if (p->len > payload)
		return "longer than its buffers";
	if (p->len > VSOCK_PACKET_MAX)
		return "too long";
	if (p->len && p->op != VSOCK_OP_RW)
		return "payload where none may be";
	if (p->op == VSOCK_OP_SHUTDOWN &&
	    (p->flags == 0 || p->flags & ~(uint32_t)(VSOCK_SHUTDOWN_RCV | VSOCK_SHUTDOWN_SEND)))
		return "shutdown of nothing";
	return NULL;
}

uint32_t vsock_credit(uint32_t buf_alloc, uint32_t fwd_cnt, uint32_t sent)
{
	uint32_t in_flight = sent - fwd_cnt;

	return in_flight < buf_alloc ? buf_alloc - in_flight : 0;
}
