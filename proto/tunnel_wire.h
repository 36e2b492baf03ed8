/* tunnel_wire.h - TunnelMessage on the wire, by hand, so that data is not copied
 *
 * protobuf-c would copy the payload twice. Here a message to send is a small
 * head slice (all other fields and the length of `data`) followed by the
 * caller's own memory; a received one is read in place out of gRPC's slices and
 * tells where its data lies.
 *
 * Everything a peer may send is bounded: texts longer than their array, and a
 * message that is no protobuf, are refused. Unknown fields are skipped.
 */
#pragma once

#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "proto/guestservice.pb-c.h"

enum {
	TUNNEL_ID_SIZE = 160,		/* Lima: "tcp-127.0.0.1:8080-…", we echo it */
	TUNNEL_ADDR_SIZE = 64 + 1,
	TUNNEL_ERROR_SIZE = 256,
	TUNNEL_MESSAGE_MAX = 1 << 20,	/* bytes; Lima sends 32 KiB, we 256 KiB */
	TUNNEL_DATAGRAM_MAX = 65507,	/* UDP over IPv4: 65535 - 20 - 8 */
};

/* All but the data. An empty text is left out, as proto3 wants it. */
struct tunnel_head {
	TunnelMessage__Kind kind;
	char id[TUNNEL_ID_SIZE];
	char protocol[8];
	char guest_addr[TUNNEL_ADDR_SIZE];
	char error[TUNNEL_ERROR_SIZE];
	int32_t error_number;
};

/* The slice that goes in front of @data_len bytes of data (0: no data field). */
grpc_slice tunnel_wire_head(const struct tunnel_head *head, size_t data_len);

/* Where the data of a received message lies: @len bytes from byte @offset of
 * slice @index on. */
struct tunnel_data {
	size_t index;
	size_t offset;
	size_t len;
};

/* Reads @n slices. @head is filled even on failure, with what was readable. */
int tunnel_wire_read(const grpc_slice *slices, size_t n, struct tunnel_head *head,
		     struct tunnel_data *data, struct error *err);

/* The next contiguous piece of @data, which moves on; false at the end. Points
 * into the slices where they are stored: small ones hold their bytes themselves,
 * so a copied slice struct would not do. */
bool tunnel_wire_next(const grpc_slice *slices, struct tunnel_data *data, const uint8_t **piece,
		      size_t *len);
