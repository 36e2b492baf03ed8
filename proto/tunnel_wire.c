#include "proto/tunnel_wire.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"

/* Field numbers of TunnelMessage, guestservice.proto. */
enum {
	FIELD_ID = 1,
	FIELD_PROTOCOL = 2,
	FIELD_DATA = 3,
	FIELD_GUEST_ADDR = 4,
	FIELD_KIND = 100,
	FIELD_ERROR = 101,
	FIELD_ERROR_NUMBER = 102,
};

/* Protobuf wire types, protobuf.dev "Encoding". */
enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

enum {
	VARINT_MAX = 10,	/* bytes of a 64-bit varint */
	HEAD_MAX = TUNNEL_ID_SIZE + 8 + TUNNEL_ADDR_SIZE + TUNNEL_ERROR_SIZE +
		   7 * 2 * VARINT_MAX,
};

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

static uint8_t *put_text(uint8_t *p, unsigned field, const char *text)
{
	size_t len = strlen(text);

	if (len == 0)
		return p;
	p = put_varint(p, field << 3 | WIRE_BYTES);
	p = put_varint(p, len);
	memcpy(p, text, len);
	return p + len;
}

static uint8_t *put_number(uint8_t *p, unsigned field, int32_t v)
{
	if (v == 0)
		return p;
	p = put_varint(p, field << 3 | WIRE_VARINT);
	return put_varint(p, (uint64_t)(int64_t)v);	/* negative: sign-extended */
}

grpc_slice tunnel_wire_head(const struct tunnel_head *head, size_t data_len)
{
	uint8_t out[HEAD_MAX], *p = out;

	p = put_text(p, FIELD_ID, head->id);
	p = put_text(p, FIELD_PROTOCOL, head->protocol);
	p = put_text(p, FIELD_GUEST_ADDR, head->guest_addr);
	p = put_number(p, FIELD_KIND, (int32_t)head->kind);
	p = put_text(p, FIELD_ERROR, head->error);
	p = put_number(p, FIELD_ERROR_NUMBER, head->error_number);
	if (data_len > 0) {	/* last: the caller's memory follows */
		p = put_varint(p, FIELD_DATA << 3 | WIRE_BYTES);
		p = put_varint(p, data_len);
	}
	assert(p <= out + sizeof(out));
	return grpc_slice_from_copied_buffer((const char *)out, (size_t)(p - out));
}

/* --- reading ------------------------------------------------------------- */

struct cursor {
	const grpc_slice *slices;
	size_t n;
	size_t index;
	size_t offset;		/* into slices[index] */
	size_t left;		/* bytes to the end of the message */
};

/* Moves past used-up slices, so that index/offset name an existing byte. */
static void settle(struct cursor *c)
{
	while (c->index < c->n && c->offset >= GRPC_SLICE_LENGTH(c->slices[c->index])) {
		c->offset = 0;
		c->index++;
	}
}

static int get_varint(struct cursor *c, uint64_t *ret)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < VARINT_MAX && c->left > 0; i++) {
		uint8_t byte;

		settle(c);
		byte = GRPC_SLICE_START_PTR(c->slices[c->index])[c->offset++];
		c->left--;
		v |= (uint64_t)(byte & 0x7f) << (7 * i);
		if (!(byte & 0x80)) {
			*ret = v;
			return 0;
		}
	}
	return -EPROTO;
}

/* Copies @len bytes to @out (NULL: only skips them); the caller checked left. */
static void take(struct cursor *c, uint8_t *out, size_t len)
{
	c->left -= len;
	while (len > 0) {
		size_t part;

		settle(c);
		part = MIN(len, GRPC_SLICE_LENGTH(c->slices[c->index]) - c->offset);
		if (out) {
			memcpy(out, GRPC_SLICE_START_PTR(c->slices[c->index]) + c->offset, part);
			out += part;
		}
		c->offset += part;
		len -= part;
	}
}

static int get_text(struct cursor *c, char *out, size_t size, size_t len, const char *what,
		    struct error *err)
{
	if (len >= size)
		return error_set(err, -EMSGSIZE, "%s of %zu bytes, %zu are allowed", what, len,
				 size - 1);
	take(c, (uint8_t *)out, len);
	out[len] = 0;
	if (memchr(out, 0, len))
		return error_set(err, -EPROTO, "%s has a zero byte", what);
	return 0;
}

static int read_bytes(struct cursor *c, uint64_t field, size_t len, struct tunnel_head *head,
		      struct tunnel_data *data, struct error *err)
{
	switch (field) {
	case FIELD_ID:
		return get_text(c, head->id, sizeof(head->id), len, "id", err);
	case FIELD_PROTOCOL:
		return get_text(c, head->protocol, sizeof(head->protocol), len, "protocol", err);
	case FIELD_GUEST_ADDR:
		return get_text(c, head->guest_addr, sizeof(head->guest_addr), len, "guest_addr",
				err);
	case FIELD_ERROR:	/* for the log only: a long one is cut */
		take(c, (uint8_t *)head->error, MIN(len, sizeof(head->error) - 1));
		head->error[MIN(len, sizeof(head->error) - 1)] = 0;
		take(c, NULL, len - MIN(len, sizeof(head->error) - 1));
		return 0;
	case FIELD_DATA:
		settle(c);
		*data = (struct tunnel_data){ .index = c->index, .offset = c->offset, .len = len };
		break;
	}
	take(c, NULL, len);
	return 0;
}

static int read_field(struct cursor *c, struct tunnel_head *head, struct tunnel_data *data,
		      struct error *err)
{
	uint64_t key, v;

	if (get_varint(c, &key) < 0)
		goto cut;
	switch (key & 7) {
	case WIRE_VARINT:
		if (get_varint(c, &v) < 0)
			goto cut;
		if (key >> 3 == FIELD_KIND)
			head->kind = (TunnelMessage__Kind)(int32_t)v;
		else if (key >> 3 == FIELD_ERROR_NUMBER)
			head->error_number = (int32_t)v;
		return 0;
	case WIRE_BYTES:
		if (get_varint(c, &v) < 0 || v > c->left)
			goto cut;
		return read_bytes(c, key >> 3, (size_t)v, head, data, err);
	case WIRE_FIXED64:
	case WIRE_FIXED32:
		v = (key & 7) == WIRE_FIXED64 ? 8 : 4;
		if (v > c->left)
			goto cut;
		take(c, NULL, (size_t)v);
		return 0;
	}
	return error_set(err, -EPROTO, "wire type %u", (unsigned)(key & 7));
cut:
	return error_set(err, -EPROTO, "cut short");
}

int tunnel_wire_read(const grpc_slice *slices, size_t n, struct tunnel_head *head,
		     struct tunnel_data *data, struct error *err)
{
	struct cursor c = { .slices = slices, .n = n };

	head->kind = TUNNEL_MESSAGE__KIND__DATA;
	head->id[0] = head->protocol[0] = head->guest_addr[0] = head->error[0] = 0;
	head->error_number = 0;
	*data = (struct tunnel_data){ 0 };
	for (size_t i = 0; i < n; i++)
		c.left += GRPC_SLICE_LENGTH(slices[i]);
	if (c.left > TUNNEL_MESSAGE_MAX)
		return error_set(err, -EMSGSIZE, "tunnel message of %zu bytes, %d are allowed",
				 c.left, TUNNEL_MESSAGE_MAX);
	while (c.left > 0) {
		if (read_field(&c, head, data, err) < 0)
			return error_wrap(err, "tunnel message");
	}
	return 0;
}

bool tunnel_wire_next(const grpc_slice *slices, struct tunnel_data *data, const uint8_t **piece,
		      size_t *len)
{
	if (data->len == 0)
		return false;
	while (data->offset >= GRPC_SLICE_LENGTH(slices[data->index])) {
		data->offset = 0;
		data->index++;
	}
	*piece = GRPC_SLICE_START_PTR(slices[data->index]) + data->offset;
	*len = MIN(data->len, GRPC_SLICE_LENGTH(slices[data->index]) - data->offset);
	data->offset += *len;
	data->len -= *len;
	return true;
}
