#include "test/mock/forward.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"

static void on_event(void *arg, const struct forward_event *ev)
{
	static const char *const names[] = { "forwarding", "not-forwarding", "stopping", "failed" };
	struct fx *fx = arg;

	strv_addf(&fx->events, "%s %s %s %s%s%s", names[ev->type], ev->protocol, ev->guest_addr,
		  *ev->host_addr ? ev->host_addr : "-", *ev->error ? " " : "", ev->error);
	if (fx->on_event)
		fx->on_event(fx, ev);
}

void fx_start_with(struct fx *fx, const struct config *config, const struct forward_options *more)
{
	struct forward_options opts = *more;
	struct error err = { 0 };

	signal(SIGPIPE, SIG_IGN);
	*fx = (struct fx){ .config = *config };
	assert_int_equal(loop_init(&fx->loop, &err), 0);
	opts.config = &fx->config;
	opts.ssh_local_port = 60022;
	opts.event = on_event;
	opts.arg = fx;
	assert_int_equal(forward_new(&fx->loop, &opts, &fx->forward, &err), 0);
	mock_lane_init(&fx->lane, &fx->loop);
	forward_set_lane(fx->forward, CONFIG_LANE_GRPC, &fx->lane.lane);
	forward_start(fx->forward);
}

void fx_start(struct fx *fx, const struct config_port_forward *rules, size_t n,
	      const struct forward_limits *limits)
{
	struct config config = { .port_forwards = (struct config_port_forward *)rules,
				 .n_port_forwards = n };
	struct forward_options opts = { 0 };

	if (limits)
		opts.limits = *limits;
	fx_start_with(fx, &config, &opts);
}

static void on_closed(void *arg)
{
	((struct fx *)arg)->closed = true;
}

static bool is_closed(void *arg)
{
	return ((struct fx *)arg)->closed;
}

void fx_stop(struct fx *fx)
{
	forward_close(fx->forward, on_closed, fx);
	assert_int_equal(fx->lane.now, 0); /* no connection of the lane was forgotten */
	assert_true(fx_until(fx, is_closed, fx));
	assert_int_equal(loop_done(&fx->loop), 0);
	strv_done(&fx->events);
}

struct guest_port fx_port(int proto, const char *ip, uint16_t port)
{
	struct guest_port p = { .proto = proto, .ip = address_v4(0, 0, 0, 0), .port = port };

	if (inet_pton(AF_INET6, ip, &p.ip) != 1)
		assert_int_equal(inet_pton(AF_INET, ip, p.ip.s6_addr + 12), 1);
	return p;
}

void fx_add(struct fx *fx, int proto, const char *ip, uint16_t port)
{
	struct guest_port p = fx_port(proto, ip, port);

	forward_change_ports(fx->forward, &p, 1, NULL, 0);
}

void fx_remove(struct fx *fx, int proto, const char *ip, uint16_t port)
{
	struct guest_port p = fx_port(proto, ip, port);

	forward_change_ports(fx->forward, NULL, 0, &p, 1);
}

struct config_port_forward fx_rule(uint16_t port, uint16_t host_port)
{
	struct in6_addr loopback = address_v4(127, 0, 0, 1);

	return (struct config_port_forward){ .guest_ip = loopback,
					     .guest_port = { port, port },
					     .host_ip = loopback,
					     .host_port = { host_port, host_port } };
}

uint16_t fx_free_port(void)
{
	/* below the range that the kernel hands to clients, so none takes it */
	static uint16_t next;

	if (!next)
		next = (uint16_t)(20000 + getpid() % 500 * 20);
	for (;;) {
		uint16_t port = next++;
		int fds[4] = { fx_bind(SOCK_STREAM, "127.0.0.1", port),
			       fx_bind(SOCK_DGRAM, "127.0.0.1", port),
			       fx_bind(SOCK_STREAM, "::1", port),
			       fx_bind(SOCK_DGRAM, "::1", port) };
		bool ok = fds[0] >= 0 && fds[1] >= 0 && fds[2] != -EADDRINUSE &&
			  fds[3] != -EADDRINUSE;

		for (int i = 0; i < 4; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		if (ok)
			return port;
	}
}

/* --- the loop ---------------------------------------------------------------- */

struct turn {
	uv_timer_t timer;
	uv_prepare_t before_poll;
	bool late;
	bool (*done)(void *arg); /* NULL: never */
	void *arg;
};

static void on_timer(uv_timer_t *t)
{
	((struct turn *)t->data)->late = true;
}

/* A round begins with timers: what they did must not wait for the poll's end. */
static void on_before_poll(uv_prepare_t *p)
{
	struct turn *t = p->data;

	if (t->done && t->done(t->arg))
		uv_stop(p->loop);
}

static bool turn_until(struct fx *fx, unsigned ms, bool (*done)(void *arg), void *arg)
{
	struct turn t = { .done = done, .arg = arg };

	uv_timer_init(&fx->loop.uv, &t.timer);
	uv_prepare_init(&fx->loop.uv, &t.before_poll);
	t.timer.data = t.before_poll.data = &t;
	uv_update_time(&fx->loop.uv);
	uv_timer_start(&t.timer, on_timer, ms, 0);
	uv_prepare_start(&t.before_poll, on_before_poll);
	while (!t.late && !(done && done(arg)))
		uv_run(&fx->loop.uv, UV_RUN_ONCE);
	uv_close((uv_handle_t *)&t.timer, NULL);
	uv_close((uv_handle_t *)&t.before_poll, NULL);
	uv_run(&fx->loop.uv, UV_RUN_NOWAIT);
	return !t.late;
}

bool fx_until(struct fx *fx, bool (*done)(void *arg), void *arg)
{
	return turn_until(fx, FX_DEADLINE_MS, done, arg);
}

void fx_turn(struct fx *fx, unsigned ms)
{
	turn_until(fx, ms, NULL, NULL);
}

const char *fx_newest(struct fx *fx)
{
	return fx->events.len ? fx->events.items[fx->events.len - 1] : "";
}

struct wanted_event {
	struct fx *fx;
	const char *prefix;
};

static bool newest_is(void *arg)
{
	struct wanted_event *w = arg;

	return w->fx->events.len && strncmp(fx_newest(w->fx), w->prefix, strlen(w->prefix)) == 0;
}

bool fx_wait_event(struct fx *fx, const char *prefix)
{
	return fx_until(fx, newest_is, &(struct wanted_event){ fx, prefix });
}

unsigned fx_count_events(struct fx *fx, const char *prefix)
{
	unsigned n = 0;

	for (size_t i = 0; i < fx->events.len; i++)
		n += strncmp(fx->events.items[i], prefix, strlen(prefix)) == 0;
	return n;
}

/* --- what is listed ---------------------------------------------------------- */

struct lister {
	struct fx_rows *rows;
	void (*more)(const struct forward_row *row, char *ret, size_t size);
};

static void say_error(const struct forward_row *row, char *ret, size_t size)
{
	snprintf(ret, size, "%s", row->error);
}

static void add_row(void *arg, const struct forward_row *row)
{
	const struct lister *l = arg;
	struct fx_rows *rows = l->rows;
	char more[120] = "";

	assert_true(rows->n < ARRAY_SIZE(rows->text));
	l->more(row, more, sizeof(more));
	snprintf(rows->text[rows->n++], sizeof(rows->text[0]), "%s %s %s %s%s%s", row->protocol,
		 row->guest_addr, *row->host_addr ? row->host_addr : "-", row->state,
		 *more ? " " : "", more);
}

const struct fx_rows *fx_list(struct fx *fx,
			      void (*more)(const struct forward_row *row, char *ret, size_t size))
{
	static struct fx_rows rows;

	rows.n = 0;
	forward_list(fx->forward, add_row, &(struct lister){ &rows, more ? more : say_error });
	return &rows;
}

struct only_row {
	struct forward_row row;
	unsigned n;
};

static void copy_row(void *arg, const struct forward_row *row)
{
	struct only_row *r = arg;

	r->row = *row;
	r->n++;
}

struct forward_row fx_row(struct fx *fx)
{
	struct only_row r = { 0 };

	forward_list(fx->forward, copy_row, &r);
	assert_int_equal(r.n, 1);
	return r.row;
}

const char *fx_text(const char *fmt, ...)
{
	static char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return text;
}

/* --- sockets of clients and servers ------------------------------------------- */

struct client {
	struct fx *fx;
	void (*fn)(void *arg);
	void *arg;
	bool done;
};

static void on_client_done(void *arg)
{
	((struct client *)arg)->done = true;
}

static void *client_thread(void *arg)
{
	struct client *c = arg;

	c->fn(c->arg);
	loop_post(&c->fx->loop, on_client_done, c);
	return NULL;
}

static bool client_is_done(void *arg)
{
	return ((struct client *)arg)->done;
}

bool fx_client(struct fx *fx, void (*fn)(void *arg), void *arg)
{
	struct client c = { .fx = fx, .fn = fn, .arg = arg };
	pthread_t thread;
	bool ok;

	assert_int_equal(pthread_create(&thread, NULL, client_thread, &c), 0);
	ok = fx_until(fx, client_is_done, &c);
	pthread_join(thread, NULL);
	return ok;
}

static int open_socket(int type, const char *ip, uint16_t port, struct sockaddr_storage *sa,
		       socklen_t *len)
{
	struct timeval tv = { .tv_sec = 10 };
	struct guest_port p = { .ip = address_v4(0, 0, 0, 0) };
	int fd, on = 1;

	if (inet_pton(AF_INET6, ip, &p.ip) != 1)
		inet_pton(AF_INET, ip, p.ip.s6_addr + 12);
	*len = address_to_sockaddr(&p.ip, port, sa);
	fd = socket(sa->ss_family, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	if ((type & 0xf) == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (sa->ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	return fd;
}

int fx_connect(int type, const char *ip, uint16_t port)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int fd = open_socket(type, ip, port, &sa, &len), rc;

	if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, len) < 0 && errno != EINPROGRESS) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

int fx_bind(int type, const char *ip, uint16_t port)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int fd = open_socket(type, ip, port, &sa, &len), rc;

	if (fd < 0)
		return fd;
	if (bind(fd, (struct sockaddr *)&sa, len) < 0 ||
	    ((type & 0xf) == SOCK_STREAM && listen(fd, 128) < 0)) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

static int open_unix(const char *path, struct sockaddr_un *sa)
{
	struct timeval tv = { .tv_sec = 10 };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(sa->sun_path, sizeof(sa->sun_path), "%s", path);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	return fd;
}

int fx_connect_unix(const char *path)
{
	struct sockaddr_un sa;
	int fd = open_unix(path, &sa), rc;

	if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

int fx_bind_unix(const char *path)
{
	struct sockaddr_un sa;
	int fd = open_unix(path, &sa), rc;

	if (fd >= 0 && (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 128) < 0)) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

bool fx_reachable(const char *ip, uint16_t port)
{
	int fd = fx_connect(SOCK_STREAM, ip, port);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

ssize_t fx_receive(struct fx *fx, int fd, void *buf, size_t len)
{
	ssize_t n;

	for (unsigned ms = 0; ms < FX_DEADLINE_MS; ms++) {
		n = recv(fd, buf, len, MSG_DONTWAIT);
		if (n >= 0 || errno != EAGAIN)
			return n < 0 ? -errno : n;
		fx_turn(fx, 1);
	}
	return -EAGAIN;
}

void fx_assert_echo(struct fx *fx, int fd, const void *data, size_t len)
{
	scoped_free uint8_t *in = xmalloc(len + 1);

	assert_int_equal(send(fd, data, len, 0), len);
	assert_int_equal(fx_receive(fx, fd, in, len + 1), len);
	assert_memory_equal(in, data, len);
}
