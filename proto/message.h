/* message.h - protobuf messages to and from gRPC buffers, with bounds
 *
 * A few bytes on the wire can unpack to many times their size (an empty IPPort
 * is 2 bytes there and a hundred here), so unpacking draws on a budget and fails
 * when it is used up. What is unpacked from a guest is then cleaned: entries
 * that make no sense are dropped, texts made fit to print.
 */
#pragma once

#include <grpc/byte_buffer.h>
#include <stdbool.h>
#include <stddef.h>

#include "lib/base/error.h"
#include "proto/guestservice.pb-c.h"

enum {
	MESSAGE_BUDGET = 32 << 20,	/* bytes: 2 x 65,535 ports fit three times */
	MESSAGE_PORTS_MAX = 2 * 65536,	/* per list */
	MESSAGE_ERRORS_MAX = 32,	/* per event */
	MESSAGE_TEXT_MAX = 512,		/* bytes of any text for people */
	MESSAGE_ID_MAX = 128,		/* versions, ids */
};

grpc_byte_buffer *message_pack(const ProtobufCMessage *msg);

/* NULL on failure. Free with protobuf_c_message_free_unpacked(msg, NULL). */
void *message_unpack(const ProtobufCMessageDescriptor *type, const grpc_byte_buffer *from,
		     struct error *err);

/* "tcp" or "udp", an address that parses, 1..65535. */
bool message_port_valid(const IPPort *port);

/* Drop and log (limited) what is invalid; cut and clean texts in place. */
void message_clean_event(Event *event);
void message_clean_info(Info *info);

/* Makes @s printable UTF-8 of at most @max bytes, in place. */
void message_clean_text(char *s, size_t max);
