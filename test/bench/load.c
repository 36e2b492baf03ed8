/* load.c - the benchmarks' client on the host: talks to peer.c through a forward
 *
 *	load up|down HOST PORT BYTES STREAMS	bytes over that many connections at once
 *	load rtt HOST PORT COUNT		1-byte round trips on one connection
 *	load rtt-under-bulk HOST PORT COUNT	… while another one uploads all it can
 *	load crr HOST PORT COUNT PARALLEL	connect, ask for 1 KiB, read to the end
 *	load hold HOST PORT COUNT		opens COUNT at once, an echo on each; says so,
 *						and holds them until its stdin ends
 *	load appear HOST PORT PORT2 COUNT	the peer opens and closes PORT2, over and over
 *
 * One epoll loop, one thread; prints one JSON object. Every connection has a
 * deadline: what hangs is counted as failed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 * 1024, DEADLINE_MS = 60 * 1000, REPLY = 1024 };

static struct sockaddr_in to;
static char chunk[CHUNK];

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t now_us(void)
{
	return now_ns(CLOCK_MONOTONIC) / 1000;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int dial(uint16_t port, bool blocking)
{
	struct sockaddr_in sa = to;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK), 0);
	int one = 1;

	if (fd < 0)
		die("socket");
	if (port)
		sa.sin_port = htons(port);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

static int ask(const char *command)	/* blocking */
{
	int fd = dial(0, true);
	struct timeval tv = { .tv_sec = DEADLINE_MS / 1000 };

	if (fd < 0)
		die("connect");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (write(fd, command, strlen(command)) < 0)
		die("write");
	return fd;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double quantile(double *sorted, size_t n, double q)
{
	size_t i = (size_t)(q * (double)n);

	return n ? sorted[i < n ? i : n - 1] : 0;
}

static void print_times(const char *name, double *v, size_t n)
{
	qsort(v, n, sizeof(*v), by_value);
	printf("\"%s_p50\": %.1f, \"%s_p99\": %.1f, \"%s_max\": %.1f", name, quantile(v, n, 0.5),
	       name, quantile(v, n, 0.99), name, n ? v[n - 1] : 0);
}

/* --- bulk ---------------------------------------------------------------- */

struct stream {
	int fd;
	uint64_t left;
	bool done;
};

/* True when it ended as it should. */
static bool stream_step(struct stream *s, bool up)
{
	ssize_t n;

	for (int turns = 0; turns < 4; turns++) {
		if (up && s->left)
			n = write(s->fd, chunk, s->left < CHUNK ? s->left : CHUNK);
		else
			n = read(s->fd, chunk, CHUNK);
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n < 0)
			return false;
		if (n == 0 || (up && !s->left)) {	/* the end, or the peer's count */
			s->done = true;
			return s->left == 0;
		}
		s->left -= (uint64_t)n;
		if (up && !s->left)
			shutdown(s->fd, SHUT_WR);
	}
	return true;
}

static void bulk(bool up, uint64_t bytes, unsigned n)
{
	struct stream *streams = calloc(n, sizeof(*streams));
	int ep = epoll_create1(EPOLL_CLOEXEC);
	unsigned done = 0, failed = 0;
	uint64_t began;
	char line[64];

	snprintf(line, sizeof(line), up ? "sink\n" : "source %" PRIu64 "\n", bytes / n);
	for (unsigned i = 0; i < n; i++) {
		struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.ptr = &streams[i] };

		streams[i] = (struct stream){ .fd = ask(line), .left = bytes / n };
		fcntl(streams[i].fd, F_SETFL, O_NONBLOCK);
		if (!up)
			ev.events = EPOLLIN;
		epoll_ctl(ep, EPOLL_CTL_ADD, streams[i].fd, &ev);
	}
	began = now_us();
	while (done + failed < n) {
		struct epoll_event evs[64];
		int got = epoll_wait(ep, evs, 64, DEADLINE_MS);

		if (got <= 0) {
			failed = n - done;
			break;
		}
		for (int i = 0; i < got; i++) {
			struct stream *s = evs[i].data.ptr;
			struct epoll_event in = { .events = EPOLLIN, .data.ptr = s };
			bool ok = stream_step(s, up);

			if (ok && up && !s->left)
				epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &in);
			if (ok && !s->done)
				continue;
			done += ok;
			failed += !ok;
			close(s->fd);
		}
	}
	printf("{\"mb_per_s\": %.1f, \"failed\": %u}\n",
	       (double)bytes / (double)(now_us() - began), failed);
}

/* --- round trips ----------------------------------------------------------- */

static void round_trips(unsigned n, pid_t bulk_pid)
{
	double *us = calloc(n, sizeof(*us));
	int fd = ask("echo\n");
	struct timespec warm_up = { .tv_sec = 1 };
	char c = 'x';

	if (bulk_pid)
		nanosleep(&warm_up, NULL);	/* its windows are open by then */
	for (unsigned i = 0; i < n; i++) {
		uint64_t began = now_us();

		if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1)
			die("echo");
		us[i] = (double)(now_us() - began);
	}
	if (bulk_pid) {
		kill(bulk_pid, SIGKILL);
		waitpid(bulk_pid, NULL, 0);
	}
	printf("{");
	print_times("us", us, n);
	printf("}\n");
}

static pid_t start_bulk(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		int fd = ask("sink\n");

		while (write(fd, chunk, CHUNK) > 0)
			;
		_exit(0);
	}
	return pid;
}

/* --- connect, request, close ----------------------------------------------- */

struct call {
	int fd;
	uint64_t began;
	size_t got;
	bool asked;
};

static void call_start(int ep, struct call *c)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c };

	*c = (struct call){ .fd = dial(0, false), .began = now_us() };
	if (c->fd >= 0)
		epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
}

/* 0: goes on, 1: done, -1: failed. */
static int call_step(struct call *c)
{
	static const char request[] = "source 1024\n";
	ssize_t n;

	if (!c->asked) {
		n = write(c->fd, request, sizeof(request) - 1);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		c->asked = true;
	}
	while ((n = read(c->fd, chunk, CHUNK)) > 0)
		c->got += (size_t)n;
	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	return c->got == REPLY ? 1 : -1;
}

static void calls(unsigned n, unsigned parallel)
{
	struct call *all = calloc(parallel, sizeof(*all));
	double *ms = calloc(n, sizeof(*ms));
	int ep = epoll_create1(EPOLL_CLOEXEC);
	unsigned started = 0, ok = 0, failed = 0;
	uint64_t began = now_us();

	for (; started < parallel && started < n; started++)
		call_start(ep, &all[started]);
	while (ok + failed < n) {
		struct epoll_event evs[64];
		int got = epoll_wait(ep, evs, 64, DEADLINE_MS);

		if (got <= 0) {
			failed = n - ok;
			break;
		}
		for (int i = 0; i < got; i++) {
			struct call *c = evs[i].data.ptr;
			int rc = call_step(c);

			if (rc == 0)
				continue;
			if (rc > 0)
				ms[ok++] = (double)(now_us() - c->began) / 1000;
			failed += rc < 0;
			close(c->fd);
			if (started < n) {
				started++;
				call_start(ep, c);
			}
		}
	}
	printf("{\"per_s\": %.1f, \"failed\": %u, ",
	       (double)ok * 1e6 / (double)(now_us() - began), failed);
	print_times("ms", ms, ok);
	printf("}\n");
}

/* --- many at once ------------------------------------------------------------ */

struct held {
	int fd;
	unsigned have;
	char echo[8 + 1];	/* of its number in eight digits */
};

/* Its echo: 1 right, -1 wrong or none, 0 not all here yet. */
static int hear(struct held *h, unsigned number)
{
	ssize_t len = recv(h->fd, h->echo + h->have, 8 - h->have, MSG_DONTWAIT);
	char want[32];

	if (len <= 0)
		return len < 0 && errno == EAGAIN ? 0 : -1;
	h->have += (unsigned)len;
	if (h->have < 8)
		return 0;
	snprintf(want, sizeof(want), "%08u", number);
	return strcmp(h->echo, want) ? -1 : 1;
}

static void hold(unsigned n)
{
	struct held *all = calloc(n, sizeof(*all));
	int ep = epoll_create1(EPOLL_CLOEXEC);
	uint64_t began = now_us(), end = began + (uint64_t)DEADLINE_MS * 5000;
	unsigned sent = 0, ok = 0, failed = 0;
	struct rlimit r = { .rlim_cur = n + 64, .rlim_max = n + 64 };

	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	while (ok + failed < n && now_us() < end) {
		struct epoll_event evs[256];

		/* a burst a client would really make: 128 unanswered at a time */
		for (; sent < n && sent - ok - failed < 128; sent++) {
			struct epoll_event ev = { .events = EPOLLIN, .data.u32 = sent };
			char line[32];
			int len = snprintf(line, sizeof(line), "%08u", sent);

			all[sent].fd = dial(0, true);
			if (all[sent].fd < 0 || write(all[sent].fd, line, (size_t)len) != len) {
				failed++;
				continue;
			}
			epoll_ctl(ep, EPOLL_CTL_ADD, all[sent].fd, &ev);
		}
		int got = epoll_wait(ep, evs, 256, 1000);

		for (int i = 0; i < got; i++) {
			unsigned who = evs[i].data.u32;
			int rc = hear(&all[who], who);

			if (rc == 0)
				continue;
			ok += rc > 0;
			failed += rc < 0;
			epoll_ctl(ep, EPOLL_CTL_DEL, all[who].fd, NULL);
		}
	}
	printf("{\"ok\": %u, \"failed\": %u, \"seconds\": %.2f}\n", ok, n - ok,
	       (double)(now_us() - began) / 1e6);
	fflush(stdout);
	while (read(STDIN_FILENO, chunk, CHUNK) > 0)
		;
}

/* --- ports that come and go ---------------------------------------------------- */

static uint64_t command(int fd, const char *line)	/* answered by the guest's clock */
{
	char text[64] = "";

	if (line && write(fd, line, strlen(line)) < 0)
		die("write");
	for (size_t i = 0; i + 1 < sizeof(text) && read(fd, text + i, 1) == 1; i++)
		if (text[i] == '\n')
			return strtoull(text, NULL, 10);
	die("no answer from the peer");
	return 0;
}

/* The guest's clock minus ours, from the fastest of many round trips. */
static int64_t clock_offset(uint64_t *ret_rtt)
{
	int fd = ask("time\n");
	int64_t offset = 0;

	*ret_rtt = UINT64_MAX;
	for (int i = 0; i < 200; i++) {
		uint64_t before = now_ns(CLOCK_REALTIME), guest = command(fd, "?");
		uint64_t after = now_ns(CLOCK_REALTIME);

		if (after - before < *ret_rtt) {
			*ret_rtt = after - before;
			offset = (int64_t)guest - (int64_t)(before + (after - before) / 2);
		}
	}
	close(fd);
	return offset;
}

/* Both say when in @at: of the connect() that was answered, and what comes after it
 * is the server's greeting; of the refusal. */
static bool greets(uint16_t port, uint64_t *at)
{
	int fd = dial(port, true);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char c = 0;
	bool ok;

	if (fd < 0)
		return false;
	*at = now_ns(CLOCK_REALTIME);
	ok = poll(&p, 1, 5000) == 1 && read(fd, &c, 1) == 1 && c == '!';
	close(fd);
	return ok;
}

static bool refuses(uint16_t port, uint64_t *at)
{
	int fd = dial(port, true);

	*at = now_ns(CLOCK_REALTIME);
	if (fd >= 0)
		close(fd);
	return fd < 0 && errno == ECONNREFUSED;
}

/* Milliseconds of the guest's clock from @at until @test is true; false: not in 10 s. */
static bool until(bool (*test)(uint16_t port, uint64_t *at), uint16_t port, uint64_t at,
		  int64_t offset, double *ret)
{
	uint64_t end = now_us() + 10 * 1000000, seen;
	struct timespec pause = { .tv_nsec = 200 * 1000 };

	while (!test(port, &seen)) {
		if (now_us() > end)
			return false;
		nanosleep(&pause, NULL);
	}
	*ret = (double)((int64_t)seen + offset - (int64_t)at) / 1e6;
	/* the clocks are compared to half a round trip */
	*ret = *ret < 0 ? 0 : *ret;
	return true;
}

static void appear(uint16_t port, unsigned n)
{
	double *ms[2] = { calloc(n, sizeof(double)), calloc(n, sizeof(double)) };
	unsigned ok[2] = { 0 }, failed = 0;
	enum { CLOCK_EVERY = 20 };	/* cycles: the guest's clock drifts, and is set */
	uint64_t rtt = 0, worst = 0;
	int64_t offset = 0;
	char line[32];

	for (unsigned i = 0; i < n; i++) {
		if (i % CLOCK_EVERY == 0)
			offset = clock_offset(&rtt);
		worst = rtt > worst ? rtt : worst;
		for (int close_it = 0; close_it < 2; close_it++) {
			snprintf(line, sizeof(line), "%s %u\n", close_it ? "close" : "listen", port);
			int fd = ask(line);
			uint64_t at = command(fd, NULL);
			bool (*test)(uint16_t port, uint64_t *at) = close_it ? refuses : greets;

			close(fd);
			if (until(test, port, at, offset, &ms[close_it][ok[close_it]]))
				ok[close_it]++;
			else
				failed++;
		}
	}
	printf("{\"failed\": %u, \"clock_error_ms\": %.3f, ", failed, (double)worst / 2e6);
	print_times("open_ms", ms[0], ok[0]);
	printf(", ");
	print_times("close_ms", ms[1], ok[1]);
	printf("}\n");
}

int main(int argc, char **argv)
{
	const char *what = argc > 4 ? argv[1] : "";
	unsigned long long a = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
	unsigned b = argc > 5 ? (unsigned)atoi(argv[5]) : 1;

	if (argc < 5) {
		fprintf(stderr, "load WHAT HOST PORT COUNT [N]: see load.c\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	to = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3])) };
	inet_pton(AF_INET, argv[2], &to.sin_addr);
	if (!strcmp(what, "up") || !strcmp(what, "down"))
		bulk(*what == 'u', a, b);
	else if (!strcmp(what, "rtt"))
		round_trips((unsigned)a, 0);
	else if (!strcmp(what, "rtt-under-bulk"))
		round_trips((unsigned)a, start_bulk());
	else if (!strcmp(what, "crr"))
		calls((unsigned)a, b);
	else if (!strcmp(what, "hold"))
		hold((unsigned)a);
	else if (!strcmp(what, "appear"))
		appear((uint16_t)a, b);
	return 0;
}
