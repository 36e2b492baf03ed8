/* forward_lane - what forwarding costs on the host, without a guest
 *
 * Clients over loopback, a native lane in the same loop (test/mock/lane.h) that
 * takes or makes bytes at memory speed: what remains is the host agent's side,
 * the upper bound for any lane. CPU is the loop thread's alone.
 */
#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

static const uint64_t BULK = 4ull << 30;

struct job {
	struct fx fx;
	uint16_t port;
	uint64_t n;
	bool ok;
};

static double cpu_s(void)
{
	struct rusage ru;

	getrusage(RUSAGE_THREAD, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
	       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static void start(struct job *j, enum mock_mode mode)
{
	fx_start(&j->fx, NULL, 0, NULL);
	j->port = fx_free_port();
	j->fx.lane.mode = mode;
	fx_add(&j->fx, IPPROTO_TCP, "127.0.0.1", j->port);
}

static void run(struct job *j, const char *name, void (*fn)(void *arg), double per_unit,
		const char *unit)
{
	uint64_t t0 = clock_mono_ns();
	double c0 = cpu_s(), s, c;
	bool ok = fx_client(&j->fx, fn, j) && j->ok;

	s = (double)(clock_mono_ns() - t0) / 1e9;
	c = cpu_s() - c0;
	printf("%-28s %10.2f %s  loop CPU %5.1f%%%s\n", name, (double)j->n / per_unit / s, unit,
	       100 * c / s, ok ? "" : "  FAILED");
	if (per_unit > 1e6)
		printf("%-28s %10.3f CPU s/GB\n", "", c / ((double)j->n / 1e9));
	fx_stop(&j->fx);
}

static void download(void *arg)
{
	struct job *j = arg;
	scoped_free char *block = xmalloc(1 << 20);
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", j->port);
	uint64_t got = 0;
	ssize_t n;

	while ((n = recv(fd, block, 1 << 20, 0)) > 0)
		got += (uint64_t)n;
	j->ok = got == j->n;
	close(fd);
}

static void upload(void *arg)
{
	struct job *j = arg;
	scoped_free char *block = xcalloc(1, 1 << 20);
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", j->port);
	uint64_t sent = 0;
	ssize_t n;

	while (sent < j->n && (n = send(fd, block, MIN(1ul << 20, j->n - sent), 0)) > 0)
		sent += (uint64_t)n;
	shutdown(fd, SHUT_WR);
	j->ok = sent == j->n && recv(fd, block, 1, 0) == 0; /* the sink's FIN: all was taken */
	close(fd);
}

static void round_trips(void *arg)
{
	struct job *j = arg;
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", j->port);
	char b = 0;

	j->ok = true;
	for (uint64_t i = 0; i < j->n && j->ok; i++)
		j->ok = send(fd, &b, 1, 0) == 1 && recv(fd, &b, 1, 0) == 1;
	close(fd);
}

static void serial_connections(void *arg)
{
	struct job *j = arg;
	char b = 0;

	j->ok = true;
	for (uint64_t i = 0; i < j->n && j->ok; i++) {
		int fd = fx_connect(SOCK_STREAM, "127.0.0.1", j->port);

		j->ok = fd >= 0 && send(fd, &b, 1, 0) == 1 && recv(fd, &b, 1, 0) == 1;
		close(fd);
	}
}

static void datagram_trips(void *arg)
{
	struct job *j = arg;
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", j->port);
	char b[64] = { 0 };

	j->ok = true;
	for (uint64_t i = 0; i < j->n && j->ok; i++)
		j->ok = send(fd, b, sizeof(b), 0) == sizeof(b) && recv(fd, b, sizeof(b), 0) > 0;
	close(fd);
}

static long rss_kib(void)
{
	long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (!f || fscanf(f, "%*d %ld", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static bool all_open(void *arg)
{
	struct job *j = arg;

	return j->fx.lane.bytes_in == j->n;
}

/* Connections that have moved a byte each and now do nothing. */
static void idle_memory(uint64_t n)
{
	struct job j;
	int *fds = xcalloc(n, sizeof(*fds));
	long before;

	start(&j, MOCK_ECHO);
	j.n = n;
	memset(fds, 0xff, n * sizeof(*fds));
	before = rss_kib();
	for (uint64_t i = 0; i < n; i++) {
		fds[i] = fx_connect(SOCK_STREAM, "127.0.0.1", j.port);
		if (fds[i] < 0 || send(fds[i], "x", 1, 0) != 1) {
			printf("idle connections: %s at %llu\n", strerror(-fds[i]),
			       (unsigned long long)i);
			break;
		}
		uv_run(&j.fx.loop.uv, UV_RUN_NOWAIT);
	}
	if (fx_until(&j.fx, all_open, &j)) {
		fx_turn(&j.fx, 100);
		printf("%-28s %10llu open, %ld bytes each (mock lane included)\n",
		       "idle connections", (unsigned long long)n,
		       (rss_kib() - before) * 1024 / (long)n);
	}
	for (uint64_t i = 0; i < n && fds[i] >= 0; i++)
		close(fds[i]);
	fx_stop(&j.fx);
	free(fds);
}

int main(void)
{
	struct rlimit files;
	struct job j;

	log_setup(LOG_ERROR, LOG_FORMAT_AUTO);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	start(&j, MOCK_SOURCE);
	j.fx.lane.source_bytes = j.n = BULK;
	run(&j, "guest to host, 1 stream", download, 1e9, "GB/s");
	start(&j, MOCK_SINK);
	j.n = BULK;
	run(&j, "host to guest, 1 stream", upload, 1e9, "GB/s");
	start(&j, MOCK_ECHO);
	j.n = 50000;
	run(&j, "1-byte round trips", round_trips, 1, "/s  ");
	start(&j, MOCK_ECHO);
	j.n = 10000;
	run(&j, "serial connections", serial_connections, 1, "/s  ");
	start(&j, MOCK_ECHO);
	fx_add(&j.fx, IPPROTO_UDP, "127.0.0.1", j.port);
	j.n = 50000;
	run(&j, "64-byte datagram trips", datagram_trips, 1, "/s  ");
	idle_memory(MIN((uint64_t)files.rlim_max / 2 - 100, 10000ull));
	return 0;
}
