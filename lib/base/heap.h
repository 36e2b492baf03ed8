/* heap.h - a long-lived process that gives memory back
 *
 * glibc gives every thread a heap of its own and keeps what was freed, since it
 * may be wanted again. For a daemon that is idle most of its life both are wrong:
 * after bulk transfers the agents would keep half as much again as they need
 * (docs/performance.md). So there are few heaps, and when the work has ended
 * for a while they are trimmed, once: no timer runs in an idle process.
 */
#pragma once

struct loop;

/* Once, in main(), before there are threads. */
void heap_setup(void);

/* Work that used memory ended. The heaps are trimmed some seconds after the last
 * call; cheap enough to call each time. Loop thread only. */
void heap_trim_later(struct loop *loop);
/* Now. Any thread; takes each heap's lock for the time it takes to walk it. */
void heap_trim(void);
