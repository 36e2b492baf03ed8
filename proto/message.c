#include "proto/message.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/utf8.h"
#include "proto/relay.h"

grpc_byte_buffer *message_pack(const ProtobufCMessage *msg)
{
	grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(msg));
	grpc_byte_buffer *bb;

	protobuf_c_message_pack(msg, GRPC_SLICE_START_PTR(slice));
	bb = grpc_raw_byte_buffer_create(&slice, 1);
	grpc_slice_unref(slice);
	return bb;
}

static void *budget_alloc(void *data, size_t size)
{
	size_t *left = data;

	if (size > *left)
		return NULL;
	*left -= size;
	return xmalloc(size);
}

static void budget_free(void *data, void *p)
{
	free(p);
}

void *message_unpack(const ProtobufCMessageDescriptor *type, const grpc_byte_buffer *from,
		     struct error *err)
{
	size_t left = MESSAGE_BUDGET;
	ProtobufCAllocator budget = { budget_alloc, budget_free, &left };
	grpc_byte_buffer_reader reader;
	grpc_slice all;
	void *msg;

	if (from->data.raw.compression != GRPC_COMPRESS_NONE ||
	    !grpc_byte_buffer_reader_init(&reader, (grpc_byte_buffer *)from)) {
		error_set(err, -EPROTO, "%s is compressed", type->name);
		return NULL;
	}
	all = grpc_byte_buffer_reader_readall(&reader);
	grpc_byte_buffer_reader_destroy(&reader);
	msg = protobuf_c_message_unpack(type, &budget, GRPC_SLICE_LENGTH(all),
					GRPC_SLICE_START_PTR(all));
	if (!msg)
		error_set(err, -EPROTO, "%s of %zu bytes does not parse or is too large",
			  type->name, GRPC_SLICE_LENGTH(all));
	grpc_slice_unref(all);
	return msg;
}

bool message_port_valid(const IPPort *port)
{
	uint8_t addr[sizeof(struct in6_addr)];

	if (!streq(port->protocol, "tcp") && !streq(port->protocol, "udp"))
		return false;
	if (inet_pton(AF_INET, port->ip, addr) != 1 && inet_pton(AF_INET6, port->ip, addr) != 1)
		return false;
	return port->port >= 1 && port->port <= 65535;
}

static void clean_ports(size_t *n, IPPort **ports)
{
	size_t kept = 0;

	for (size_t i = 0; i < *n; i++) {
		IPPort *p = ports[i];

		if (kept < MESSAGE_PORTS_MAX && message_port_valid(p)) {
			ports[kept++] = p;
			continue;
		}
		message_clean_text(p->protocol, 8);
		message_clean_text(p->ip, INET6_ADDRSTRLEN);
		log_warn_limited("guest: no such port: protocol `%s`, address `%s`, port %d, "
				 "ignoring", p->protocol, p->ip, p->port);
		ipport__free_unpacked(p, NULL);
	}
	*n = kept;
}

/* The code point of a valid sequence of @n bytes (RFC 3629). */
static uint32_t code_point(const char *s, size_t n)
{
	static const uint8_t first_bits[] = { 0, 0x7f, 0x1f, 0x0f, 0x07 };
	uint32_t c = (uint8_t)s[0] & first_bits[n];

	for (size_t i = 1; i < n; i++)
		c = c << 6 | ((uint8_t)s[i] & 0x3f);
	return c;
}

/* Turns the rest of a line around, begins another one, or is not seen while the text
 * is another (Unicode TR 9, TR 36; TR 14 on line breaks). The joiners 200C
 * and 200D are not seen either, but words of Persian and Hindi are misspelt without
 * them: they stay. 0085 is one of the C1 controls. @s: a sequence of @n bytes. */
static bool is_deceiving(const char *s, size_t n)
{
	static const struct {
		uint32_t first, last;
	} ranges[] = {
		{ 0x00ad, 0x00ad },	/* soft hyphen */
		{ 0x061c, 0x061c },	/* Arabic letter mark */
		{ 0x200b, 0x200b },	/* zero width space */
		{ 0x200e, 0x200f },	/* left-to-right, right-to-left mark */
		{ 0x2028, 0x202e },	/* line, paragraph separator; embeddings, overrides */
		{ 0x2060, 0x206f },	/* word joiner, invisible signs, isolates, shaping */
		{ 0xfeff, 0xfeff },	/* byte order mark, or no-break of no width */
		{ 0xe0000, 0xe007f },	/* tags: a whole text nobody sees */
	};
	uint32_t c = code_point(s, n);

	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++)
		if (c >= ranges[i].first && c <= ranges[i].last)
			return true;
	return false;
}

void message_clean_text(char *s, size_t max)
{
	size_t len = strnlen(s, max + 1), at = 0;

	while (at < len) {
		size_t n = utf8_seq_len(s + at, len - at);

		if (at + MAX(n, (size_t)1) > max)
			break;
		if (n == 0 || (unsigned char)s[at] < 0x20 || s[at] == 0x7f ||
		    ((unsigned char)s[at] == 0xc2 && (unsigned char)s[at + 1] < 0xa0)) {
			s[at++] = '?';
			continue;
		}
		if (is_deceiving(s + at, n))
			memset(s + at, '?', n);
		at += n;
	}
	if (s[at])
		s[at] = 0;
}

static void clean_texts(size_t *n, char **texts, size_t max_n)
{
	while (*n > max_n)
		free(texts[--*n]);
	for (size_t i = 0; i < *n; i++)
		message_clean_text(texts[i], MESSAGE_TEXT_MAX);
}

/* 0 and VMADDR_PORT_ANY are no ports (vsock(7)). An agent that does not say how many has
 * one. */
static void clean_vsock_ports(uint32_t *first, uint32_t *n)
{
	if (*first == UINT32_MAX)
		*first = 0;
	if (*n == 0 || *n > RELAY_VSOCK_PORTS_MAX || *n > UINT32_MAX - *first)
		*n = 1;
}

static void clean_boot(BootProgress *boot)
{
	if (!boot)
		return;
	message_clean_text(boot->instance_id, MESSAGE_ID_MAX);
	message_clean_text(boot->step, MESSAGE_TEXT_MAX);
	clean_texts(&boot->n_failed, boot->failed, MESSAGE_ERRORS_MAX);
}

void message_clean_event(Event *event)
{
	clean_ports(&event->n_added_local_ports, event->added_local_ports);
	clean_ports(&event->n_removed_local_ports, event->removed_local_ports);
	clean_texts(&event->n_errors, event->errors, MESSAGE_ERRORS_MAX);
	clean_boot(event->boot);
	clean_vsock_ports(&event->relay_vsock_port, &event->relay_vsock_ports);
}

void message_clean_info(Info *info)
{
	clean_ports(&info->n_local_ports, info->local_ports);
	clean_texts(&info->n_features, info->features, MESSAGE_ERRORS_MAX);
	message_clean_text(info->agent_version, MESSAGE_ID_MAX);
	message_clean_text(info->boot_id, MESSAGE_ID_MAX);
	message_clean_text(info->kernel, MESSAGE_ID_MAX);
	clean_boot(info->boot);
	clean_vsock_ports(&info->relay_vsock_port, &info->relay_vsock_ports);
}
