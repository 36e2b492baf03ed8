/* rpc.h - gRPC's completion queue on one side, our loop on the other
 *
 * One `struct rpc` per process: initialises gRPC core, runs the thread that
 * sits in grpc_completion_queue_next(), and hands each completion to the loop
 * by loop_post(). All call state lives on the loop thread; every batch is
 * started there (prototypes/grpc.md, "libuv integration").
 */
#pragma once

#include "lib/base/error.h"
#include "lib/base/loop.h"

enum { RPC_TUNNELS_MAX = 16384 };	/* at once, on one link; the host's UDP clients have one each */

struct rpc;

int rpc_new(struct loop *loop, struct rpc **ret, struct error *err);
/* All clients and servers are closed and their closed-callbacks have run.
 * Shuts the queue down, joins the thread, frees. */
void rpc_free(struct rpc *rpc);
