/* What a guest agent can send to the host agent: messages of GuestService, whole
 * or not, and the bytes of a link before its handshake is done. The first byte
 * of an input chooses the reader. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/utf8.h"
#include "proto/link.h"
#include "proto/message.h"
#include "proto/rpc_queue.h"
#include "proto/status.h"
#include "proto/tunnel_wire.h"
#include "test/fuzz/fuzz.h"

enum { SLICES_MAX = 64 };

static grpc_byte_buffer *byte_buffer(const uint8_t *data, size_t len)
{
	grpc_slice slice = grpc_slice_from_copied_buffer((const char *)data, len);
	grpc_byte_buffer *bb = grpc_raw_byte_buffer_create(&slice, 1);

	grpc_slice_unref(slice);
	return bb;
}

static void *unpack(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t len)
{
	grpc_byte_buffer *bb = byte_buffer(data, len);
	struct error err = ERROR_NONE;
	void *msg = message_unpack(type, bb, &err);

	assert(msg || (err.code < 0 && err.msg[0]));
	grpc_byte_buffer_destroy(bb);
	return msg;
}

/* Fit for a terminal and for JSON. */
static void check_text(const char *s, size_t max)
{
	size_t len = strlen(s);

	assert(len <= max);
	for (size_t at = 0; at < len; ) {
		size_t n = utf8_seq_len(s + at, len - at);

		assert(n > 0 && (unsigned char)s[at] >= 0x20 && s[at] != 0x7f);
		at += n;
	}
}

static void check_ports(IPPort *const *ports, size_t n)
{
	assert(n <= MESSAGE_PORTS_MAX);
	for (size_t i = 0; i < n; i++)
		assert(message_port_valid(ports[i]));
}

static void check_boot(const BootProgress *b)
{
	if (!b)
		return;
	check_text(b->instance_id, MESSAGE_ID_MAX);
	check_text(b->step, MESSAGE_TEXT_MAX);
	assert(b->n_failed <= MESSAGE_ERRORS_MAX);
	for (size_t i = 0; i < b->n_failed; i++)
		check_text(b->failed[i], MESSAGE_TEXT_MAX);
}

static void read_info(struct fuzz_input in)
{
	Info *info = unpack(&info__descriptor, in.data, in.len);

	if (!info)
		return;
	message_clean_info(info);
	check_ports(info->local_ports, info->n_local_ports);
	check_text(info->agent_version, MESSAGE_ID_MAX);
	check_text(info->boot_id, MESSAGE_ID_MAX);
	check_text(info->kernel, MESSAGE_ID_MAX);
	check_boot(info->boot);
	info__free_unpacked(info, NULL);
}

static void read_event(struct fuzz_input in)
{
	Event *event = unpack(&event__descriptor, in.data, in.len);

	if (!event)
		return;
	message_clean_event(event);
	check_ports(event->added_local_ports, event->n_added_local_ports);
	check_ports(event->removed_local_ports, event->n_removed_local_ports);
	assert(event->n_errors <= MESSAGE_ERRORS_MAX);
	for (size_t i = 0; i < event->n_errors; i++)
		check_text(event->errors[i], MESSAGE_TEXT_MAX);
	check_boot(event->boot);
	event__free_unpacked(event, NULL);
}

static void read_time(struct fuzz_input in)
{
	TimeSyncResponse *res = unpack(&time_sync_response__descriptor, in.data, in.len);

	if (!res)
		return;
	message_clean_text(res->error, MESSAGE_TEXT_MAX);
	check_text(res->error, MESSAGE_TEXT_MAX);
	time_sync_response__free_unpacked(res, NULL);
}

/* The message is cut into slices where the input says so, as HTTP/2 frames do. */
static size_t slice_up(struct fuzz_input in, unsigned step, grpc_slice *out)
{
	size_t n = 0;

	while (in.len > 0) {
		size_t part = n == SLICES_MAX - 1 ? in.len : MIN(in.len, 1 + (step * (n + 1)) % 97);

		out[n++] = grpc_slice_from_copied_buffer((const char *)in.data, part);
		in.data += part;
		in.len -= part;
	}
	return n;
}

/* A head that was read can be written, and then reads the same. */
static void check_round_trip(const struct tunnel_head *head)
{
	grpc_slice slice = tunnel_wire_head(head, 0);
	struct error err = ERROR_NONE;
	struct tunnel_head again;
	struct tunnel_data none;
	int rc = tunnel_wire_read(&slice, 1, &again, &none, &err);

	assert(rc == 0);
	assert(again.kind == head->kind && again.error_number == head->error_number);
	assert(streq(again.id, head->id) && streq(again.protocol, head->protocol));
	assert(streq(again.guest_addr, head->guest_addr) && streq(again.error, head->error));
	grpc_slice_unref(slice);
}

static volatile uint8_t sink;	/* every byte that is told to be there is read */

static void read_tunnel(struct fuzz_input in)
{
	unsigned step = fuzz_take(&in);
	grpc_slice slices[SLICES_MAX];
	size_t n = slice_up(in, step, slices), sum = 0, len = 0, data_len;
	struct error err = ERROR_NONE;
	struct tunnel_head head;
	struct tunnel_data data;
	const uint8_t *piece;

	if (tunnel_wire_read(slices, n, &head, &data, &err) < 0) {
		assert(err.code < 0 && err.msg[0]);
	} else {
		data_len = data.len;
		while (tunnel_wire_next(slices, &data, &piece, &len)) {
			sum += len;
			for (size_t i = 0; i < len; i++)
				sink ^= piece[i];
		}
		assert(sum == data_len && sum <= in.len);
		check_round_trip(&head);
	}
	for (size_t i = 0; i < n; i++)
		grpc_slice_unref(slices[i]);
}

static const uint8_t secret[LINK_MAGIC_SIZE] = "0123456789abcde";

/* As link_host.c scans: in pieces, keeping what may be a frame's beginning. What
 * is found must not depend on how the bytes were cut. */
static void scan_link(struct fuzz_input in)
{
	size_t step = 1 + fuzz_take(&in), whole = 0, pieces = 0, at, start = 0;
	uint8_t magic[LINK_MAGIC_SIZE];

	link_ack_magic(secret, magic);
	for (; link_find(magic, in.data + start, in.len - start, &at); start += at + 1)
		whole++;
	start = 0;
	for (size_t end = MIN(step, in.len);; end = MIN(end + step, in.len)) {
		while (link_find(magic, in.data + start, end - start, &at)) {
			assert(at + LINK_FRAME_SIZE <= end - start);
			start += at + 1;
			pieces++;
		}
		assert(end - start - at < LINK_FRAME_SIZE);
		start += at;
		if (end == in.len)
			break;
	}
	assert(whole == pieces);
}

static void read_status(struct fuzz_input in)
{
	grpc_status_code status = (grpc_status_code)(fuzz_take16(&in) % 32);
	int number = (int)(fuzz_take16(&in) | (uint32_t)fuzz_take16(&in) << 16);
	scoped_free char *text = xstrndup((const char *)in.data, in.len);
	struct error err = ERROR_NONE;
	int code = status_set_error(&err, status, text);

	assert((code == 0) == (status == GRPC_STATUS_OK) && code == err.code);
	check_text(err.msg, sizeof(err.msg));
	assert(status_errno_from_wire(number) < 0);
	status_from_errno(status_to_errno(status, text));
}

static void (*const readers[])(struct fuzz_input in) = { read_info,   read_event, read_tunnel,
							 scan_link, read_status, read_time };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct fuzz_input in = { data, len };

	readers[fuzz_take(&in) % ARRAY_SIZE(readers)](in);
	return 0;
}

/* --- seeds ---------------------------------------------------------------- */

static void seed_bytes(unsigned reader, const void *data, size_t len)
{
	uint8_t *all = xmalloc(len + 1);

	all[0] = (uint8_t)reader;
	memcpy(all + 1, data, len);
	fuzz_seed_add(all, len + 1);
	free(all);
}

static void seed_message(unsigned reader, const ProtobufCMessage *msg)
{
	uint8_t out[1024];

	assert(protobuf_c_message_get_packed_size(msg) <= sizeof(out));
	seed_bytes(reader, out, protobuf_c_message_pack(msg, out));
}

static void seed_reports(void)
{
	IPPort p4 = IPPORT__INIT, p6 = IPPORT__INIT;
	IPPort *ports[] = { &p4, &p6 };
	BootProgress boot = BOOT_PROGRESS__INIT;
	Google__Protobuf__Timestamp time = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	char *texts[] = { "tunnel-kinds", "snap\xc3\xa4shot\n" };
	Info info = INFO__INIT;
	Event event = EVENT__INIT;
	TimeSyncResponse res = TIME_SYNC_RESPONSE__INIT;

	p4.protocol = "tcp", p4.ip = "127.0.0.1", p4.port = 8080;
	p6.protocol = "udp", p6.ip = "::", p6.port = 53;
	boot.instance_id = "iid-1", boot.step = "system 1/2: a.sh";
	boot.failed = texts, boot.n_failed = 2;
	info.local_ports = ports, info.n_local_ports = 2;
	info.features = texts, info.n_features = 2;
	info.agent_version = "0.1.0", info.boot_id = "f00", info.kernel = "6.1", info.boot = &boot;
	seed_message(0, &info.base);
	time.seconds = 1700000000, time.nanos = 5;
	event.time = &time, event.snapshot = true, event.revision = 7, event.boot = &boot;
	event.added_local_ports = event.removed_local_ports = ports;
	event.n_added_local_ports = event.n_removed_local_ports = 2;
	event.errors = texts, event.n_errors = 2;
	seed_message(1, &event.base);
	res.adjusted = true, res.drift_ms = -5, res.error = "operation not permitted";
	seed_message(5, &res.base);
}

static void seed_tunnel(void)
{
	struct tunnel_head head = { .kind = TUNNEL_MESSAGE__KIND__REFUSED, .id = "tcp-1",
				    .protocol = "udp", .guest_addr = "[::1]:80",
				    .error = "connection refused", .error_number = 111 };
	grpc_slice slice = tunnel_wire_head(&head, 5);
	uint8_t bytes[512] = { 7 };	/* step */
	size_t len = GRPC_SLICE_LENGTH(slice);

	memcpy(bytes + 1, GRPC_SLICE_START_PTR(slice), len);
	memcpy(bytes + 1 + len, "hello", 5);
	seed_bytes(2, bytes, 1 + len + 5);
	grpc_slice_unref(slice);
}

void fuzz_seeds(void)
{
	uint8_t link[1 + 8 + 2 * LINK_FRAME_SIZE] = { 10 };
	static const char status[] = "\x0e\0\x6f\0\0\0dial tcp 127.0.0.1:80: connect: connection refused";

	seed_reports();
	seed_tunnel();
	link_ack_magic(secret, link + 9);
	link_ack_magic(secret, link + 9 + LINK_FRAME_SIZE);
	seed_bytes(3, link, sizeof(link));
	seed_bytes(4, status, sizeof(status) - 1);
}
