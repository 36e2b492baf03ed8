#include "hostagent/forward/remember.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>

#include "hostagent/forward/address.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

enum {
	REMEMBER_MAX = 512,
	REMEMBER_FILE_MAX = 64 * 1024, /* 512 lines of less than 80 */
	REMEMBER_DELAY_MS = 500,       /* a start brings many at once */
};

struct entry {
	TAILQ_ENTRY(entry) next;
	int proto;
	struct in6_addr ip;
	uint16_t guest, host;
};

struct remember { /* refs: the timer, and a write under way */
	struct hub *hub;
	char *path;
	TAILQ_HEAD(entry_list, entry) entries; /* the newest first */
	unsigned n;
	bool dirty, writing;
	uv_timer_t timer;
	uv_work_t work;
	struct buf text; /* the pool's while writing */
	struct error err;
	unsigned refs;
};

static struct entry *find(const struct remember *r, int proto, const struct in6_addr *ip,
			  uint16_t guest)
{
	struct entry *e;

	TAILQ_FOREACH(e, &r->entries, next)
		if (e->proto == proto && e->guest == guest && address_equal(&e->ip, ip))
			return e;
	return NULL;
}

static void drop(struct remember *r, struct entry *e)
{
	TAILQ_REMOVE(&r->entries, e, next);
	r->n--;
	free(e);
}

static void put(struct remember *r, const struct entry *values)
{
	struct entry *e = xnew(struct entry);

	*e = *values;
	TAILQ_INSERT_HEAD(&r->entries, e, next);
	if (++r->n > REMEMBER_MAX)
		drop(r, TAILQ_LAST(&r->entries, entry_list));
}

/* --- the file ---------------------------------------------------------------- */

static bool parse_line(const char *line, struct entry *ret)
{
	char proto[4], ip[INET6_ADDRSTRLEN];
	unsigned guest, host;
	struct in_addr v4;

	if (sscanf(line, "%3[a-z] %45[0-9a-f.:] %5u %5u", proto, ip, &guest, &host) != 4 ||
	    guest - 1 > 65534 || host - 1 > 65534)
		return false;
	*ret = (struct entry){ .proto = streq(proto, "udp") ? IPPROTO_UDP : IPPROTO_TCP,
			       .guest = (uint16_t)guest, .host = (uint16_t)host };
	if (inet_pton(AF_INET, ip, &v4) == 1) {
		ret->ip = address_v4(0, 0, 0, 0);
		memcpy(ret->ip.s6_addr + 12, &v4, sizeof(v4));
		return true;
	}
	return inet_pton(AF_INET6, ip, &ret->ip) == 1;
}

/* A file that is not there or not ours is an empty one. */
static void load(struct remember *r)
{
	scoped_buf struct buf b = { 0 };
	scoped_strv struct strv lines = { 0 };
	struct error err = { 0 };
	struct entry e;

	if (!r->path || path_read_file(r->path, REMEMBER_FILE_MAX, &b, &err) < 0)
		return;
	strv_split(&lines, buf_str(&b), "\n");
	for (size_t i = lines.len; i-- > 0;) /* the last one becomes the first */
		if (parse_line(lines.items[i], &e) && !find(r, e.proto, &e.ip, e.guest))
			put(r, &e);
}

static void format(struct remember *r)
{
	struct entry *e;

	buf_reset(&r->text);
	TAILQ_FOREACH(e, &r->entries, next) {
		char ip[INET6_ADDRSTRLEN];

		if (address_is_v4(&e->ip))
			inet_ntop(AF_INET, e->ip.s6_addr + 12, ip, sizeof(ip));
		else
			inet_ntop(AF_INET6, &e->ip, ip, sizeof(ip));
		buf_addf(&r->text, "%s %s %u %u\n", e->proto == IPPROTO_UDP ? "udp" : "tcp", ip,
			 e->guest, e->host);
	}
}

static void unref(struct remember *r)
{
	if (--r->refs > 0)
		return;
	while (!TAILQ_EMPTY(&r->entries))
		drop(r, TAILQ_FIRST(&r->entries));
	hub_unref(r->hub);
	buf_done(&r->text);
	free(r->path);
	free(r);
}

static void write_file(uv_work_t *work)
{
	struct remember *r = work->data;

	path_write_file(r->path, r->text.data, r->text.len, 0600, &r->err);
}

static void save(struct remember *r);

static void on_written(uv_work_t *work, int status)
{
	struct remember *r = work->data;

	r->writing = false;
	if (r->err.code < 0)
		log_warn("forward: host ports are not remembered: %s, ignoring", r->err.msg);
	if (r->dirty)
		save(r);
	unref(r);
}

static void save(struct remember *r)
{
	if (r->writing)
		return; /* when that one is through */
	r->dirty = false;
	r->writing = true;
	r->err = ERROR_NONE;
	format(r);
	r->work.data = r;
	r->refs++;
	uv_queue_work(r->timer.loop, &r->work, write_file, on_written);
}

static void on_timer(uv_timer_t *t)
{
	save(t->data);
}

/* --- asking ------------------------------------------------------------------ */

uint16_t remember_get(const struct remember *r, int proto, const struct in6_addr *host_ip,
		      uint16_t guest_port)
{
	const struct entry *e = find(r, proto, host_ip, guest_port);

	return e ? e->host : 0;
}

void remember_set(struct remember *r, int proto, const struct in6_addr *host_ip,
		  uint16_t guest_port, uint16_t host_port)
{
	struct entry *old = find(r, proto, host_ip, guest_port);

	if (old && old->host == host_port)
		return;
	if (old)
		drop(r, old);
	put(r, &(struct entry){ .proto = proto, .ip = *host_ip, .guest = guest_port,
				.host = host_port });
	if (!r->path)
		return;
	r->dirty = true;
	if (!uv_is_active((uv_handle_t *)&r->timer))
		uv_timer_start(&r->timer, on_timer, REMEMBER_DELAY_MS, 0);
}

struct remember *remember_new(struct hub *hub, const char *path)
{
	struct remember *r = xnew(struct remember);

	r->hub = hub;
	r->path = path ? xstrdup(path) : NULL;
	r->refs = 1;
	TAILQ_INIT(&r->entries);
	hub_ref(hub);
	uv_timer_init(&hub->loop->uv, &r->timer);
	r->timer.data = r;
	load(r);
	return r;
}

static void on_closed(uv_handle_t *h)
{
	unref(h->data);
}

void remember_close(struct remember *r)
{
	if (r->dirty && !r->writing)
		save(r);
	uv_close((uv_handle_t *)&r->timer, on_closed);
}
