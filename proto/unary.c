#include "proto/unary.h"

#include <errno.h>
#include <grpc/support/time.h>

#include "lib/base/mem.h"
#include "proto/message.h"
#include "proto/status.h"

struct unary {		/* owner: itself, until its only operation completes */
	struct rpc_tag tag;
	grpc_call *call;
	grpc_byte_buffer *request, *reply;
	grpc_metadata_array initial, trailing;
	grpc_status_code status;
	grpc_slice status_text;
	const ProtobufCMessageDescriptor *reply_type;
	unary_done_fn done;
	void *arg;
};

static void unary_free(struct unary *u)
{
	grpc_byte_buffer_destroy(u->request);
	if (u->reply)
		grpc_byte_buffer_destroy(u->reply);
	grpc_metadata_array_destroy(&u->initial);
	grpc_metadata_array_destroy(&u->trailing);
	grpc_slice_unref(u->status_text);
	grpc_call_unref(u->call);
	free(u);
}

static void on_done(struct rpc_tag *tag, bool ok)
{
	struct unary *u = container_of(tag, struct unary, tag);
	ProtobufCMessage *reply = NULL;
	struct error err = { 0 };
	char text[STATUS_TEXT_MAX];

	rpc_slice_text(u->status_text, text, sizeof(text));
	if (u->status != GRPC_STATUS_OK)
		status_set_error(&err, u->status, text);
	else if (!ok || !u->reply)
		error_set(&err, -EPROTO, "the peer sent no answer");
	else
		reply = message_unpack(u->reply_type, u->reply, &err);
	u->done(u->arg, reply, &err);
	if (reply)
		protobuf_c_message_free_unpacked(reply, NULL);
	unary_free(u);
}

struct unary *unary_start(struct rpc *rpc, grpc_channel *channel, const char *method,
			  const ProtobufCMessage *request,
			  const ProtobufCMessageDescriptor *reply_type, unsigned timeout_ms,
			  unary_done_fn done, void *arg)
{
	struct unary *u = xnew(struct unary);
	gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
	grpc_op ops[6] = {
		{ .op = GRPC_OP_SEND_INITIAL_METADATA },
		{ .op = GRPC_OP_SEND_MESSAGE },
		{ .op = GRPC_OP_SEND_CLOSE_FROM_CLIENT },
		{ .op = GRPC_OP_RECV_INITIAL_METADATA },
		{ .op = GRPC_OP_RECV_MESSAGE },
		{ .op = GRPC_OP_RECV_STATUS_ON_CLIENT },
	};

	if (timeout_ms > 0)
		deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
					gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
	rpc_tag_init(&u->tag, on_done);
	grpc_metadata_array_init(&u->initial);
	grpc_metadata_array_init(&u->trailing);
	u->status_text = grpc_empty_slice();
	u->reply_type = reply_type;
	u->done = done;
	u->arg = arg;
	u->request = message_pack(request);
	u->call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS,
					   rpc_queue(rpc), grpc_slice_from_static_string(method),
					   NULL, deadline, NULL);
	ops[1].data.send_message.send_message = u->request;
	ops[3].data.recv_initial_metadata.recv_initial_metadata = &u->initial;
	ops[4].data.recv_message.recv_message = &u->reply;
	ops[5].data.recv_status_on_client.trailing_metadata = &u->trailing;
	ops[5].data.recv_status_on_client.status = &u->status;
	ops[5].data.recv_status_on_client.status_details = &u->status_text;
	rpc_start(rpc, u->call, ops, ARRAY_SIZE(ops), &u->tag);
	return u;
}

void unary_cancel(struct unary *u)
{
	grpc_call_cancel(u->call, NULL);
}
