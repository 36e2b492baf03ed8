#include "lib/base/heap.h"

#include <malloc.h>

#include "lib/base/loop.h"

enum {
	ARENAS = 2,		/* the loop's and one for gRPC's threads */
	KEEP_BYTES = 256 << 10,	/* free at the top of a heap before it shrinks by itself */
	QUIET_MS = 5000,
};

void heap_setup(void)
{
	/* either also turns off what would raise the limits again (mallopt(3)) */
	mallopt(M_ARENA_MAX, ARENAS);
	mallopt(M_TRIM_THRESHOLD, KEEP_BYTES);
}

void heap_trim(void)
{
	malloc_trim(0);
}

static void on_quiet(uv_timer_t *timer)
{
	heap_trim();
}

void heap_trim_later(struct loop *loop)
{
	uv_timer_start(&loop->quiet, on_quiet, QUIET_MS, 0);
}
