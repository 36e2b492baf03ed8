#include "guestagent/relay.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "guestagent/relay_impl.h"
#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	EVENTS_MAX = 64,		/* taken by one epoll_wait() */
	STACK_BYTES = 256 * 1024,
	ACCEPT_MAX = 32,		/* in one turn */
	ACCEPT_PAUSE_MS = 100,		/* out of descriptors or memory */
	PLACE_MS = 5000,		/* between two questions for the CPU */
};

static_assert(offsetof(struct relay_buffer, bytes) == sizeof(struct relay_reply) + RELAY_FRAME_HEAD &&
	      offsetof(struct relay_buffer, end) == offsetof(struct relay_buffer, bytes) + RELAY_CHUNK,
	      "reply, head, bytes and end go in one write");
static_assert(_Alignof(struct relay_conn) >= 2, "the lowest bit of a pointer tells the side");

static const uint64_t wait_ms[RELAY_WAITS] = {
	[RELAY_WAIT_CONNECT] = DIAL_LAST_MS,
	[RELAY_WAIT_CONNECT_OR_NEXT] = DIAL_NEXT_MS,
	[RELAY_WAIT_REPLY] = RELAY_REPLY_MS,
	[RELAY_WAIT_MEMORY] = RELAY_MEMORY_MS,
};

/* Through the control pipe to the thread. The end of the pipe is its end. */
struct order {
	int fd;
	bool is_listener;
};

struct relay {
	pthread_t thread;
	int epoll_fd, control[2];
	int listeners[RELAY_VSOCK_PORTS];
	unsigned n_listeners;
	struct relay_options opts;	/* with the defaults in place */
	struct relay_buffer *buffer;	/* NULL: not since memory was given back */
	int spare_fd;			/* made ahead; -1: none */
	bool spare_wanted;

	LIST_HEAD(, relay_conn) all;
	struct relay_queue waiting[RELAY_WAITS];
	struct relay_queue busy;	/* more to do without an event */
	struct relay_queue dead;
	uint64_t now_ms;		/* of this turn */
	uint64_t accept_again_ms;	/* 0: the listeners are watched */
	uint64_t place_ms;		/* when to ask for the thread's CPU again */
	cpu_set_t cpus;			/* those it was started with */
	int cpu;			/* of them the one it is bound to; -1: any */
	uint64_t moved_ms;		/* the newest turn with something in it */
	uint64_t trim_ms;		/* when to look whether it is quiet; 0: nothing to give back */
	bool stopping;

	atomic_uint connections, idle, trims;
	atomic_ullong accepted, relayed;
};

/* Ticks of a few ms suffice, and where the guest's clock source is a device (under
 * emulation) the fine clock costs an exit from the guest. */
static uint64_t coarse_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* --- what a connection asks of the thread ------------------------------------ */

struct relay_buffer *relay_get_buffer(struct relay *r)
{
	if (!r->buffer)
		r->buffer = xmalloc(sizeof(*r->buffer));
	return r->buffer;
}

static int new_socket(int family)
{
	/* close() sends RST: tcp(7), socket(7). An end in order takes it back. */
	static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

int relay_get_socket(struct relay *r, int family)
{
	int fd = r->spare_fd;

	if (family != AF_INET)
		return new_socket(family);
	r->spare_fd = -1;
	r->spare_wanted = true;
	return fd >= 0 ? fd : new_socket(family);
}

static void make_spare(struct relay *r)
{
	if (r->spare_wanted && r->spare_fd < 0)
		r->spare_fd = new_socket(AF_INET);
	r->spare_wanted = false;
}

static int watch(struct relay_conn *c, enum relay_side side, int op, bool room)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET };

	if (room)
		ev.events |= EPOLLOUT;
	ev.data.u64 = (uintptr_t)c | side;
	c->ends[side].asked_for_room = room;
	return epoll_ctl(c->relay->epoll_fd, op, c->ends[side].fd, &ev) < 0 ? -errno : 0;
}

int relay_watch(struct relay_conn *c, enum relay_side side, bool room)
{
	return watch(c, side, EPOLL_CTL_ADD, room);
}

void relay_watch_room(struct relay_conn *c, enum relay_side side)
{
	if (!c->ends[side].asked_for_room)
		(void)watch(c, side, EPOLL_CTL_MOD, true);	/* of what is there: cannot fail */
}

void relay_wait_for(struct relay_conn *c, enum relay_wait wait)
{
	struct relay *r = c->relay;

	if (c->wait == RELAY_WAIT_HELLO)
		atomic_fetch_sub(&r->idle, 1);
	if (c->wait != RELAY_WAIT_NONE)
		TAILQ_REMOVE(&r->waiting[c->wait], c, waiting);
	c->wait = wait;
	if (wait == RELAY_WAIT_NONE)
		return;
	if (wait == RELAY_WAIT_HELLO)
		atomic_fetch_add(&r->idle, 1);
	c->deadline_ms = r->now_ms + wait_ms[wait];
	TAILQ_INSERT_TAIL(&r->waiting[wait], c, waiting);
}

void relay_dial_more(struct relay *r, struct dial *d)
{
	if (r->opts.dial_more)
		r->opts.dial_more(r->opts.arg, d);
}

void relay_count_relayed(struct relay *r)
{
	atomic_fetch_add(&r->relayed, 1);
}

unsigned relay_count_busy(const struct relay *r)
{
	return atomic_load(&r->connections) - atomic_load(&r->idle);
}

static void set_busy(struct relay_conn *c, bool busy)
{
	if (busy == c->queued)
		return;
	c->queued = busy;
	if (busy)
		TAILQ_INSERT_TAIL(&c->relay->busy, c, busy);
	else
		TAILQ_REMOVE(&c->relay->busy, c, busy);
}

void relay_trim_later(struct relay *r)
{
	if (!r->trim_ms)
		r->trim_ms = r->now_ms + RELAY_QUIET_MS;
}

void relay_bury(struct relay_conn *c)
{
	relay_wait_for(c, RELAY_WAIT_NONE);
	set_busy(c, false);
	LIST_REMOVE(c, all);
	atomic_fetch_sub(&c->relay->connections, 1);
	relay_trim_later(c->relay);
	TAILQ_INSERT_TAIL(&c->relay->dead, c, busy);
}

/* --- newcomers ---------------------------------------------------------------- */

/* False: nobody is idle, or not for long. */
static bool make_room(struct relay *r)
{
	struct relay_conn *oldest = TAILQ_FIRST(&r->waiting[RELAY_WAIT_HELLO]);

	if (!oldest || r->now_ms < oldest->deadline_ms + RELAY_FRESH_MS)
		return false;
	relay_conn_timeout(oldest);
	return true;
}

static void add(struct relay *r, int fd)
{
	scoped_fd int owned = fd;
	scoped_free struct relay_conn *c = NULL;
	int rc;

	if (atomic_load(&r->connections) >= r->opts.connections_max && !make_room(r)) {
		log_warn_limited("relay: %u connections are open, one more was closed",
				 r->opts.connections_max);
		return;
	}
	c = xnew(struct relay_conn);
	c->relay = r;
	c->wait = RELAY_WAIT_NONE;
	c->ends[RELAY_SERVER].fd = -1;
	c->ends[RELAY_HOST] = (struct relay_end){ .fd = fd, .writable = true };
	rc = relay_watch(c, RELAY_HOST, false);
	if (rc < 0) {
		log_warn_limited("relay: watch a connection: %s, closed", error_text(rc));
		return;
	}
	steal_fd(&owned);
	LIST_INSERT_HEAD(&r->all, c, all);
	atomic_fetch_add(&r->connections, 1);
	atomic_fetch_add(&r->accepted, 1);
	relay_wait_for(steal_ptr(&c), RELAY_WAIT_HELLO);
}

static int watch_listener(struct relay *r, int op, unsigned i, bool on)
{
	struct epoll_event ev = { .events = on ? EPOLLIN : 0, .data.ptr = &r->listeners[i] };

	return epoll_ctl(r->epoll_fd, op, r->listeners[i], &ev) < 0 ? -errno : 0;
}

static void watch_listeners(struct relay *r, bool on)
{
	for (unsigned i = 0; i < r->n_listeners; i++)
		(void)watch_listener(r, EPOLL_CTL_MOD, i, on);
	r->accept_again_ms = on ? 0 : r->now_ms + ACCEPT_PAUSE_MS;
}

/* False: no more now. */
static bool accept_one(struct relay *r, int listen_fd)
{
	union {
		struct sockaddr sa;
		struct sockaddr_vm vm;
		struct sockaddr_storage any;
	} peer;
	socklen_t len = sizeof(peer);
	int fd = accept4(listen_fd, &peer.sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return errno != EAGAIN;
		log_warn_limited("relay: accept: %s, trying again", error_text(-errno));
		watch_listeners(r, false);
		return false;
	}
	if (peer.sa.sa_family == AF_VSOCK && peer.vm.svm_cid != VMADDR_CID_HOST) {
		log_warn_limited("relay: CID %u is not the host, closed", peer.vm.svm_cid);
		close(fd);
		return true;
	}
	add(r, fd);
	return true;
}

/* They come in batches, and a client may be waiting behind each. */
static void accept_some(struct relay *r, int listen_fd)
{
	for (unsigned i = 0; i < ACCEPT_MAX && accept_one(r, listen_fd); i++)
		;
}

static void add_listener(struct relay *r, int fd)
{
	int rc;

	assert(r->n_listeners < ARRAY_SIZE(r->listeners));
	r->listeners[r->n_listeners] = fd;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	rc = watch_listener(r, EPOLL_CTL_ADD, r->n_listeners++, !r->accept_again_ms);
	if (rc < 0)
		log_warn("relay: watch a listener: %s, ignoring it", error_text(rc));
}

static void obey(struct relay *r)
{
	struct order orders[16];
	ssize_t n = read(r->control[0], orders, sizeof(orders));	/* whole ones: pipe(7) */

	if (n == 0)
		r->stopping = true;
	for (ssize_t i = 0; i < n / (ssize_t)sizeof(orders[0]); i++) {
		if (orders[i].is_listener)
			add_listener(r, orders[i].fd);
		else
			add(r, orders[i].fd);
	}
}

/* --- turns --------------------------------------------------------------------- */

static int next_timeout_ms(struct relay *r)
{
	uint64_t next = r->accept_again_ms ? r->accept_again_ms : UINT64_MAX;

	if (!TAILQ_EMPTY(&r->busy))
		return 0;
	if (r->trim_ms)
		next = MIN(next, r->trim_ms);
	for (unsigned i = RELAY_WAIT_CONNECT; i < RELAY_WAITS; i++) {
		struct relay_conn *c = TAILQ_FIRST(&r->waiting[i]);

		if (c)
			next = MIN(next, c->deadline_ms);
	}
	if (next == UINT64_MAX)
		return -1;
	return next <= r->now_ms ? 0 : (int)(next - r->now_ms);
}

static void run(struct relay_conn *c)
{
	bool more = relay_conn_run(c);

	if (c->state != RELAY_DEAD)
		set_busy(c, more);
}

static bool is_listener(const struct relay *r, const struct epoll_event *ev)
{
	const int *fd = ev->data.ptr;

	return fd >= r->listeners && fd < r->listeners + ARRAY_SIZE(r->listeners);
}

/* Nobody waits for what there is to do when a client is gone, nor for accept(): the
 * kernel has let the host in already. */
static bool can_wait(const struct relay *r, const struct epoll_event *ev)
{
	if (ev->data.ptr == r->control || is_listener(r, ev))
		return true;
	return ev->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) && (ev->data.u64 & 1) == RELAY_HOST;
}

static void on_event(struct relay *r, const struct epoll_event *ev)
{
	struct relay_conn *c = (struct relay_conn *)(uintptr_t)(ev->data.u64 & ~(uint64_t)1);

	if (ev->data.ptr == r->control) {
		obey(r);
	} else if (is_listener(r, ev)) {
		accept_some(r, *(int *)ev->data.ptr);
	} else {
		relay_conn_event(c, (enum relay_side)(ev->data.u64 & 1), ev->events);
		if (!c->queued)		/* else its turn comes */
			run(c);
	}
}

/* One of those that had more than a turn's worth. Only one, so that small traffic
 * waits no longer than for one bulk read. */
static void run_busy(struct relay *r)
{
	struct relay_conn *c = TAILQ_FIRST(&r->busy);

	if (!c)
		return;
	set_busy(c, false);
	run(c);
}

static void run_timeouts(struct relay *r)
{
	if (r->accept_again_ms && r->accept_again_ms <= r->now_ms)
		watch_listeners(r, true);
	for (unsigned i = RELAY_WAIT_CONNECT; i < RELAY_WAITS; i++) {
		struct relay_conn *c;

		while ((c = TAILQ_FIRST(&r->waiting[i])) && c->deadline_ms <= r->now_ms) {
			relay_conn_timeout(c);
			if (c->state != RELAY_DEAD && !c->queued)
				run(c);
		}
	}
}

/* Connections ended, and since then nothing moved. */
static void trim_when_quiet(struct relay *r)
{
	if (!r->trim_ms || r->now_ms < r->trim_ms)
		return;
	r->trim_ms = r->moved_ms + RELAY_QUIET_MS;
	if (r->now_ms < r->trim_ms)
		return;		/* later, then */
	r->trim_ms = 0;
	free(steal_ptr(&r->buffer));
	if (r->spare_fd >= 0)
		close(r->spare_fd);
	r->spare_fd = -1;
	heap_trim();
	atomic_fetch_add(&r->trims, 1);
}

/* Among those we may have: a device may have been plugged anew, and its interrupts moved.
 * Set even if it has not changed: the kernel may have undone it (CPU hotplug, cpusets). */
static void follow_cpu(struct relay *r)
{
	cpu_set_t set;
	int cpu;

	if (!r->opts.cpu || r->now_ms < r->place_ms)
		return;
	r->place_ms = r->now_ms + PLACE_MS;
	cpu = r->opts.cpu(r->opts.arg);
	if (cpu < 0 || !CPU_ISSET(cpu, &r->cpus))
		cpu = -1;
	if (cpu < 0 && r->cpu < 0)
		return;
	set = r->cpus;
	if (cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
	}
	if (sched_setaffinity(0, sizeof(set), &set) == 0)
		r->cpu = cpu;
}

static void free_dead(struct relay *r)
{
	struct relay_conn *c;

	while ((c = TAILQ_FIRST(&r->dead))) {
		TAILQ_REMOVE(&r->dead, c, busy);
		free(c);
	}
}

bool relay_turn(struct relay *r, int timeout_ms)
{
	struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(r->epoll_fd, events, EVENTS_MAX, timeout_ms);

	r->now_ms = coarse_ms();
	if (n > 0 || !TAILQ_EMPTY(&r->busy))
		r->moved_ms = r->now_ms;
	for (int pass = 0; pass < 2; pass++)
		for (int i = 0; i < n; i++)
			if (can_wait(r, &events[i]) == (pass == 1))
				on_event(r, &events[i]);
	run_busy(r);
	run_timeouts(r);
	make_spare(r);
	if (n > 0)
		follow_cpu(r);
	free_dead(r);
	trim_when_quiet(r);
	return n > 0 || !TAILQ_EMPTY(&r->busy);
}

static void *relay_main(void *arg)
{
	struct relay *r = arg;

	if (sched_getaffinity(0, sizeof(r->cpus), &r->cpus) < 0)
		r->opts.cpu = NULL;	/* more CPUs than a set holds */
	while (!r->stopping)
		relay_turn(r, next_timeout_ms(r));
	return NULL;
}

/* --- from other threads ---------------------------------------------------------- */

static void order(struct relay *r, const struct order *o)
{
	ssize_t n;

	do	/* blocks while the thread is 4,096 orders behind, that is: never for long */
		n = write(r->control[1], o, sizeof(*o));
	while (n < 0 && errno == EINTR);
	assert(n == sizeof(*o));
}

void relay_listen(struct relay *r, int listen_fd)
{
	order(r, &(struct order){ .fd = listen_fd, .is_listener = true });
}

void relay_add(struct relay *r, int fd)
{
	order(r, &(struct order){ .fd = fd });
}

struct relay_stats relay_get_stats(struct relay *r)
{
	return (struct relay_stats){ .connections = atomic_load(&r->connections),
				     .idle = atomic_load(&r->idle),
				     .accepted = atomic_load(&r->accepted),
				     .relayed = atomic_load(&r->relayed),
				     .trims = atomic_load(&r->trims) };
}

/* --- life ------------------------------------------------------------------------ */

/* Two descriptors each; a quarter stays for the rest of the agent. */
static unsigned connections_allowed(unsigned wanted)
{
	struct rlimit files;

	if (wanted == 0)
		wanted = RELAY_CONNECTIONS_MAX;
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return wanted;
	return (unsigned)MIN((rlim_t)wanted, files.rlim_cur / 8 * 3);
}

static int start_thread(struct relay *r)
{
	pthread_attr_t attr;
	sigset_t all, before;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	sigfillset(&all);	/* signals are the loop thread's */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&r->thread, &attr, relay_main, r);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (rc == 0)
		pthread_setname_np(r->thread, "relay");
	return -rc;
}

static int set_up(struct relay *r, struct error *err)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = r->control };

	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epoll_fd < 0 || pipe2(r->control, O_CLOEXEC) < 0 ||
	    epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->control[0], &ev) < 0)
		return error_sys(err, -errno, "relay: epoll and its pipe");
	return 0;
}

int relay_open(const struct relay_options *opts, struct relay **ret, struct error *err)
{
	struct relay *r = xnew(struct relay);

	r->epoll_fd = r->control[0] = r->control[1] = r->spare_fd = r->cpu = -1;
	r->opts = *opts;
	r->opts.connections_max = connections_allowed(opts->connections_max);
	r->now_ms = coarse_ms();
	for (unsigned i = 0; i < RELAY_WAITS; i++)
		TAILQ_INIT(&r->waiting[i]);
	TAILQ_INIT(&r->busy);
	TAILQ_INIT(&r->dead);
	if (set_up(r, err) < 0) {
		relay_release(r);
		return err->code;
	}
	*ret = r;
	return 0;
}

int relay_new(const struct relay_options *opts, struct relay **ret, struct error *err)
{
	struct relay *r;
	int rc = relay_open(opts, &r, err);

	if (rc < 0)
		return rc;
	rc = start_thread(r);
	if (rc < 0) {
		relay_release(r);
		return error_sys(err, rc, "relay: thread");
	}
	*ret = r;
	return 0;
}

void relay_release(struct relay *r)
{
	int fds[] = { r->epoll_fd, r->control[0], r->control[1], r->spare_fd };
	struct relay_conn *c;

	while ((c = LIST_FIRST(&r->all)))
		relay_conn_reset(c);
	free_dead(r);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	for (unsigned i = 0; i < r->n_listeners; i++)
		close(r->listeners[i]);
	free(r->buffer);
	free(r);
}

void relay_free(struct relay *r)
{
	close(r->control[1]);
	r->control[1] = -1;
	pthread_join(r->thread, NULL);
	relay_release(r);
}
