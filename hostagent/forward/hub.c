#include "hostagent/forward/hub.h"

#include <assert.h>

void hub_ref(struct hub *hub)
{
	hub->refs++;
}

void hub_unref(struct hub *hub)
{
	assert(hub->refs > 0);
	if (--hub->refs == 0 && hub->idle)
		hub->idle(hub->idle_arg);
}
