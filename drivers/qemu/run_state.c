#include "drivers/qemu/run_state.h"

#include "lib/base/mem.h"

#define HALF_LOADED "restore-vm"

/* save-vm is not here: QEMU answers nobody while it saves, and leaves the state itself. */
static const struct {
	const char *name, *why;
} forbidden[] = {
	{ HALF_LOADED, "the guest stands still with half of a snapshot's memory" },
	{ "inmigrate", "the guest's memory is yet to come from another QEMU" },
	{ "finish-migrate", "the guest is being moved to another QEMU" },
	{ "postmigrate", "the guest was moved to another QEMU" },
};

static bool is(const json_t *status, const char *name)
{
	const char *s = json_string_value(json_object_get(status, "status"));

	return s && streq(s, name);
}

bool run_state_is_half_loaded(const json_t *status)
{
	return is(status, HALF_LOADED);
}

const char *run_state_forbids(const json_t *status)
{
	for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++)
		if (is(status, forbidden[i].name))
			return forbidden[i].why;
	return NULL;
}
