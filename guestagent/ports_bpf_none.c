/* The agent was built without clang or a static libbpf: ports are found by polling. */
#include "guestagent/ports_bpf.h"

#include <assert.h>
#include <errno.h>

int ports_bpf_new(struct loop *loop, unsigned wanted, void (*kick)(void *arg, unsigned protos),
		  void *arg, struct ports_bpf **ret, struct error *err)
{
	return error_set(err, -ENOTSUP, "bpf: this agent was built without it");
}

bool ports_bpf_has_tcp(const struct ports_bpf *b)
{
	return false;
}

bool ports_bpf_has_udp(const struct ports_bpf *b)
{
	return false;
}

enum udp_bind ports_bpf_udp_bind(struct ports_bpf *b, uint64_t cookie)
{
	return UDP_BIND_UNKNOWN;
}

void ports_bpf_close(struct ports_bpf *b, void (*closed)(void *arg), void *arg)
{
	assert(!b);	/* none can exist */
}
