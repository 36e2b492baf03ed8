#include "hostagent/guest_link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "hostagent/forward/lane.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	BACKOFF_FIRST_MS = 50,
	BACKOFF_MAX_MS = 2000,
	LASTED_MS = 10 * 1000,		/* a session this long was a real one: the next try
					 * is quick again. A guest that greets and breaks off
					 * at once must not keep us busy, nor fill the log */
	SSH_CONNECT_MAX_MS = 10000,	/* nothing behind the forwarded socket */
	TIME_SYNC_MS = 30000,
};

enum way_kind { WAY_SERIAL, WAY_SSH, WAY_COUNT };

static const char *const way_names[WAY_COUNT] = { "serial", "ssh" };

struct session;

struct way {
	struct guest_link *link;
	enum way_kind kind;
	bool wanted;
	struct session *session;	/* connecting, ready or closing; NULL: none */
	uv_timer_t retry;
	unsigned backoff_ms;
};

struct session {		/* one guest_client; freed when that is closed */
	struct way *way;
	struct guest_client *client;
	struct lane *lane;	/* from ready on */
	uint64_t ready_ms;	/* uv_now() when it became so */
	bool closing;
};

struct guest_link {		/* refs: timers, sessions, and until close() the owner */
	struct guest_link_options o;
	struct way ways[WAY_COUNT];
	struct session *ready;	/* the one in use; NULL: none */
	uv_timer_t sync;
	bool syncing;
	struct guest_link_info info;
	bool paused;		/* the machine */
	bool closing;
	unsigned refs;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void link_unref(struct guest_link *l)
{
	void (*closed)(void *arg) = l->closed;
	void *arg = l->closed_arg;

	if (--l->refs)
		return;
	free(l);
	if (closed)
		closed(arg);
}

static void on_handle_closed(uv_handle_t *h)
{
	link_unref(h->data);
}

static void way_try(struct way *w);

static void on_retry(uv_timer_t *t)
{
	struct way *w = container_of(t, struct way, retry);

	way_try(w);
}

static void way_try_later(struct way *w)
{
	if (w->link->closing || w->link->ready || !w->wanted)
		return;
	uv_timer_start(&w->retry, on_retry, w->backoff_ms, 0);
	w->backoff_ms = MIN(w->backoff_ms * 2, (unsigned)BACKOFF_MAX_MS);
}

static void forget_backoff(struct guest_link *l)
{
	for (size_t i = 0; i < WAY_COUNT; i++)
		l->ways[i].backoff_ms = BACKOFF_FIRST_MS;
}

/* --- one connection ------------------------------------------------------ */

static void on_client_closed(void *arg)
{
	struct session *s = arg;
	struct way *w = s->way;
	struct guest_link *l = w->link;

	if (s->lane)
		lane_grpc_free(s->lane);	/* its connections went with the client */
	free(s);
	w->session = NULL;
	way_try_later(w);
	link_unref(l);
}

/* Every end of a session comes through here. */
static void session_close(struct session *s)
{
	struct guest_link *l = s->way->link;

	if (s->closing)
		return;
	s->closing = true;
	if (l->ready == s) {
		l->ready = NULL;
		l->info.up = l->info.has_ports = false;
		l->info.way = "";
		l->syncing = false;
		uv_timer_stop(&l->sync);
		forward_set_lane(l->o.forward, CONFIG_LANE_GRPC, NULL);
		if (uv_now(&l->o.loop->uv) - s->ready_ms >= LASTED_MS)
			forget_backoff(l);
		for (size_t i = 0; i < WAY_COUNT; i++)
			if (!l->ways[i].session)
				way_try_later(&l->ways[i]);
	}
	guest_client_close(s->client, on_client_closed, s);
}

static void session_lost(struct session *s, const struct error *why)
{
	struct guest_link *l = s->way->link;
	bool was_ready = l->ready == s;

	log_debug("link: %s: %s", way_names[s->way->kind], why->msg);
	session_close(s);
	if (was_ready && !l->closing)
		l->o.lost(l->o.arg, why);
}

static void copy_text(char *to, size_t size, const char *from)
{
	scoped_free char *clean = log_escape(from ? from : "", size - sizeof("…"));

	snprintf(to, size, "%s", clean);
}

#define COPY_TEXT(to, from) copy_text((to), sizeof(to), (from))

static void clear_progress(struct guest_link_info *info)
{
	info->ssh_ready = info->boot_done = false;
	info->instance_id[0] = info->step[0] = 0;
	info->n_failed = 0;
}

static void set_progress(struct guest_link_info *info, const BootProgress *boot)
{
	info->tells_boot = true;
	info->ssh_ready = boot->ssh_ready;
	info->boot_done = boot->boot_done;
	COPY_TEXT(info->instance_id, boot->instance_id);
	COPY_TEXT(info->step, boot->step);
	info->n_failed = (unsigned)MIN(boot->n_failed, (size_t)1000);
	for (size_t i = 0; i < MIN(boot->n_failed, ARRAY_SIZE(info->failed)); i++)
		COPY_TEXT(info->failed[i], boot->failed[i]);
}

static void on_ready(void *arg, const Info *info)
{
	struct session *s = arg;
	struct guest_link *l = s->way->link;

	if (s->closing || l->closing || l->ready)
		return;
	l->ready = s;
	s->ready_ms = uv_now(&l->o.loop->uv);
	for (size_t i = 0; i < WAY_COUNT; i++) {
		struct way *w = &l->ways[i];

		uv_timer_stop(&w->retry);
		if (w->session && w->session != s)
			session_close(w->session);
	}
	l->info.up = true;
	/* an agent that knows no snapshots may have nothing to say for hours */
	l->info.has_ports = !(guest_client_features(s->client) & GUEST_FEATURE_SNAPSHOT);
	l->info.way = way_names[s->way->kind];
	l->info.tells_boot = guest_client_features(s->client) & GUEST_FEATURE_BOOT_PROGRESS;
	l->info.relay = (struct relay_ports){ info->relay_vsock_port, info->relay_vsock_ports };
	COPY_TEXT(l->info.agent_version, info->agent_version);
	COPY_TEXT(l->info.kernel, info->kernel);
	COPY_TEXT(l->info.boot_id, info->boot_id);
	clear_progress(&l->info);
	if (info->boot)
		set_progress(&l->info, info->boot);
	s->lane = lane_grpc_new(s->client);
	forward_set_lane(l->o.forward, CONFIG_LANE_GRPC, s->lane);
	guest_link_sync_time(l);
	l->o.ready(l->o.arg);
}

/* Validated by guest_client; what still does not parse is left out. */
static size_t read_ports(IPPort *const *in, size_t n, struct guest_port *out)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		struct guest_port p = { .port = (uint16_t)in[i]->port };
		struct in_addr v4;

		p.proto = streq(in[i]->protocol, "udp") ? IPPROTO_UDP : IPPROTO_TCP;
		if (inet_pton(AF_INET, in[i]->ip, &v4) == 1) {
			p.ip.s6_addr[10] = p.ip.s6_addr[11] = 0xff;	/* ::ffff:a.b.c.d */
			memcpy(&p.ip.s6_addr[12], &v4, sizeof(v4));
		} else if (inet_pton(AF_INET6, in[i]->ip, &p.ip) != 1) {
			continue;
		}
		if (in[i]->port >= 1 && in[i]->port <= UINT16_MAX)
			out[kept++] = p;
	}
	return kept;
}

static void take_ports(struct guest_link *l, const Event *e)
{
	size_t n = e->n_added_local_ports, m = e->n_removed_local_ports;
	scoped_free struct guest_port *added = xcalloc(n + 1, sizeof(*added));
	scoped_free struct guest_port *removed = xcalloc(m + 1, sizeof(*removed));

	n = read_ports(e->added_local_ports, n, added);
	m = read_ports(e->removed_local_ports, m, removed);
	if (e->snapshot) {
		l->info.has_ports = true;
		forward_set_ports(l->o.forward, added, n);
	} else if (n || m) {
		forward_change_ports(l->o.forward, added, n, removed, m);
	}
}

static void on_event(void *arg, const Event *e)
{
	struct session *s = arg;
	struct guest_link *l = s->way->link;
	bool had_ports = l->info.has_ports;

	if (s->closing || l->ready != s)
		return;
	take_ports(l, e);
	for (size_t i = 0; i < e->n_errors; i++) {
		scoped_free char *text = log_escape(e->errors[i], 300);

		log_warn_limited("link: the guest agent says: %s", text);
	}
	if (e->boot)
		set_progress(&l->info, e->boot);
	if (e->relay_vsock_port)
		l->info.relay = (struct relay_ports){ e->relay_vsock_port, e->relay_vsock_ports };
	if (e->boot || e->relay_vsock_port || had_ports != l->info.has_ports)
		l->o.progress(l->o.arg);
}

static void on_lost(void *arg, const struct error *why)
{
	session_lost(arg, why);
}

/* --- the two ways -------------------------------------------------------- */

static int connect_ssh(const char *path, int *ret_fd, struct error *err)
{
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	if (fd < 0)
		return error_sys(err, -errno, "socket");
	if (strlen(path) >= sizeof(sa.sun_path))
		return error_set(err, -ENAMETOOLONG, "socket path `%s` is too long", path);
	memcpy(sa.sun_path, path, strlen(path) + 1);
	/* never waits on a unix socket: at once, or EAGAIN with a full backlog */
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return error_sys(err, -errno, "connect %s", path);
	*ret_fd = steal_fd(&fd);
	return 0;
}

static int way_connect(struct way *w, struct error *err)
{
	struct guest_link *l = w->link;
	struct session *s;
	struct guest_client_callbacks cb = { .ready = on_ready, .event = on_event,
					     .lost = on_lost };
	struct guest_client_options opts = { 0 };
	int fd = -1, rc;

	if (w->kind == WAY_SERIAL) {
		opts.link_secret = l->o.secret;
		rc = l->o.driver_ops->agent_connect(l->o.driver, &fd, err);
	} else {
		opts.connect_timeout_ms = SSH_CONNECT_MAX_MS;
		rc = connect_ssh(l->o.ssh_socket, &fd, err);
	}
	if (rc < 0)
		return rc;
	s = xnew(struct session);
	s->way = w;
	cb.arg = s;
	rc = guest_client_new(l->o.loop, l->o.rpc, fd, &opts, &cb, &s->client, err);
	if (rc < 0) {
		free(s);
		return rc;
	}
	guest_client_set_paused(s->client, l->paused);
	w->session = s;
	l->refs++;
	return 0;
}

static void way_try(struct way *w)
{
	struct error err = ERROR_NONE;

	if (w->link->closing || w->link->ready || !w->wanted || w->session)
		return;
	if (way_connect(w, &err) < 0) {
		if (err.code != -EAGAIN)
			log_debug("link: %s: %s", way_names[w->kind], err.msg);
		way_try_later(w);
	}
}

/* --- for the host agent -------------------------------------------------- */

struct guest_link *guest_link_new(const struct guest_link_options *opts)
{
	struct guest_link *l = xnew(struct guest_link);

	l->o = *opts;
	l->info.way = "";
	l->refs = 1;
	for (size_t i = 0; i < WAY_COUNT; i++) {
		struct way *w = &l->ways[i];

		w->link = l;
		w->kind = (enum way_kind)i;
		w->backoff_ms = BACKOFF_FIRST_MS;
		uv_timer_init(&opts->loop->uv, &w->retry);
		w->retry.data = l;
		l->refs++;
	}
	uv_timer_init(&opts->loop->uv, &l->sync);
	l->sync.data = l;
	l->refs++;
	return l;
}

void guest_link_start(struct guest_link *l)
{
	l->ways[WAY_SERIAL].wanted = l->o.secret != NULL;
	way_try(&l->ways[WAY_SERIAL]);
}

void guest_link_set_ssh(struct guest_link *l, bool usable)
{
	struct way *w = &l->ways[WAY_SSH];

	if (l->closing || w->wanted == usable)
		return;
	w->wanted = usable;
	w->backoff_ms = BACKOFF_FIRST_MS;
	if (usable)
		way_try(w);
	else
		uv_timer_stop(&w->retry);
}

const struct guest_link_info *guest_link_info(const struct guest_link *l)
{
	return &l->info;
}

static void set_paused(struct guest_link *l, bool paused)
{
	l->paused = paused;
	for (size_t i = 0; i < WAY_COUNT; i++)
		if (l->ways[i].session && !l->ways[i].session->closing)
			guest_client_set_paused(l->ways[i].session->client, paused);
}

void guest_link_driver_event(struct guest_link *l, enum driver_event event)
{
	struct way *serial = &l->ways[WAY_SERIAL];
	struct error why = ERROR_NONE;

	if (l->closing)
		return;
	if (event == DRIVER_PAUSED || event == DRIVER_RESUMED) {
		set_paused(l, event == DRIVER_PAUSED);
	} else if (event == DRIVER_RESET) {
		forward_set_ports(l->o.forward, NULL, 0);	/* nothing listens now */
		clear_progress(&l->info);
		error_set(&why, -ECONNRESET, "the guest resets");
		if (l->ready)
			session_lost(l->ready, &why);
	} else if (event == DRIVER_AGENT_PORT_CLOSED && serial->session) {
		/* also one that is not ready: it has nobody left who would greet it */
		error_set(&why, -ECONNRESET, "the guest agent closed its port");
		session_lost(serial->session, &why);
	} else if (event == DRIVER_AGENT_PORT_OPEN && !l->ready && !serial->session) {
		uv_timer_stop(&serial->retry);
		way_try(serial);
	}
}

/* What it knows of this connection is of then. */
void guest_link_guest_was_set_back(struct guest_link *l)
{
	struct error why = ERROR_NONE;

	error_set(&why, -ECONNRESET, "the guest was set back to a snapshot");
	forget_backoff(l);
	if (l->ready && !l->closing)
		session_lost(l->ready, &why);
}

static void on_sync_time(uv_timer_t *t)
{
	guest_link_sync_time(t->data);
}

static void on_synced(void *arg, int64_t drift_ms, bool adjusted, const struct error *err)
{
	struct guest_link *l = arg;

	if (err->code == -ECANCELED)
		return;
	l->syncing = false;
	if (err->code < 0)
		log_debug("link: guest clock: %s", err->msg);
	else if (adjusted)
		log_info("link: guest clock was off by %lld ms, set", (long long)drift_ms);
}

void guest_link_sync_time(struct guest_link *l)
{
	if (!l->ready || l->syncing)
		return;
	l->syncing = true;
	uv_timer_start(&l->sync, on_sync_time, TIME_SYNC_MS, 0);
	guest_client_sync_time(l->ready->client, on_synced, l);
}

void guest_link_close(struct guest_link *l, void (*closed)(void *arg), void *arg)
{
	if (l->closing)
		return;
	l->closing = true;
	l->closed = closed;
	l->closed_arg = arg;
	for (size_t i = 0; i < WAY_COUNT; i++) {
		if (l->ways[i].session)
			session_close(l->ways[i].session);
		uv_close((uv_handle_t *)&l->ways[i].retry, on_handle_closed);
	}
	uv_close((uv_handle_t *)&l->sync, on_handle_closed);
	link_unref(l);
}
