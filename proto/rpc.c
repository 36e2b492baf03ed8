#include "proto/rpc.h"

#include <assert.h>
#include <errno.h>
#include <grpc/support/log.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/rpc_queue.h"

struct rpc {
	struct loop *loop;
	grpc_completion_queue *queue;
	grpc_server *engine_user;
	pthread_t thread;
	unsigned pending;	/* busy tags; loop thread */
};

enum {
	SECOND_MS = 1000,
	RECEIVE_MAX = 4 << 20,		/* gRPC's own default, here on purpose: one
					 * message is held in one piece */
	FRAME_MAX = 64 << 10,		/* HTTP/2 default is 16 KiB, which makes twice
					 * as many pieces of half the size */
	STREAMS_MAX = RPC_TUNNELS_MAX + 64,	/* tunnels and, beside them, calls */
	METADATA_MAX = 8 << 10,
};

#define INT_ARG(name, number) \
	{ .type = GRPC_ARG_INTEGER, .key = (char *)(name), .value = { .integer = (number) } }

/* On both sides:
 * - without bdp_probe what is held for a stream whose consumer stalls is bounded
 *   (256 KiB with our own queue); with it, the default, it is 4.3 MiB, which times
 *   thousands is more than a guest has. The price, by test/bench/proto_bench: 0.43
 *   against 0.25 CPU s/GB sending and 0.58 against 0.39 receiving;
 * - no pings: none is answered while the machine is paused, for which gRPC ends the
 *   connection with all tunnels; it cannot be told of that, and guest_client.c, which
 *   is, asks instead. Besides, Lima's agent, a grpc-go server with the default policy,
 *   takes pings more often than every 5 minutes for abuse and hangs up (grpc-go
 *   keepalive.EnforcementPolicy);
 * - no compression: nothing on this link gains from it, and a small message of
 *   a hostile peer must not become a big one. */
#define COMMON_ARGS                                                       \
	INT_ARG(GRPC_ARG_HTTP2_BDP_PROBE, 0),                             \
	INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, INT_MAX),                     \
	INT_ARG(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, FRAME_MAX),                \
	INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, RECEIVE_MAX),        \
	INT_ARG(GRPC_ARG_MAX_METADATA_SIZE, METADATA_MAX),                \
	INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),            \
	INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),              \
	INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),                             \
	INT_ARG(GRPC_ARG_ENABLE_CENSUS, 0)

static grpc_arg client_args[] = { COMMON_ARGS };

/* The guest only answers: the host's death shows as end of file, as POLLHUP or
 * as a new handshake. It must not take the host's questions for abuse. */
static grpc_arg server_args[] = {
	COMMON_ARGS,
	INT_ARG(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX),
	INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
	INT_ARG(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, SECOND_MS / 10),
	INT_ARG(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
};

const grpc_channel_args *rpc_client_args(void)
{
	static const grpc_channel_args args = { ARRAY_SIZE(client_args), client_args };

	return &args;
}

const grpc_channel_args *rpc_server_args(void)
{
	static const grpc_channel_args args = { ARRAY_SIZE(server_args), server_args };

	return &args;
}

/* gRPC's own lines, from any thread. Its errors are what a peer can provoke at
 * will; we report those ourselves, by the status. */
static void on_grpc_log(gpr_log_func_args *args)
{
	log_debug("grpc: %s:%d: %s", args->file, args->line, args->message);
}

static void run_tag(void *arg)
{
	struct rpc_tag *tag = arg;
	struct rpc *rpc = tag->rpc;

	assert(tag->busy);
	tag->busy = false;
	rpc->pending--;
	loop_unref(rpc->loop);
	tag->fn(tag, tag->ok);
}

static void *queue_thread(void *arg)
{
	struct rpc *rpc = arg;

	for (;;) {
		grpc_event ev = grpc_completion_queue_next(
			rpc->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
		struct rpc_tag *tag = ev.tag;

		if (ev.type == GRPC_QUEUE_SHUTDOWN)
			return NULL;
		assert(ev.type == GRPC_OP_COMPLETE);
		tag->ok = ev.success;
		loop_post(rpc->loop, run_tag, tag);
	}
}

/* gRPC's timer threads look at their empty lists once a second each, out of step,
 * and there is no setting for it. Threads inherit the timer slack of their maker
 * (PR_SET_TIMERSLACK(2const)): with a second of it the looks fall together, about
 * one in two seconds, and a keepalive may come a second late.
 *
 * One of them belongs to the event engine, which lives as long as something uses it
 * and would be made by the first channel, without the slack: a server that serves
 * nothing has it made here and keeps it. */
static grpc_server *init_grpc(void)
{
	enum { SLACK_NS = 1000 * 1000 * 1000 };
	int before = prctl(PR_GET_TIMERSLACK);
	grpc_server *engine_user;

	prctl(PR_SET_TIMERSLACK, SLACK_NS);
	grpc_init();
	engine_user = grpc_server_create(NULL, NULL);
	prctl(PR_SET_TIMERSLACK, before > 0 ? before : 0);	/* 0: the default again */
	return engine_user;
}

static void done_grpc(grpc_server *engine_user)
{
	grpc_server_destroy(engine_user);
	grpc_shutdown_blocking();
}

int rpc_new(struct loop *loop, struct rpc **ret, struct error *err)
{
	scoped_free struct rpc *rpc = xnew(struct rpc);
	int rc;

	rpc->loop = loop;
	gpr_set_log_function(on_grpc_log);
	rpc->engine_user = init_grpc();
	rpc->queue = grpc_completion_queue_create_for_next(NULL);
	rc = -pthread_create(&rpc->thread, NULL, queue_thread, rpc);
	if (rc < 0) {
		grpc_completion_queue_shutdown(rpc->queue);
		grpc_completion_queue_destroy(rpc->queue);
		done_grpc(rpc->engine_user);
		return error_sys(err, rc, "start the gRPC queue thread");
	}
	pthread_setname_np(rpc->thread, "grpc-queue");
	*ret = steal_ptr(&rpc);
	return 0;
}

void rpc_free(struct rpc *rpc)
{
	if (!rpc)
		return;
	assert(rpc->pending == 0);
	grpc_completion_queue_shutdown(rpc->queue);
	pthread_join(rpc->thread, NULL);
	grpc_completion_queue_destroy(rpc->queue);
	done_grpc(rpc->engine_user);
	free(rpc);
}

grpc_completion_queue *rpc_queue(struct rpc *rpc)
{
	return rpc->queue;
}

struct loop *rpc_loop(struct rpc *rpc)
{
	return rpc->loop;
}

void rpc_expect(struct rpc *rpc, struct rpc_tag *tag)
{
	assert(!tag->busy);
	tag->busy = true;
	tag->rpc = rpc;
	rpc->pending++;
	loop_ref(rpc->loop);
}

void rpc_start(struct rpc *rpc, grpc_call *call, const grpc_op *ops, size_t n, struct rpc_tag *tag)
{
	grpc_call_error rc;

	rpc_expect(rpc, tag);
	rc = grpc_call_start_batch(call, ops, n, tag, NULL);
	assert(rc == GRPC_CALL_OK);	/* anything else is misuse by us, not a peer's doing */
}

void rpc_slice_text(grpc_slice slice, char *buf, size_t size)
{
	size_t len = MIN(GRPC_SLICE_LENGTH(slice), size - 1);

	for (size_t i = 0; i < len; i++)
		buf[i] = GRPC_SLICE_START_PTR(slice)[i] ? (char)GRPC_SLICE_START_PTR(slice)[i] : ' ';
	buf[len] = 0;
}
