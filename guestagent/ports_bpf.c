#include "guestagent/ports_bpf.h"

#include <assert.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <string.h>
#include <unistd.h>

#include "guestagent/ports_bpf_object.h"
#include "guestagent/ports_bpf_shared.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum { PROGRAMS = 6 };

struct ports_bpf {
	void (*kick)(void *arg, unsigned protos);
	void *arg;
	void (*closed)(void *arg);
	void *closed_arg;
	uv_poll_t poll;
	struct ring_buffer *ring;
	struct bpf_link *links[PROGRAMS];
	int kicks_fd, seen_fd;	/* our own: outlive the bpf_object */
	bool tcp, udp;
	unsigned kicked;	/* PORTS_*, by what is being taken out of the ring */
};

static const struct {
	const char *name;
	bool cgroup;	/* else a raw tracepoint */
} programs[PROGRAMS] = {
	{ "on_tcp_state", false }, { "on_bind4", true },  { "on_bind6", true },
	{ "on_bound4", true },	   { "on_bound6", true }, { "on_release", true },
};

static int print_libbpf(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	scoped_free char *text = NULL;
	size_t len;

	if (level == LIBBPF_DEBUG || log_level_get() > LOG_DEBUG)
		return 0;
	text = xvasprintf(fmt, ap);
	len = strlen(text);
	if (len && text[len - 1] == '\n')
		text[len - 1] = 0;
	log_debug("bpf: %s", text);
	return 0;
}

/* The root of the unified hierarchy, wherever this distribution mounts it:
 * /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1. */
static int open_cgroup_root(struct error *err)
{
	FILE *f = setmntent("/proc/self/mounts", "re");
	struct mntent *m;
	int fd = -1;

	if (!f)
		return error_sys(err, -errno, "bpf: /proc/self/mounts");
	while (fd < 0 && (m = getmntent(f)))
		if (streq(m->mnt_type, "cgroup2"))
			fd = open(m->mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	endmntent(f);
	return fd >= 0 ? fd : error_set(err, -ENOENT, "bpf: no cgroup v2 is mounted");
}

/* Loads only the programs of one part; the other part's are left out. */
static struct bpf_object *load_part(bool cgroup, struct error *err)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = "lima_ports");
	struct bpf_object *obj =
		bpf_object__open_mem(ports_bpf_object, sizeof(ports_bpf_object), &opts);

	if (!obj) {
		error_sys(err, -errno, "bpf: embedded object");
		return NULL;
	}
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		struct bpf_program *p = bpf_object__find_program_by_name(obj, programs[i].name);

		assert(p);
		bpf_program__set_autoload(p, programs[i].cgroup == cgroup);
	}
	return obj;
}

/* Both parts kick through the same ring and share one map. */
static int share_map(struct bpf_object *obj, const char *name, int fd, struct error *err)
{
	int rc = bpf_map__reuse_fd(bpf_object__find_map_by_name(obj, name), fd);

	return rc < 0 ? error_sys(err, rc, "bpf: map `%s`", name) : 0;
}

static int attach_part(struct ports_bpf *b, struct bpf_object *obj, bool cgroup, struct error *err)
{
	scoped_fd int root = cgroup ? open_cgroup_root(err) : -1;

	if (cgroup && root < 0)
		return root;
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		struct bpf_program *p = bpf_object__find_program_by_name(obj, programs[i].name);

		if (programs[i].cgroup != cgroup)
			continue;
		b->links[i] = cgroup ? bpf_program__attach_cgroup(p, root) : bpf_program__attach(p);
		if (!b->links[i])
			return error_sys(err, -errno, "bpf: attach `%s`", programs[i].name);
	}
	return 0;
}

static void detach_part(struct ports_bpf *b, bool cgroup)
{
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++)
		if (programs[i].cgroup == cgroup) {
			bpf_link__destroy(b->links[i]);
			b->links[i] = NULL;
		}
}

/* The object (ELF, relocations, BTF) is freed once the kernel has it: links
 * and our duplicates of the map descriptors are all that is needed. */
static int start_part(struct ports_bpf *b, bool cgroup, struct error *err)
{
	struct bpf_object *obj = load_part(cgroup, err);
	int rc = 0;

	if (!obj)
		return err->code;
	if (b->kicks_fd >= 0) {
		rc = share_map(obj, "kicks", b->kicks_fd, err);
		if (rc == 0)
			rc = share_map(obj, "udp_seen", b->seen_fd, err);
	}
	if (rc == 0) {
		rc = bpf_object__load(obj);
		if (rc < 0)
			error_sys(err, rc, "bpf: load %s programs", cgroup ? "cgroup" : "tracepoint");
	}
	if (rc == 0)
		rc = attach_part(b, obj, cgroup, err);
	if (rc == 0 && b->kicks_fd < 0) {
		b->kicks_fd = fcntl(bpf_object__find_map_fd_by_name(obj, "kicks"), F_DUPFD_CLOEXEC, 3);
		b->seen_fd = fcntl(bpf_object__find_map_fd_by_name(obj, "udp_seen"), F_DUPFD_CLOEXEC, 3);
	}
	if (rc < 0)
		detach_part(b, cgroup);
	bpf_object__close(obj);
	return rc;
}

static int take_kick(void *arg, void *data, size_t size)
{
	struct ports_bpf *b = arg;
	uint64_t what;

	static_assert(KICK_BYTES == BPF_RINGBUF_HDR_SZ + sizeof(what), "a header and a kick");
	assert(size == sizeof(what));
	memcpy(&what, data, sizeof(what));
	b->kicked |= what == KICK_TCP ? PORTS_TCP : PORTS_UDP;
	return 0;	/* on_readable() kicks once for all of them */
}

/* A kick that the full ring had no room for may have been of either protocol. The
 * ring was never full while less than half of what it holds comes out of it. */
static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct ports_bpf *b = poll->data;
	int n;

	b->kicked = 0;
	n = ring_buffer__consume(b->ring);
	if (n >= KICKS_BYTES / KICK_BYTES / 2)
		b->kicked = PORTS_ALL;
	if (b->kicked)
		b->kick(b->arg, b->kicked);
}

static void free_all(struct ports_bpf *b)
{
	detach_part(b, false);
	detach_part(b, true);
	ring_buffer__free(b->ring);
	scoped_close_fd(&b->kicks_fd);
	scoped_close_fd(&b->seen_fd);
	free(b);
}

static int start_ring(struct ports_bpf *b, struct loop *loop, struct error *err)
{
	int rc;

	b->ring = ring_buffer__new(b->kicks_fd, take_kick, b, NULL);
	if (!b->ring)
		return error_sys(err, -errno, "bpf: ring buffer");
	/* the ring itself: libbpf's epoll around it would be one more to go through */
	rc = uv_poll_init(&loop->uv, &b->poll, b->kicks_fd);
	if (rc < 0)
		return error_sys(err, rc, "bpf: poll");
	b->poll.data = b;
	uv_poll_start(&b->poll, UV_READABLE, on_readable);
	return 0;
}

int ports_bpf_new(struct loop *loop, unsigned wanted, void (*kick)(void *arg, unsigned protos),
		  void *arg, struct ports_bpf **ret, struct error *err)
{
	struct error udp_err = ERROR_NONE;
	struct ports_bpf *b = xnew(struct ports_bpf);
	int rc;

	libbpf_set_print(print_libbpf);
	b->kick = kick;
	b->arg = arg;
	b->kicks_fd = b->seen_fd = -1;
	error_set(&udp_err, -ECANCELED, "bpf: turned off");
	b->tcp = wanted & PORTS_TCP && start_part(b, false, err) == 0;
	b->udp = wanted & PORTS_UDP && start_part(b, true, b->tcp ? &udp_err : err) == 0;
	if (b->tcp && !b->udp)
		log_debug("ports: no events for UDP, polling: %s", udp_err.msg);
	rc = b->tcp || b->udp ? start_ring(b, loop, err) : err->code;
	if (rc < 0) {
		free_all(b);
		return rc;
	}
	*ret = b;
	return 0;
}

bool ports_bpf_has_tcp(const struct ports_bpf *b)
{
	return b->tcp;
}

bool ports_bpf_has_udp(const struct ports_bpf *b)
{
	return b->udp;
}

enum udp_bind ports_bpf_udp_bind(struct ports_bpf *b, uint64_t cookie)
{
	uint32_t seen = UDP_SEEN_BEFORE_US;

	if (!b->udp)
		return UDP_BIND_UNKNOWN;
	if (bpf_map_lookup_elem(b->seen_fd, &cookie, &seen) == 0)
		return seen == UDP_SEEN_PORT_CHOSEN   ? UDP_BIND_CHOSEN
		       : seen == UDP_SEEN_PORT_KERNEL ? UDP_BIND_KERNEL
						      : UDP_BIND_UNKNOWN;
	bpf_map_update_elem(b->seen_fd, &cookie, &seen, BPF_NOEXIST);
	return UDP_BIND_UNKNOWN;
}

static void on_closed(uv_handle_t *h)
{
	struct ports_bpf *b = h->data;
	void (*closed)(void *arg) = b->closed;
	void *arg = b->closed_arg;

	free_all(b);
	if (closed)
		closed(arg);
}

void ports_bpf_close(struct ports_bpf *b, void (*closed)(void *arg), void *arg)
{
	b->closed = closed;
	b->closed_arg = arg;
	uv_close((uv_handle_t *)&b->poll, on_closed);
}
