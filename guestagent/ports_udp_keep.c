#include "guestagent/ports_udp_keep.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum { FILE_MAX = 128 * 1024 };

struct udp_keep {
	char *paths[2];		/* by cookie, by inode */
	struct udp_servers *servers;
	uv_timer_t timer;
	bool by_inode;
	bool found;
	uint64_t next_ms;	/* no writing before */
	void (*closed)(void *arg);
	void *closed_arg;
};

static const char *path_of(const struct udp_keep *k)
{
	return k->paths[k->by_inode];
}

/* --- the text -------------------------------------------------------------- */

/* Where cookies mean the same sockets: "BOOT-ID net:[INODE]". */
static int read_scope(char *ret, size_t size, struct error *err)
{
	scoped_buf struct buf boot = { 0 };
	char net[64] = "";

	if (path_read_file("/proc/sys/kernel/random/boot_id", 64, &boot, err) < 0)
		return err->code;
	if (readlink("/proc/self/ns/net", net, sizeof(net) - 1) < 0)
		return error_sys(err, -errno, "readlink /proc/self/ns/net");
	snprintf(ret, size, "%.*s %s", (int)strcspn((char *)boot.data, "\n"), (char *)boot.data, net);
	return 0;
}

static int write_head(const struct udp_keep *k, struct buf *to, struct error *err)
{
	char scope[192];
	scoped_free char *line = NULL;

	if (read_scope(scope, sizeof(scope), err) < 0)
		return err->code;
	line = xasprintf("lima-guestagent udp 1 %s %s\n", scope, k->by_inode ? "inode" : "cookie");
	buf_add(to, line, strlen(line));
	return 0;
}

static void write_socket(const struct udp_known *s, struct buf *to)
{
	char line[128], ip[INET6_ADDRSTRLEN];
	int n = snprintf(line, sizeof(line), "%" PRIx64 " %s %s %u\n", s->cookie,
			 s->server ? "server" : "client", port_ip(&s->port, ip), s->port.port);

	buf_add(to, line, (size_t)n);
}

static bool parse_socket(const char *line, struct udp_known *ret)
{
	struct udp_known s = { .lasting = true, .kept = true };
	char what[8], ip[INET6_ADDRSTRLEN];
	unsigned port;
	int end = 0;

	if (sscanf(line, "%16" SCNx64 " %7s %45s %5u%n", &s.cookie, what, ip, &port, &end) != 4 ||
	    line[end] || port < 1 || port > UINT16_MAX)
		return false;
	s.port = (struct port){ .proto = IPPROTO_UDP, .port = (uint16_t)port,
				.family = strchr(ip, ':') ? AF_INET6 : AF_INET };
	if (inet_pton(s.port.family, ip, s.port.addr) != 1)
		return false;
	s.server = streq(what, "server");
	s.bind = s.server ? UDP_BIND_UNKNOWN : UDP_BIND_KERNEL;
	*ret = s;
	return s.server || streq(what, "client");
}

/* All of it or nothing: -EINVAL for what no agent wrote. */
static int parse(const struct udp_keep *k, char *text, struct udp_known *items, size_t *ret_len,
		 struct error *err)
{
	scoped_buf struct buf head = { 0 };
	char *line = text;
	size_t n = 0;

	if (write_head(k, &head, err) < 0)
		return err->code;
	if (strncmp(text, (char *)head.data, head.len) != 0)
		return error_set(err, -ESTALE, "%s is not about these sockets", path_of(k));
	for (line += head.len; *line;) {
		char *end = strchr(line, '\n');

		if (!end || n == KEEP_SOCKETS_MAX)
			return error_set(err, -EINVAL, "%s is damaged", path_of(k));
		*end = 0;
		if (!parse_socket(line, &items[n++]))
			return error_set(err, -EINVAL, "%s is damaged: `%s`", path_of(k), line);
		line = end + 1;
	}
	*ret_len = n;
	return 0;
}

/* --- reading and writing ----------------------------------------------------- */

static void on_timer(uv_timer_t *timer);

/* Soon, but not too often. */
static void plan(struct udp_keep *k)
{
	uint64_t now_ms = clock_mono_ms();

	uv_update_time(k->timer.loop);
	uv_timer_start(&k->timer, on_timer, MAX(now_ms + KEEP_SOON_MS, k->next_ms) - now_ms, 0);
}

void udp_keep_load(struct udp_keep *k, bool by_inode)
{
	scoped_free struct udp_known *items = xcalloc(KEEP_SOCKETS_MAX, sizeof(*items));
	scoped_buf struct buf text = { 0 };
	struct error err = ERROR_NONE;
	size_t len = 0;

	k->by_inode = by_inode;
	if (path_read_file(path_of(k), FILE_MAX, &text, &err) < 0 ||
	    parse(k, (char *)text.data, items, &len, &err) < 0) {
		log_debug("ports: %s, judging UDP sockets anew", err.msg);
		k->found |= path_exists(k->paths[!by_inode]);
		plan(k);
		return;
	}
	k->found = true;
	log_debug("ports: %zu UDP sockets are known from the agent before", len);
	udp_servers_restore(k->servers, steal_ptr(&items), len);
}

static int write_file(struct udp_keep *k, struct error *err)
{
	scoped_buf struct buf text = { 0 };
	size_t n = 0;

	if (write_head(k, &text, err) < 0)
		return err->code;
	for (int servers = 1; servers >= 0; servers--) {
		for (size_t i = 0; i < k->servers->len; i++) {
			const struct udp_known *s = &k->servers->items[i];

			if (s->lasting && s->server == servers && n++ < KEEP_SOCKETS_MAX)
				write_socket(s, &text);
		}
	}
	return path_write_file(path_of(k), text.data, text.len, 0600, err);
}

static void keep(struct udp_keep *k)
{
	struct error err = ERROR_NONE;

	if (write_file(k, &err) < 0) {
		log_warn_limited("ports: %s, the next agent will judge UDP sockets anew", err.msg);
		k->next_ms = clock_mono_ms() + KEEP_RETRY_MS;
		return;
	}
	k->next_ms = clock_mono_ms() + KEEP_EVERY_MS;
	for (size_t i = 0; i < k->servers->len; i++)	/* those without room, too */
		k->servers->items[i].kept |= k->servers->items[i].lasting;
}

static void on_timer(uv_timer_t *timer)
{
	keep(timer->data);
}

bool udp_keep_found(const struct udp_keep *k)
{
	return k->found;
}

void udp_keep_note(struct udp_keep *k)
{
	size_t i = 0;

	if (uv_is_active((uv_handle_t *)&k->timer))
		return;
	while (i < k->servers->len && k->servers->items[i].lasting == k->servers->items[i].kept)
		i++;
	if (i < k->servers->len)
		plan(k);
}

/* --- life -------------------------------------------------------------------- */

struct udp_keep *udp_keep_new(struct loop *loop, const char *path, struct udp_servers *servers)
{
	struct udp_keep *k = xnew(struct udp_keep);

	k->paths[false] = xstrdup(path);
	k->paths[true] = xasprintf("%s.inode", path);
	k->servers = servers;
	uv_timer_init(&loop->uv, &k->timer);
	k->timer.data = k;
	return k;
}

static void on_closed(uv_handle_t *h)
{
	scoped_free struct udp_keep *k = h->data;

	free(k->paths[false]);
	free(k->paths[true]);
	if (k->closed)
		k->closed(k->closed_arg);
}

void udp_keep_close(struct udp_keep *k, void (*closed)(void *arg), void *arg)
{
	if (uv_is_active((uv_handle_t *)&k->timer))
		keep(k);
	k->closed = closed;
	k->closed_arg = arg;
	uv_close((uv_handle_t *)&k->timer, on_closed);
}
