/* rpc_queue.h - how the folder's own files start gRPC operations (rpc.h inside)
 *
 * An operation has a tag, a small struct inside the object it works for. The
 * tag's function runs on the loop once the operation is complete. From start to
 * completion a tag is busy, its object must not be freed, and the loop is kept
 * alive. An operation always completes: cancelling the call makes it quick.
 */
#pragma once

#include <grpc/grpc.h>
#include <stdbool.h>
#include <stddef.h>

#include "proto/rpc.h"

struct rpc_tag {
	/* @ok: false when the operation failed, e.g. the call was cancelled. May
	 * start the next operation with the same tag, may free the object. */
	void (*fn)(struct rpc_tag *tag, bool ok);
	struct rpc *rpc;
	bool busy;
	bool ok;		/* written by the queue thread before it posts */
};

static inline void rpc_tag_init(struct rpc_tag *tag, void (*fn)(struct rpc_tag *tag, bool ok))
{
	*tag = (struct rpc_tag){ .fn = fn };
}

grpc_completion_queue *rpc_queue(struct rpc *rpc);
struct loop *rpc_loop(struct rpc *rpc);

/* Starts a batch on a call; at most one batch per tag at a time. */
void rpc_start(struct rpc *rpc, grpc_call *call, const grpc_op *ops, size_t n,
	       struct rpc_tag *tag);
/* The same bookkeeping for operations that are no batch: call it right before
 * grpc_server_request_call() and the like. */
void rpc_expect(struct rpc *rpc, struct rpc_tag *tag);

/* What channel and server have in common; see the table in rpc.c for the
 * reasons. Static, never freed. */
const grpc_channel_args *rpc_client_args(void);
const grpc_channel_args *rpc_server_args(void);

/* A copy of @slice as text for logs, cut at @size - 1 bytes, without 0 bytes. */
void rpc_slice_text(grpc_slice slice, char *buf, size_t size);
