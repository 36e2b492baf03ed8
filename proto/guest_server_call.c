/* The short calls of GuestService: a request (or a stream of them) comes, one
 * answer goes. */
#include <errno.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/guest_server_impl.h"
#include "proto/message.h"
#include "proto/status.h"

struct server_call {	/* owner: itself */
	struct guest_server *server;
	grpc_call *call;
	struct rpc_tag tag;
	/* A request came; true: more may follow. */
	bool (*request)(struct server_call *c, const grpc_byte_buffer *request);
	grpc_byte_buffer *received;
	grpc_byte_buffer *answer;
	int cancelled;
};

static void on_answered(struct rpc_tag *tag, bool ok)
{
	struct server_call *c = container_of(tag, struct server_call, tag);
	struct guest_server *s = c->server;

	if (c->answer)
		grpc_byte_buffer_destroy(c->answer);
	grpc_call_unref(c->call);
	free(c);
	s->calls--;
	server_check_done(s);
}

/* The last batch. @msg NULL: the status says why there is none. */
static void answer(struct server_call *c, const ProtobufCMessage *msg, grpc_status_code status,
		   const char *text)
{
	grpc_slice details = grpc_slice_from_copied_string(text);
	grpc_op ops[4] = { { .op = GRPC_OP_SEND_INITIAL_METADATA },
			   { .op = GRPC_OP_SEND_STATUS_FROM_SERVER },
			   { .op = GRPC_OP_RECV_CLOSE_ON_SERVER } };
	size_t n = 3;

	ops[1].data.send_status_from_server.status = status;
	ops[1].data.send_status_from_server.status_details = &details;
	ops[2].data.recv_close_on_server.cancelled = &c->cancelled;
	if (msg) {
		c->answer = message_pack(msg);
		ops[n].op = GRPC_OP_SEND_MESSAGE;
		ops[n++].data.send_message.send_message = c->answer;
	}
	c->tag.fn = on_answered;
	rpc_start(c->server->rpc, c->call, ops, n, &c->tag);
	grpc_slice_unref(details);
}

static void receive(struct server_call *c)
{
	grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

	op.data.recv_message.recv_message = &c->received;
	rpc_start(c->server->rpc, c->call, &op, 1, &c->tag);
}

static void on_request(struct rpc_tag *tag, bool ok)
{
	struct server_call *c = container_of(tag, struct server_call, tag);
	grpc_byte_buffer *bb = steal_ptr(&c->received);
	bool more = c->request(c, bb);

	if (bb)
		grpc_byte_buffer_destroy(bb);
	if (more)
		receive(c);
}

static struct server_call *start(struct guest_server *s, grpc_call *call,
				 bool (*request)(struct server_call *c,
						 const grpc_byte_buffer *request))
{
	struct server_call *c = xnew(struct server_call);

	c->server = s;
	c->call = call;
	c->request = request;
	rpc_tag_init(&c->tag, on_request);
	s->calls++;
	return c;
}

/* An unpacked request, or NULL after it was answered with an error. */
static void *parse(struct server_call *c, const ProtobufCMessageDescriptor *type,
		   const grpc_byte_buffer *bb)
{
	struct error err = { 0 };
	void *msg = bb ? message_unpack(type, bb, &err) : NULL;

	if (!msg)
		answer(c, NULL, GRPC_STATUS_INVALID_ARGUMENT, bb ? err.msg : "no request");
	return msg;
}

static bool on_get_info(struct server_call *c, const grpc_byte_buffer *bb)
{
	struct guest_server *s = c->server;

	answer(c, &s->cb.get_info(s->cb.arg)->base, GRPC_STATUS_OK, "");
	return false;
}

void server_get_info(struct guest_server *s, grpc_call *call)
{
	receive(start(s, call, on_get_info));
}

static bool on_sync_time(struct server_call *c, const grpc_byte_buffer *bb)
{
	struct guest_server *s = c->server;
	TimeSyncResponse res = TIME_SYNC_RESPONSE__INIT;
	TimeSyncRequest *req = parse(c, &time_sync_request__descriptor, bb);

	if (!req)
		return false;
	s->cb.sync_time(s->cb.arg, req, &res);
	answer(c, &res.base, GRPC_STATUS_OK, "");
	time_sync_request__free_unpacked(req, NULL);
	return false;
}

void server_sync_time(struct guest_server *s, grpc_call *call)
{
	receive(start(s, call, on_sync_time));
}

static bool on_inotify(struct server_call *c, const grpc_byte_buffer *bb)
{
	struct guest_server *s = c->server;
	Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;
	Inotify *msg;

	if (!bb) {	/* the host closed its side */
		answer(c, &empty.base, GRPC_STATUS_OK, "");
		return false;
	}
	msg = parse(c, &inotify__descriptor, bb);
	if (!msg)
		return false;
	if (s->cb.inotify)
		s->cb.inotify(s->cb.arg, msg);
	inotify__free_unpacked(msg, NULL);
	return true;
}

void server_post_inotify(struct guest_server *s, grpc_call *call)
{
	receive(start(s, call, on_inotify));
}

void server_unknown_method(struct guest_server *s, grpc_call *call)
{
	answer(start(s, call, NULL), NULL, GRPC_STATUS_UNIMPLEMENTED, "no such method");
}
