/* What is open, asked of the kernel in one call: poll() says POLLNVAL of the others. */
#include <assert.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>

#include "test/fuzz/fuzz.h"

enum { DESCRIPTORS_MAX = 64 };

static bool noted[DESCRIPTORS_MAX];

static void look(bool *ret)
{
	struct pollfd all[DESCRIPTORS_MAX];

	for (int i = 0; i < DESCRIPTORS_MAX; i++)
		all[i] = (struct pollfd){ .fd = i };
	if (poll(all, DESCRIPTORS_MAX, 0) < 0)
		assert(0);
	for (int i = 0; i < DESCRIPTORS_MAX; i++)
		ret[i] = !(all[i].revents & POLLNVAL);
}

void fuzz_note_descriptors(void)
{
	look(noted);
}

void fuzz_check_descriptors(void)
{
	bool now[DESCRIPTORS_MAX];

	look(now);
	for (int i = 0; i < DESCRIPTORS_MAX; i++) {
		if (now[i] != noted[i])
			fprintf(stderr, "descriptor %d was %s\n", i, now[i] ? "left open" : "closed");
		assert(now[i] == noted[i]);
	}
}
