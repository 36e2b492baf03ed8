/* unary.h - a call with one request and one answer, as the client makes it */
#pragma once

#include "proto/guestservice.pb-c.h"
#include "proto/rpc_queue.h"

struct unary;

/* @reply: unpacked as asked for, or NULL with @err saying why; borrowed. */
typedef void (*unary_done_fn)(void *arg, const ProtobufCMessage *reply, const struct error *err);

/* @timeout_ms 0: no deadline. @done runs exactly once. */
struct unary *unary_start(struct rpc *rpc, grpc_channel *channel, const char *method,
			  const ProtobufCMessage *request,
			  const ProtobufCMessageDescriptor *reply_type, unsigned timeout_ms,
			  unary_done_fn done, void *arg);
/* Makes it end soon, with -ECANCELED unless the answer is there already. */
void unary_cancel(struct unary *u);
