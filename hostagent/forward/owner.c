#include "hostagent/forward/owner.h"

#include <assert.h>
#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "hostagent/forward/address.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum {
	OWNER_BATCH = 64,	    /* queries answered by one look */
	OWNER_CMDLINE = 128 * 1024, /* of a command line: QEMU's are long */
	OWNER_ARGS = 512,
};

/* --- the look ---------------------------------------------------------------- */

struct owner_query {
	int proto;          /* IPPROTO_TCP, IPPROTO_UDP */
	struct in6_addr ip; /* what we wanted to bind */
	uint16_t port;
	const char *path;   /* NULL, or a listening unix socket's: counts instead */
	char answer[120];
};

struct found {
	unsigned long inode; /* 0: nobody */
	unsigned uid;
};

struct proc_net {
	const char *path;
	int proto;
	unsigned state; /* TCP_LISTEN; 0: any, a connected UDP socket has its port as well */
};

static const struct proc_net files[] = {
	{ "/proc/net/tcp", IPPROTO_TCP, 0x0a },
	{ "/proc/net/tcp6", IPPROTO_TCP, 0x0a },
	{ "/proc/net/udp", IPPROTO_UDP, 0 },
	{ "/proc/net/udp6", IPPROTO_UDP, 0 },
};

/* Hex words as they lie in memory (Linux net/ipv4/tcp_ipv4.c get_tcp4_sock). */
static bool parse_ip(const char *hex, struct in6_addr *ret)
{
	size_t words = strlen(hex) / 8;
	uint32_t w[4];

	if (words != 1 && words != 4)
		return false;
	for (size_t i = 0; i < words; i++)
		if (sscanf(hex + i * 8, "%8" SCNx32, &w[i]) != 1)
			return false;
	if (words == 4) {
		memcpy(ret, w, sizeof(*ret));
	} else {
		*ret = address_v4(0, 0, 0, 0);
		memcpy(ret->s6_addr + 12, w, sizeof(w[0]));
	}
	return true;
}

/* Would a socket bound to @theirs be in the way of one for @ours? */
static bool collides(const struct in6_addr *ours, const struct in6_addr *theirs)
{
	return address_equal(ours, theirs) || address_is_wildcard(ours) ||
	       IN6_IS_ADDR_UNSPECIFIED(theirs) ||
	       (address_is_wildcard(theirs) && address_is_v4(ours));
}

static void look_at_line(const struct proc_net *file, const char *line,
			 struct owner_query *const *queries, struct found *found, size_t n)
{
	char ip_hex[33];
	unsigned port, state, uid;
	unsigned long inode;
	struct in6_addr ip;

	if (sscanf(line, " %*u: %32[0-9A-Fa-f]:%x %*s %x %*s %*s %*s %u %*u %lu", ip_hex, &port,
		   &state, &uid, &inode) != 5 ||
	    (file->state && state != file->state) || !parse_ip(ip_hex, &ip))
		return;
	for (size_t i = 0; i < n; i++) {
		const struct owner_query *q = queries[i];

		if (found[i].inode == 0 && !q->path && q->proto == file->proto && q->port == port &&
		    collides(&q->ip, &ip))
			found[i] = (struct found){ inode, uid };
	}
}

/* Flags (hex), inode and path (Linux net/unix/af_unix.c unix_seq_show); connections
 * show their listener's path, but not its flag. */
static void look_at_unix_line(char *line, struct owner_query *const *queries, struct found *found,
			      size_t n)
{
	const unsigned accepts = 0x10000; /* __SO_ACCEPTCON, linux/net.h */
	unsigned long inode;
	unsigned flags;
	struct stat st;
	int at = 0;

	if (sscanf(line, "%*x: %*x %*x %x %*x %*x %lu %n", &flags, &inode, &at) != 2 || !at ||
	    !(flags & accepts))
		return;
	line[strcspn(line, "\n")] = 0;
	for (size_t i = 0; i < n; i++)
		if (found[i].inode == 0 && queries[i]->path && streq(queries[i]->path, line + at))
			found[i] = (struct found){ inode, lstat(line + at, &st) ? 0 : st.st_uid };
}

static void find_unix_inodes(struct owner_query *const *queries, struct found *found, size_t n)
{
	scoped_file FILE *f = fopen("/proc/net/unix", "re");
	scoped_free char *line = NULL;
	size_t cap = 0;

	while (f && getline(&line, &cap, f) > 0)
		look_at_unix_line(line, queries, found, n);
}

static void find_inodes(struct owner_query *const *queries, struct found *found, size_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		scoped_file FILE *f = fopen(files[i].path, "re");
		scoped_free char *line = NULL;
		size_t cap = 0;

		while (f && getline(&line, &cap, f) > 0)
			look_at_line(&files[i], line, queries, found, n);
	}
}

/* --- whose process ----------------------------------------------------------- */

/* The programs that hold ports for an instance of ours, known by what is on their
 * command line (drivers/qemu/args.c, hostagent/ssh.c, cmd/limactl/launch.c). */
static char *instance_of_host_agent(char *const *argv, size_t n)
{
	return n > 2 && streq(argv[1], "hostagent") ? xstrdup(argv[n - 1]) : NULL;
}

static char *instance_of_qemu(char *const *argv, size_t n)
{
	for (size_t i = 1; i + 1 < n; i++)
		if (streq(argv[i], "-name") && strncmp(argv[i + 1], "lima-", 5) == 0)
			return xasprintf("%.*s", (int)strcspn(argv[i + 1] + 5, ","), argv[i + 1] + 5);
	return NULL;
}

/* …/NAME/ssh.sock */
static char *instance_of_ssh(char *const *argv, size_t n)
{
	static const char key[] = "ControlPath=", end[] = "/ssh.sock";

	for (size_t i = 1; i < n; i++) {
		char *path = argv[i] + strlen(key), *last, *name;

		if (strncmp(argv[i], key, strlen(key)) != 0 || !(last = strstr(path, end)))
			continue;
		*last = 0;
		name = strrchr(path, '/');
		return name && name[1] ? xstrdup(name + 1) : NULL;
	}
	return NULL;
}

/* NULL: not one of ours, or not to be seen. */
static char *instance_of(const char *pid)
{
	static char *(*const ask[])(char *const *argv, size_t n) = {
		instance_of_host_agent, instance_of_qemu, instance_of_ssh,
	};
	scoped_free char *path = xasprintf("/proc/%s/cmdline", pid);
	scoped_buf struct buf text = { 0 };
	struct error err = { 0 };
	char *argv[OWNER_ARGS], *name = NULL;
	size_t n = 0;

	if (path_read_file(path, OWNER_CMDLINE, &text, &err) < 0)
		return NULL;
	for (size_t at = 0; at < text.len && n < OWNER_ARGS; at += strlen(argv[n++]) + 1)
		argv[n] = (char *)text.data + at;
	for (size_t i = 0; n && !name && i < ARRAY_SIZE(ask); i++)
		name = ask[i](argv, n);
	return name;
}

static void name_process(const char *pid, char *out, size_t size)
{
	scoped_free char *path = xasprintf("/proc/%s/comm", pid);
	scoped_free char *instance = instance_of(pid);
	scoped_buf struct buf comm = { 0 };
	struct error err = { 0 };

	if (instance) {
		scoped_free char *name = log_escape(instance, 76); /* reference/cli.md §1 */

		snprintf(out, size, "instance `%s`, pid %s", name, pid);
		return;
	}
	if (path_read_file(path, 4096, &comm, &err) < 0)
		return;
	scoped_free char *raw = xstrdup(buf_str(&comm));

	raw[strcspn(raw, "\n")] = 0;
	scoped_free char *name = log_escape(raw, 32);

	snprintf(out, size, "%s, pid %s", name, pid);
}

/* Does one of the process's descriptors hold a socket that was found? */
static void look_at_process(const char *pid, struct owner_query *const *queries,
			    const struct found *found, size_t n)
{
	scoped_free char *dir_path = xasprintf("/proc/%s/fd", pid);
	scoped_dir DIR *dir = opendir(dir_path);
	struct dirent *e;
	unsigned long inode;
	char link[64];

	while (dir && (e = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);

		if (len <= 0)
			continue;
		link[len] = 0;
		if (sscanf(link, "socket:[%lu]", &inode) != 1)
			continue;
		for (size_t i = 0; i < n; i++)
			if (found[i].inode == inode && !*queries[i]->answer)
				name_process(pid, queries[i]->answer, sizeof(queries[i]->answer));
	}
}

/* Blocks. */
static void scan(struct owner_query *const *queries, size_t n)
{
	scoped_free struct found *found = xcalloc(n, sizeof(*found));
	scoped_dir DIR *proc = opendir("/proc");
	struct dirent *e;

	find_inodes(queries, found, n);
	find_unix_inodes(queries, found, n);
	while (proc && (e = readdir(proc)))
		if (isdigit((unsigned char)*e->d_name))
			look_at_process(e->d_name, queries, found, n);
	for (size_t i = 0; i < n; i++)
		if (found[i].inode && !*queries[i]->answer)
			snprintf(queries[i]->answer, sizeof(queries[i]->answer),
				 "a process of user %u", found[i].uid);
}

/* --- asking ------------------------------------------------------------------ */

struct owner_request { /* owner: the finder, until answered */
	struct owner_query query;
	char *path; /* the query's */
	void (*done)(void *arg, const char *answer); /* NULL: cancelled */
	void *arg;
	STAILQ_ENTRY(owner_request) next;
};

STAILQ_HEAD(owner_list, owner_request);

static void request_free(struct owner_request *r)
{
	free(r->path);
	free(r);
}

struct owner_finder {
	struct hub *hub;
	uv_work_t work;
	struct owner_list asked, looking; /* looking: the pool thread's while running */
	bool running;
};

static void look(uv_work_t *work)
{
	struct owner_finder *f = work->data;
	struct owner_query *queries[OWNER_BATCH];
	struct owner_request *r;
	size_t n = 0;

	STAILQ_FOREACH(r, &f->looking, next)
		queries[n++] = &r->query;
	scan(queries, n);
}

static void start(struct owner_finder *f);

static void on_looked(uv_work_t *work, int status)
{
	struct owner_finder *f = work->data;
	struct owner_request *r;

	/* still `running`: who asks in done() is not to join those who are answered */
	while ((r = STAILQ_FIRST(&f->looking))) {
		STAILQ_REMOVE_HEAD(&f->looking, next);
		if (r->done)
			r->done(r->arg, r->query.answer);
		request_free(r);
	}
	f->running = false;
	start(f);
	hub_unref(f->hub);
}

static void start(struct owner_finder *f)
{
	struct owner_request *r;

	for (int i = 0; !f->running && i < OWNER_BATCH && (r = STAILQ_FIRST(&f->asked));) {
		STAILQ_REMOVE_HEAD(&f->asked, next);
		if (!r->done) {
			request_free(r);
			continue;
		}
		STAILQ_INSERT_TAIL(&f->looking, r, next);
		i++;
	}
	if (f->running || STAILQ_EMPTY(&f->looking))
		return;
	f->running = true;
	f->work.data = f;
	hub_ref(f->hub);
	uv_queue_work(&f->hub->loop->uv, &f->work, look, on_looked);
}

struct owner_finder *owner_finder_new(struct hub *hub)
{
	struct owner_finder *f = xnew(struct owner_finder);

	f->hub = hub;
	STAILQ_INIT(&f->asked);
	STAILQ_INIT(&f->looking);
	return f;
}

void owner_finder_free(struct owner_finder *f)
{
	struct owner_request *r;

	assert(!f->running);
	while ((r = STAILQ_FIRST(&f->asked))) {
		STAILQ_REMOVE_HEAD(&f->asked, next);
		request_free(r);
	}
	free(f);
}

static struct owner_request *ask(struct owner_finder *f, const struct owner_query *query,
				 void (*done)(void *arg, const char *answer), void *arg)
{
	struct owner_request *r = xnew(struct owner_request);

	r->query = *query;
	if (query->path)
		r->query.path = r->path = xstrdup(query->path);
	r->done = done;
	r->arg = arg;
	STAILQ_INSERT_TAIL(&f->asked, r, next);
	start(f);
	return r;
}

struct owner_request *owner_ask(struct owner_finder *f, int proto, const struct in6_addr *ip,
				uint16_t port, void (*done)(void *arg, const char *answer),
				void *arg)
{
	struct owner_query query = { .proto = proto, .ip = *ip, .port = port };

	return ask(f, &query, done, arg);
}

struct owner_request *owner_ask_path(struct owner_finder *f, const char *path,
				     void (*done)(void *arg, const char *answer), void *arg)
{
	struct owner_query query = { .path = path };

	return ask(f, &query, done, arg);
}

void owner_cancel(struct owner_request *r)
{
	r->done = NULL;
}
