#include "hostagent/forward/target.h"

#include <assert.h>
#include <string.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"

struct target *target_new(const char *guest_addr)
{
	size_t size = MAX(strlen(guest_addr) + 1, (size_t)ADDRESS_TEXT_SIZE);
	struct target *t = xcalloc(1, sizeof(*t) + size);

	memcpy(t->guest_addr, guest_addr, strlen(guest_addr));
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
