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

void hub_set_paused(struct hub *hub, bool paused)
{
	uint64_t now = uv_now(&hub->loop->uv);

	if (hub->paused == paused)
		return;
	hub->paused = paused;
	if (paused)
		hub->paused_since_ms = now;
	else
		hub->paused_ms += now - hub->paused_since_ms;
}

uint64_t hub_guest_ms(const struct hub *hub)
{
	return (hub->paused ? hub->paused_since_ms : uv_now(&hub->loop->uv)) - hub->paused_ms;
}
