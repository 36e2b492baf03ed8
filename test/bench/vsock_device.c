/* vsock_device - the vsock device alone, against a native-speed guest
 *
 *	vsock-device-bench [--seconds N] [--json FILE]
 *
 * The guest (test/mock/vsock_guest.h) plays Linux's driver in a second thread,
 * the client is a socket pair's far end in a third; the device has the loop. CPU
 * is the loop thread's alone. Round trips are of one byte, once alone and once
 * beside a transfer to the guest that never ends.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/virtio/vsock.h"
#include "test/mock/vsock_guest.h"

enum { BLOCK = 1 << 20, TRIPS_MAX = 200000 };

struct end {			/* one connection and what happens at its client's end */
	struct vsock_conn *conn;
	int fd, far;
	bool ended;
};

static struct loop loop;
static struct vsock *device;
static struct vsock_guest guest;
static unsigned seconds = 3;
static atomic_bool over;
static FILE *json;
static const char *comma = "";

static enum guest_service by_port(uint32_t port)
{
	return (enum guest_service)(port - 1000);
}

static void on_up(void *arg)
{
}

static void on_down(void *arg, const struct error *why)
{
}

static void on_opened(void *arg)
{
	struct end *e = arg;
	struct vsock_relay relay = { .fd = e->fd };

	vsock_conn_relay(e->conn, &relay);
}

static void on_ended(void *arg, const struct error *why)
{
	struct end *e = arg;

	close(e->fd);
	e->ended = true;
}

static void dial(struct end *e, enum guest_service service)
{
	struct vsock_conn_callbacks cb = { .opened = on_opened, .ended = on_ended, .arg = e };
	struct error err = ERROR_NONE;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		exit(1);
	e->fd = pair[0];
	e->far = pair[1];
	e->ended = false;
	if (vsock_connect(device, 1000 + service, &cb, &e->conn, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		exit(1);
	}
}

static void hang_up(struct end *e)
{
	shutdown(e->far, SHUT_RDWR);
	close(e->far);
	while (!e->ended)
		uv_run(&loop.uv, UV_RUN_ONCE);
}

/* --- client threads ------------------------------------------------------- */

static void *upload(void *arg)
{
	scoped_free char *block = xcalloc(1, BLOCK);

	while (!over && send(((struct end *)arg)->far, block, BLOCK, MSG_NOSIGNAL) > 0)
		;
	return NULL;
}

static void *download(void *arg)
{
	scoped_free char *block = xmalloc(BLOCK);
	uint64_t n = UINT64_MAX / 2;
	int fd = ((struct end *)arg)->far;

	if (send(fd, &n, sizeof(n), 0) != sizeof(n))
		return NULL;
	while (!over && recv(fd, block, BLOCK, 0) > 0)
		;
	return NULL;
}

static uint32_t trips_ns[TRIPS_MAX];
static unsigned n_trips;

static void *round_trips(void *arg)
{
	int fd = ((struct end *)arg)->far;
	char b = 0;

	for (n_trips = 0; !over && n_trips < TRIPS_MAX; n_trips++) {
		uint64_t t = clock_mono_ns();

		if (send(fd, &b, 1, 0) != 1 || recv(fd, &b, 1, 0) != 1)
			break;
		trips_ns[n_trips] = (uint32_t)(clock_mono_ns() - t);
	}
	return NULL;
}

/* --- measuring ------------------------------------------------------------ */

static double cpu_s(void)
{
	struct rusage ru;

	getrusage(RUSAGE_THREAD, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
	       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static void on_end(uv_timer_t *t)
{
	over = true;
	uv_stop(&loop.uv);
}

static void turn_for(double *ret_s, double *ret_cpu)
{
	uint64_t t = clock_mono_ns();
	double cpu = cpu_s();
	uv_timer_t end;

	over = false;
	uv_timer_init(&loop.uv, &end);
	uv_timer_start(&end, on_end, seconds * 1000, 0);
	uv_run(&loop.uv, UV_RUN_DEFAULT);
	*ret_s = (double)(clock_mono_ns() - t) / 1e9;
	*ret_cpu = cpu_s() - cpu;
	uv_close((uv_handle_t *)&end, NULL);
	uv_run(&loop.uv, UV_RUN_NOWAIT);
}

static void report(const char *name, const char *unit, double value)
{
	printf("%-36s %10.2f %s\n", name, value, unit);
	if (json)
		fprintf(json, "%s\n  { \"case\": \"%s\", \"unit\": \"%s\", \"value\": %.3f }", comma, name,
			unit, value);
	comma = ",";
}

static void bulk(const char *name, enum guest_service service, void *(*client)(void *arg))
{
	struct vsock_stats a, b;
	struct end e;
	pthread_t thread;
	double s, cpu, bytes;
	char line[64];

	dial(&e, service);
	pthread_create(&thread, NULL, client, &e);
	vsock_get_stats(device, &a);
	turn_for(&s, &cpu);
	vsock_get_stats(device, &b);
	bytes = (double)(b.to_guest - a.to_guest + b.from_guest - a.from_guest);
	hang_up(&e);
	pthread_join(thread, NULL);
	report(name, "Gbit/s", bytes * 8 / 1e9 / s);
	snprintf(line, sizeof(line), "%s, loop CPU", name);
	report(line, "s/GB", cpu / (bytes / 1e9));
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void latency(const char *name, bool beside_bulk)
{
	struct end e, other;
	pthread_t thread, bulk_thread;
	double s, cpu;
	char line[64];

	dial(&e, GUEST_ECHO);
	if (beside_bulk) {
		dial(&other, GUEST_SINK);
		pthread_create(&bulk_thread, NULL, upload, &other);
	}
	pthread_create(&thread, NULL, round_trips, &e);
	turn_for(&s, &cpu);
	if (beside_bulk) {
		hang_up(&other);
		pthread_join(bulk_thread, NULL);
	}
	hang_up(&e);
	pthread_join(thread, NULL);
	qsort(trips_ns, n_trips, sizeof(*trips_ns), by_size);
	snprintf(line, sizeof(line), "%s, p50", name);
	report(line, "us", n_trips ? trips_ns[n_trips / 2] / 1e3 : 0);
	snprintf(line, sizeof(line), "%s, p99", name);
	report(line, "us", n_trips ? trips_ns[n_trips * 99ul / 100] / 1e3 : 0);
}

static void connections(void)
{
	uint64_t t = clock_mono_ns(), n = 0;
	struct end e;

	while (clock_mono_ns() - t < seconds * 1000000000ull) {
		dial(&e, GUEST_ECHO);
		hang_up(&e);
		n++;
	}
	report("connect and close, one by one", "1/s", (double)n / ((double)(clock_mono_ns() - t) / 1e9));
}

/* --- set-up --------------------------------------------------------------- */

static void start(uint32_t window)
{
	struct vsock_options opts = { .loop = &loop, .guest_cid = VSOCK_GUEST_CID, .up = on_up,
				      .down = on_down, .limits.buffer_bytes = window };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	static char path[sizeof(sa.sun_path)];
	struct error err = ERROR_NONE;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(path, sizeof(path), "/tmp/vsock-bench-%d", getpid());
	strcpy(sa.sun_path, path);
	unlink(path);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 1) < 0 ||
	    loop_init(&loop, &err) < 0 || vsock_new(&opts, fd, &device, &err) < 0) {
		fprintf(stderr, "%s %s\n", path, err.msg);
		exit(1);
	}
	vsock_guest_init(&guest, path);
	guest.service = by_port;
	guest.buf_alloc = window;
	vsock_guest_run(&guest, vsock_guest_live, NULL);
	while (!vsock_is_up(device))
		uv_run(&loop.uv, UV_RUN_ONCE);
	unlink(path);
}

static void stop(void)
{
	vsock_guest_stop(&guest);
	while (vsock_is_up(device))
		uv_run(&loop.uv, UV_RUN_ONCE);
	vsock_guest_done(&guest);
	vsock_close(device, NULL, NULL);
	uv_run(&loop.uv, UV_RUN_DEFAULT);
	loop_done(&loop);
}

int main(int argc, char **argv)
{
	static const uint32_t windows[] = { 256 << 10, 1 << 20 };

	signal(SIGPIPE, SIG_IGN);
	log_setup(LOG_WARN, LOG_FORMAT_TEXT);
	for (int i = 1; i + 1 < argc; i += 2) {
		if (streq(argv[i], "--seconds"))
			seconds = (unsigned)atoi(argv[i + 1]);
		else if (streq(argv[i], "--json"))
			json = fopen(argv[i + 1], "w");
	}
	if (json)
		fputc('[', json);
	for (size_t i = 0; i < ARRAY_SIZE(windows); i++) {
		char name[48];

		start(windows[i]);
		snprintf(name, sizeof(name), "host to guest, %u KiB credit", windows[i] >> 10);
		bulk(name, GUEST_SINK, upload);
		snprintf(name, sizeof(name), "guest to host, %u KiB credit", windows[i] >> 10);
		bulk(name, GUEST_SOURCE, download);
		if (i == 0) {
			latency("round trip alone", false);
			latency("round trip beside bulk", true);
			connections();
		}
		stop();
	}
	if (json) {
		fputs("\n]\n", json);
		fclose(json);
	}
	return 0;
}
