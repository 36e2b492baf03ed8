/* ports_latency.c - from listen() and close() to what the guest agent knows
 *
 *	ports-latency [COUNT]
 *
 * The agent's own detection (guestagent/ports.h) against one port that a second
 * thread opens and closes; neither agent nor host take part. Runs natively or,
 * being static, in a guest, as root. What `bench-load appear` measures from
 * outside minus this is the link, the host agent, the connection and the clocks.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "guestagent/ports.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"

enum { PORT = 9199 };

struct bench {
	struct loop loop;
	struct ports *ports;
	int fd;			/* the listener, -1: closed */
	bool wanted;		/* what is waited for: there, or gone */
	uint64_t at_ns;
};

static bool is_there(const struct bench *b)
{
	const struct port_set *now = ports_current(b->ports);

	for (size_t i = 0; i < now->len; i++)
		if (now->items[i].proto == IPPROTO_TCP && now->items[i].port == PORT)
			return true;
	return false;
}

static void on_changed(void *arg, const struct port_set *added, const struct port_set *removed)
{
	struct bench *b = arg;

	if (is_there(b) == b->wanted)
		loop_stop(&b->loop);
}

static void *change(void *arg)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(PORT),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct bench *b = arg;
	int on = 1;

	usleep(5000);	/* the loop sleeps when it happens, as it mostly does */
	if (!b->wanted) {
		b->at_ns = clock_mono_ns();
		close(b->fd);
		return NULL;
	}
	b->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(b->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(b->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		abort();
	b->at_ns = clock_mono_ns();
	if (listen(b->fd, 16) < 0)
		abort();
	return NULL;
}

static double one_ms(struct bench *b, bool open)
{
	pthread_t t;
	uint64_t seen_ns;

	b->wanted = open;
	pthread_create(&t, NULL, change, b);
	loop_run(&b->loop);
	seen_ns = clock_mono_ns();
	pthread_join(t, NULL);
	return (double)(int64_t)(seen_ns - b->at_ns) / 1e6;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print(const char *what, double *ms, size_t n)
{
	qsort(ms, n, sizeof(*ms), compare);
	printf("%s: median %.2f ms, p90 %.2f, p99 %.2f, most %.2f\n", what, ms[n / 2], ms[n * 9 / 10],
	       ms[n * 99 / 100], ms[n - 1]);
}

int main(int argc, char **argv)
{
	size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 200;
	double *up = xcalloc(n + 1, sizeof(*up)), *down = xcalloc(n + 1, sizeof(*down));
	struct bench b = { .fd = -1 };
	struct error err = ERROR_NONE;

	if (loop_init(&b.loop, &err) < 0 ||
	    ports_new(&b.loop, &(struct ports_options){ 0 }, on_changed, &b, &b.ports, &err) < 0) {
		fprintf(stderr, "ports-latency: %s\n", err.msg);
		return 1;
	}
	printf("%s %s\n", ports_mode(b.ports), ports_bpf_problem(b.ports));
	for (size_t i = 0; i < n; i++) {
		up[i] = one_ms(&b, true);
		down[i] = one_ms(&b, false);
	}
	print("listen", up, n);
	print("close", down, n);
	return 0;
}
