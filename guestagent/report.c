#include "guestagent/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"

/* A port_set as protobuf-c wants it: an array of pointers to messages. */
struct port_msgs {
	IPPort **ptrs;
	IPPort *msgs;
	char (*ips)[INET6_ADDRSTRLEN];
	size_t len;
};

struct event_msg {
	Event event;
	Google__Protobuf__Timestamp time;
	struct port_msgs added, removed;
};

struct report {
	uint64_t revision;
	struct relay_ports relay;
	bool relay_is_new;		/* no event told of it */
	struct utsname uts;
	char boot_id[64];
	Info info;
	struct port_msgs info_ports;
	struct event_msg snapshot, change;
};

static const char *const features[] = { "snapshot", "tunnel-kinds", "boot-progress", "time-rtt",
					"vsock-relay" };

static void port_msgs_done(struct port_msgs *m)
{
	free(m->ptrs);
	free(m->msgs);
	free(m->ips);
	*m = (struct port_msgs){ 0 };
}

static void port_msgs_build(struct port_msgs *m, const struct port_set *set)
{
	port_msgs_done(m);
	if (!set || set->len == 0)
		return;
	m->len = set->len;
	m->ptrs = xcalloc(m->len, sizeof(*m->ptrs));
	m->msgs = xcalloc(m->len, sizeof(*m->msgs));
	m->ips = xcalloc(m->len, sizeof(*m->ips));
	for (size_t i = 0; i < m->len; i++) {
		const struct port *p = &set->items[i];

		ipport__init(&m->msgs[i]);
		m->msgs[i].protocol = (char *)(uintptr_t)port_proto(p);
		m->msgs[i].ip = (char *)(uintptr_t)port_ip(p, m->ips[i]);
		m->msgs[i].port = p->port;
		m->ptrs[i] = &m->msgs[i];
	}
}

static void read_boot_id(char *ret, size_t size)
{
	struct error err = ERROR_NONE;
	scoped_buf struct buf b = { 0 };

	if (path_read_file("/proc/sys/kernel/random/boot_id", size - 1, &b, &err) == 0)
		memcpy(ret, b.data, b.len);
	ret[strcspn(ret, "\n")] = 0;
}

struct report *report_new(void)
{
	struct report *r = xnew(struct report);

	uname(&r->uts);
	read_boot_id(r->boot_id, sizeof(r->boot_id));
	return r;
}

void report_free(struct report *r)
{
	port_msgs_done(&r->info_ports);
	port_msgs_done(&r->snapshot.added);
	port_msgs_done(&r->change.added);
	port_msgs_done(&r->change.removed);
	free(r);
}

void report_set_relay_ports(struct report *r, struct relay_ports ports)
{
	r->relay_is_new = r->relay.first != ports.first || r->relay.n != ports.n;
	r->relay = ports;
}

const Info *report_info(struct report *r, const struct port_set *ports, const BootProgress *boot)
{
	Info *i = &r->info;

	info__init(i);
	port_msgs_build(&r->info_ports, ports);
	i->local_ports = r->info_ports.ptrs;
	i->n_local_ports = r->info_ports.len;
	i->agent_version = (char *)(uintptr_t)LIMA_VERSION;
	i->features = (char **)(uintptr_t)features;
	i->n_features = ARRAY_SIZE(features);
	i->boot_id = r->boot_id;
	i->kernel = r->uts.release;
	i->boot = (BootProgress *)(uintptr_t)boot;
	i->relay_vsock_port = r->relay.first;
	i->relay_vsock_ports = r->relay.n;
	return i;
}

static void event_build(struct event_msg *m, const struct port_set *added,
			const struct port_set *removed, const BootProgress *boot, uint64_t revision)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	google__protobuf__timestamp__init(&m->time);
	m->time.seconds = now.tv_sec;
	m->time.nanos = (int32_t)now.tv_nsec;
	port_msgs_build(&m->added, added);
	port_msgs_build(&m->removed, removed);
	event__init(&m->event);
	m->event.time = &m->time;
	m->event.added_local_ports = m->added.ptrs;
	m->event.n_added_local_ports = m->added.len;
	m->event.removed_local_ports = m->removed.ptrs;
	m->event.n_removed_local_ports = m->removed.len;
	m->event.boot = (BootProgress *)(uintptr_t)boot;
	m->event.revision = revision;
}

static void set_relay_ports(const struct report *r, Event *e)
{
	e->relay_vsock_port = r->relay.first;
	e->relay_vsock_ports = r->relay.n;
}

const Event *report_snapshot(struct report *r, const struct port_set *ports,
			     const BootProgress *boot)
{
	event_build(&r->snapshot, ports, NULL, boot, r->revision);
	r->snapshot.event.snapshot = true;
	set_relay_ports(r, &r->snapshot.event);
	return &r->snapshot.event;
}

const Event *report_change(struct report *r, const struct port_set *added,
			   const struct port_set *removed, const BootProgress *boot)
{
	event_build(&r->change, added, removed, boot, ++r->revision);
	if (r->relay_is_new)
		set_relay_ports(r, &r->change.event);
	r->relay_is_new = false;
	return &r->change.event;
}
