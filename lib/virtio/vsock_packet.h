/* vsock_packet.h - the header in front of every vsock packet (virtio 1.2 §5.10.6)
 *
 * Pure: bytes to values and back, and what a header must look like whatever the
 * state of its connection.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
	VSOCK_PACKET_HEADER = 44,
	VSOCK_PACKET_MAX = 65536,	/* payload; Linux VIRTIO_VSOCK_MAX_PKT_BUF_SIZE */
	VSOCK_STREAM = 1,		/* type */
};

enum vsock_op {
	VSOCK_OP_INVALID,
	VSOCK_OP_REQUEST,
	VSOCK_OP_RESPONSE,
	VSOCK_OP_RST,
	VSOCK_OP_SHUTDOWN,
	VSOCK_OP_RW,
	VSOCK_OP_CREDIT_UPDATE,
	VSOCK_OP_CREDIT_REQUEST,
	VSOCK_OP_COUNT,
};

enum { VSOCK_SHUTDOWN_RCV = 1, VSOCK_SHUTDOWN_SEND = 2 };	/* flags of SHUTDOWN */

struct vsock_packet {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint32_t len;			/* of the payload behind it */
	uint16_t type, op;
	uint32_t flags;
	uint32_t buf_alloc, fwd_cnt;	/* the sender's receive buffer, and bytes gone from it */
};

void vsock_packet_decode(const uint8_t in[VSOCK_PACKET_HEADER], struct vsock_packet *ret);
void vsock_packet_encode(const struct vsock_packet *p, uint8_t out[VSOCK_PACKET_HEADER]);

/* @payload: bytes that came behind the header. NULL, or what is wrong with it. */
const char *vsock_packet_check(const struct vsock_packet *p, uint64_t payload);

/* Bytes that may still be sent to a peer that said @buf_alloc and @fwd_cnt, after
 * @sent in all; counters wrap. */
uint32_t vsock_credit(uint32_t buf_alloc, uint32_t fwd_cnt, uint32_t sent);
