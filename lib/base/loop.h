/* loop.h - the one event loop of a process, and the door other threads use
 *
 * One thread runs the loop and owns all state. Other threads (gRPC's queue,
 * image work) hand over work by loop_post() only: a locked list and an eventfd,
 * written when the list was empty; the whole list is drained at once, in the order
 * of posting.
 *
 * No uv_async_t: its receiver spins until the sender is out of uv_async_send()
 * (libuv 1.44 src/unix/async.c, uv__async_spin()), and it is in there that the
 * sender wakes the receiver, which may well take its CPU. With a loop of higher
 * priority that was seen to last 70 ms and more.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <uv.h>

#include "lib/base/error.h"

struct loop_item;

struct loop {
	uv_loop_t uv;
	uv_poll_t wake;			/* of wake_fd */
	int wake_fd;
	uv_timer_t quiet;		/* heap.h; does not keep the loop alive */
	pthread_mutex_t lock;		/* guards head, tail */
	struct loop_item *head, *tail;
	unsigned refs;			/* loop_ref() minus loop_unref() */
};

int loop_init(struct loop *loop, struct error *err);

/* Runs until nothing is left that keeps the loop alive, or loop_stop(). */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Closes the wake handle, runs what is left to run, and frees; no other thread is in
 * loop_post() any more. Returns the
 * number of handles somebody forgot to close (each is named at warn level);
 * tests assert 0. */
unsigned loop_done(struct loop *loop);

/* Any thread: fn(arg) will run on the loop thread, never before this returns. */
void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg);

/* The wake handle does not keep the loop alive by default; a thread that still
 * owes a post holds a reference in between. Loop thread only; counted. */
void loop_ref(struct loop *loop);
void loop_unref(struct loop *loop);
