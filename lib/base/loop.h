/* loop.h - the one event loop of a process, and the door other threads use
 *
 * One thread runs the loop and owns all state. Other threads (gRPC's queue,
 * image work) hand over work by loop_post() only: a locked list and one
 * uv_async_t. libuv coalesces sends, so the whole list is drained at once, in
 * the order of posting.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <uv.h>

#include "lib/base/error.h"

struct loop_item;

struct loop {
	uv_loop_t uv;
	uv_async_t wake;
	uv_timer_t quiet;		/* heap.h; does not keep the loop alive */
	pthread_mutex_t lock;		/* guards head, tail */
	struct loop_item *head, *tail;
	unsigned refs;			/* loop_ref() minus loop_unref() */
};

int loop_init(struct loop *loop, struct error *err);

/* Runs until nothing is left that keeps the loop alive, or loop_stop(). */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Closes the wake handle, runs what is left to run, and frees. Returns the
 * number of handles somebody forgot to close (each is named at warn level);
 * tests assert 0. */
unsigned loop_done(struct loop *loop);

/* Any thread: fn(arg) will run on the loop thread, never before this returns. */
void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg);

/* The wake handle does not keep the loop alive by default; a thread that still
 * owes a post holds a reference in between. Loop thread only; counted. */
void loop_ref(struct loop *loop);
void loop_unref(struct loop *loop);
