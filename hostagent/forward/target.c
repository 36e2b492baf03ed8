#include "hostagent/forward/target.h"

#include <assert.h>
#include <stdio.h>

#include "lib/base/mem.h"

struct target *target_new(const char *guest_addr)
{
	struct target *t = xnew(struct target);

	snprintf(t->guest_addr, sizeof(t->guest_addr), "%s", guest_addr);
	t->lane = "";
	t->refs = 1;
	return t;
}

struct target *target_ref(struct target *t)
{
	t->refs++;
	return t;
}

void target_unref(struct target *t)
{
	assert(t->refs > 0);
	if (--t->refs == 0)
		free(t);
}
