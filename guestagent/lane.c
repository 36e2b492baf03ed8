#include "guestagent/lane.h"

#include <errno.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <sys/socket.h>

#include "guestagent/relay.h"
#include "guestagent/relay_cpu.h"
#include "guestagent/watch.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	BACKLOG = 1024,
	RETRY_MS = 2000,	/* the port is taken: an agent that is not quite gone */
};

struct lane {
	struct loop *loop;
	struct relay *relay;
	struct watch *dev;	/* while there is no AF_VSOCK */
	uv_timer_t retry;
	unsigned parts;		/* closes still to come */
	struct lane_options opts;
	struct relay_ports ports;	/* none yet: 0 */
	bool closing, told;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* The credit the host gets on each connection; 1 MiB instead of the kernel's
 * 256 KiB moves half as much again (prototypes: vsock, "backend alone"). It is a
 * promise, not memory: an idle connection costs nothing of it. */
static void set_buffer_size(int fd)
{
	static const int options[] = { SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE };
	uint64_t size = 1 << 20;

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		setsockopt(fd, AF_VSOCK, options[i], &size, sizeof(size));
}

static int open_listener(unsigned port, int *ret, struct error *err)
{
	struct sockaddr_vm addr = { .svm_family = AF_VSOCK,
				    .svm_cid = VMADDR_CID_ANY,
				    .svm_port = port };
	scoped_fd int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return error_sys(err, -errno, "lane: AF_VSOCK");
	set_buffer_size(fd);	/* connections inherit it: vsock_insert_connected() */
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, BACKLOG) < 0)
		return error_sys(err, -errno, "lane: listen on vsock port %u", port);
	*ret = steal_fd(&fd);
	return 0;
}

static void on_part_closed(void *arg)
{
	struct lane *l = arg;
	void (*closed)(void *arg) = l->closed;
	void *closed_arg = l->closed_arg;

	if (--l->parts || !l->closing)
		return;
	free(l);
	if (closed)
		closed(closed_arg);
}

static void stop_watching(struct lane *l)
{
	if (l->dev)
		watch_close(steal_ptr(&l->dev), on_part_closed, l);
}

static void try_later(void *arg);

static void on_retry(uv_timer_t *timer)
{
	try_later(timer->data);
}

static void wait_for_family(struct lane *l)
{
	if (l->dev)
		return;
	l->parts++;
	l->dev = watch_new(l->loop, "/dev", try_later, l);
}

static const char *hint(int rc)
{
	return rc == -EAFNOSUPPORT ? "no lane until the kernel has it" :
	       rc == -EADDRINUSE   ? "trying again" :
				     "no lane";
}

static void listen_at(struct lane *l, int fd)
{
	relay_listen(l->relay, fd);
	l->ports.first = l->opts.port;
	l->ports.n++;
}

static void try_open(struct lane *l)
{
	struct error err = ERROR_NONE;
	int fd = -1, rc;

	rc = open_listener(l->opts.port, &fd, &err);
	if (rc < 0 && !l->told)
		log_info("%s, %s", err.msg, hint(rc));
	l->told = true;
	if (rc == -EAFNOSUPPORT) {
		wait_for_family(l);
	} else if (rc == -EADDRINUSE) {
		uv_timer_start(&l->retry, on_retry, RETRY_MS, 0);
	} else if (rc == 0) {
		listen_at(l, fd);
		while (l->ports.n < RELAY_VSOCK_PORTS && l->ports.first < UINT32_MAX - l->ports.n &&
		       open_listener(l->ports.first + l->ports.n, &fd, &err) == 0)
			listen_at(l, fd);
		log_info("lane: vsock port %u and %u more", l->ports.first, l->ports.n - 1);
		stop_watching(l);
	}
}

static void try_later(void *arg)
{
	struct lane *l = arg;

	if (l->closing || l->ports.n)
		return;
	try_open(l);
	if (l->ports.n)
		l->opts.opened(l->opts.arg);
}

static int find_cpu(void *arg)
{
	return relay_cpu_find("");
}

int lane_new(struct loop *loop, const struct lane_options *opts, struct lane **ret,
	     struct error *err)
{
	const struct relay_options relay = { .dial_more = opts->dial_more,
					     .cpu = relay_cpu_is_emulated() ? find_cpu : NULL,
					     .arg = opts->arg };
	struct lane *l = xnew(struct lane);
	int rc = relay_new(&relay, &l->relay, err);

	if (rc < 0) {
		free(l);
		return rc;
	}
	l->loop = loop;
	l->opts = *opts;
	uv_timer_init(&loop->uv, &l->retry);
	l->retry.data = l;
	l->parts = 1;
	try_open(l);
	*ret = l;
	return 0;
}

struct relay_ports lane_ports(const struct lane *l)
{
	return l->ports;
}

static void on_retry_closed(uv_handle_t *h)
{
	on_part_closed(h->data);
}

void lane_close(struct lane *l, void (*closed)(void *arg), void *arg)
{
	l->closing = true;
	l->closed = closed;
	l->closed_arg = arg;
	stop_watching(l);
	relay_free(l->relay);
	uv_close((uv_handle_t *)&l->retry, on_retry_closed);
}
