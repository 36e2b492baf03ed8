/* proto_bench - bytes through gRPC tunnels, memory to memory
 *
 *	proto_bench native [MiB]	two processes as host and guest agent are,
 *					joined by a socket pair; once plain, once
 *					through the link's pump
 *	proto_bench guest DEVICE	the guest's half, in a VM (test/bench/proto_vm)
 *	proto_bench host SOCKET		the host's half of that
 *	proto_bench ping SOCKET		connects, one round trip, says how long
 *	proto_bench hold SOCKET		connects, transfers for ever both ways
 *	proto_bench watch SOCKET	connects, waits until the link is lost
 *
 * Prints one line per case.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/loop.h"
#include "lib/base/mem.h"
#include "proto/guest_client.h"
#include "proto/guest_server.h"

enum { STREAMS_MAX = 8, CHUNK = 128 << 10, ROUND_TRIPS = 2000 };

static const uint8_t secret[GUEST_LINK_SECRET_SIZE] = "\x9e\x37\x79\xb9\x7f\x4a\x7c\x15"
	"\xf3\x9c\xc0\x60\x5c\xed\xc8\x34";
static struct loop loop;
static struct rpc *rpc;
static uint64_t bytes_per_stream = 512ull << 20;

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "proto_bench: %s: %s\n", what, err ? err->msg : strerror(errno));
	exit(1);
}

/* --- the guest's process: ":1" takes all, ":2" sends, ":3" echoes ------------- */

struct far {
	struct guest_stream *stream;
	int kind;
	uint64_t left;
};

static void far_send(void *arg)
{
	struct far *f = arg;

	while (f->kind == 2 && f->left > 0) {
		uint8_t *chunk = malloc(CHUNK);

		f->left -= CHUNK;
		if (!guest_stream_write(f->stream, chunk, CHUNK))
			break;
	}
	if (f->kind == 2 && f->left == 0)
		guest_stream_eof(f->stream);
}

static void far_data(void *arg, const uint8_t *data, size_t len)
{
	struct far *f = arg;
	uint8_t *copy;

	if (f->kind != 3)
		return;
	copy = xmalloc(len);
	memcpy(copy, data, len);
	guest_stream_write(f->stream, copy, len);
}

static void far_eof(void *arg)
{
	struct far *f = arg;

	if (f->kind != 2)
		guest_stream_eof(f->stream);
}

static void far_closed(void *arg, const struct error *why)
{
	free(arg);
}

static void on_tunnel(void *arg, struct guest_stream *s, int proto, const char *guest_addr)
{
	struct far *f = xnew(struct far);
	const struct guest_stream_callbacks cb = { far_data, far_eof, far_send, far_closed, f };

	f->stream = s;
	f->kind = atoi(strrchr(guest_addr, ':') + 1);
	f->left = bytes_per_stream;
	guest_stream_set_callbacks(s, &cb);
	guest_stream_opened(s);
	far_send(f);
}

static const Info *get_info(void *arg)
{
	static Info info = INFO__INIT;
	static char *features[] = { "snapshot", "tunnel-kinds", "time-rtt" };

	info.n_features = 3;
	info.features = features;
	return &info;
}

static const Event *get_snapshot(void *arg)
{
	static Event event = EVENT__INIT;

	event.snapshot = true;
	return &event;
}

static void sync_time(void *arg, const TimeSyncRequest *req, TimeSyncResponse *res)
{
}

/* @device or, if NULL, @fd. */
static void guest_main(const char *device, int fd, const uint8_t *link_secret)
{
	const struct guest_server_callbacks cb = { get_info, get_snapshot, sync_time, NULL,
						   on_tunnel, NULL };
	struct guest_server *server;
	struct error err = { 0 };

	if (loop_init(&loop, &err) < 0 || rpc_new(&loop, &rpc, &err) < 0 ||
	    guest_server_new(&loop, rpc, &cb, &server, &err) < 0 ||
	    (device ? guest_server_serve_port(server, device, link_secret, &err) :
		      guest_server_serve_fd(server, fd, link_secret, &err)) < 0)
		die("guest", &err);
	loop_run(&loop);
}

/* --- the host's process -------------------------------------------------------- */

static bool ready, quiet_loss;
static uint64_t lost_at_ns;
static unsigned open_tunnels;
static uint64_t received, pieces;

struct near {
	struct guest_tunnel *tunnel;
	int kind;
	uint64_t left;
	unsigned trips;
};

static void near_send(void *arg)
{
	struct near *n = arg;

	while (n->kind == 1 && n->left > 0) {
		n->left -= CHUNK;
		if (!guest_tunnel_write(n->tunnel, malloc(CHUNK), CHUNK))
			break;
	}
	if (n->left == 0 || n->kind == 2)
		guest_tunnel_eof(n->tunnel);
}

static void near_opened(void *arg)
{
	struct near *n = arg;

	if (n->kind == 3)
		guest_tunnel_write(n->tunnel, xcalloc(1, 1), 1);
	else
		near_send(n);
}

static void near_data(void *arg, const uint8_t *data, size_t len)
{
	struct near *n = arg;

	received += len;
	pieces++;
	if (n->kind != 3)
		return;
	if (++n->trips < ROUND_TRIPS)
		guest_tunnel_write(n->tunnel, xcalloc(1, 1), 1);
	else
		guest_tunnel_eof(n->tunnel);
}

static void near_eof(void *arg)
{
}

static void near_closed(void *arg, const struct error *why)
{
	if (why->code && !quiet_loss)
		die("tunnel", why);
	open_tunnels--;
}

static void on_ready(void *arg, const Info *info)
{
	ready = true;
}

static void on_event(void *arg, const Event *event)
{
}

static void on_lost(void *arg, const struct error *why)
{
	if (!quiet_loss)
		die("lost", why);
	lost_at_ns = clock_mono_ns();
	printf("lost: %s\n", why->msg);
}

static double cpu_s(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void start(struct guest_client *client, struct near *n, int kind, uint64_t bytes)
{
	const struct guest_tunnel_callbacks cb = { near_opened, near_data, near_eof, near_send,
						   near_closed, n };
	struct error err = { 0 };
	char addr[32];

	snprintf(addr, sizeof(addr), "127.0.0.1:%d", kind);
	n->kind = kind;
	n->left = bytes;
	if (guest_tunnel_open(client, IPPROTO_TCP, addr, &cb, &n->tunnel, &err) < 0)
		die("open", &err);
	open_tunnels++;
}

/* Seconds that @streams tunnels of one kind take together. */
static double run(struct guest_client *client, int kind, unsigned streams)
{
	struct near near[STREAMS_MAX] = { 0 };
	uint64_t begin = clock_mono_ns();

	received = pieces = 0;
	for (unsigned i = 0; i < streams; i++)
		start(client, &near[i], kind, bytes_per_stream / streams);
	while (open_tunnels > 0)
		uv_run(&loop.uv, UV_RUN_ONCE);
	return (double)(clock_mono_ns() - begin) / 1e9;
}

static struct guest_client *connect_client(int fd, bool link)
{
	const struct guest_client_options opts = { link ? secret : NULL, 0, 0 };
	const struct guest_client_callbacks cb = { on_ready, on_event, on_lost, NULL };
	struct guest_client *client;
	struct error err = { 0 };

	if (loop_init(&loop, &err) < 0 || rpc_new(&loop, &rpc, &err) < 0 ||
	    guest_client_new(&loop, rpc, fd, &opts, &cb, &client, &err) < 0)
		die("host", &err);
	while (!ready)
		uv_run(&loop.uv, UV_RUN_ONCE);
	return client;
}

static void measure(struct guest_client *client, const char *name)
{
	for (int kind = 1; kind <= 2; kind++) {
		for (unsigned streams = 1; streams <= STREAMS_MAX; streams *= 8) {
			/* a source sends everything on each of its streams */
			double mb = (double)bytes_per_stream / 1e6 * (kind == 2 ? streams : 1);
			double cpu = cpu_s(), s = run(client, kind, streams);

			printf("%-6s %s %u stream%s  %6.0f MB/s  host cpu %.2f s/GB", name,
			       kind == 1 ? "host->guest" : "guest->host", streams,
			       streams == 1 ? " " : "s", mb / s, (cpu_s() - cpu) / (mb / 1000));
			if (kind == 2)
				printf("  %.0f bytes a piece", (double)received / (double)pieces);
			printf("\n");
		}
	}
	printf("%-6s round trip, 1 byte  %.0f us\n", name,
	       run(client, 3, 1) / ROUND_TRIPS * 1e6);
}

static void print_size(const char *who, pid_t pid)
{
	char path[64], line[128];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	if (!f)
		die(path, NULL);
	printf("%s:", who);
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		if (strncmp(line, "VmRSS", 5) == 0 || strncmp(line, "Threads", 7) == 0)
			printf("  %s", line);
	}
	printf("\n");
	fclose(f);
}

/* --- ways to run ----------------------------------------------------------------- */

static void native(bool link)
{
	struct guest_client *client;
	int fds[2];
	pid_t guest;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		die("socketpair", NULL);
	guest = fork();	/* before gRPC and its threads are there */
	if (guest == 0) {
		close(fds[1]);
		guest_main(NULL, fds[0], link ? secret : NULL);
		_exit(0);
	}
	close(fds[0]);
	client = connect_client(fds[1], link);
	measure(client, link ? "link" : "socket");
	print_size("host", getpid());
	print_size("guest", guest);
	kill(guest, SIGKILL);
	waitpid(guest, NULL, 0);
}

static void run_native(const char *unused)
{
	for (int link = 0; link < 2; link++) {
		pid_t pid = fork();

		if (pid == 0) {
			native(link);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
}

static void run_guest(const char *device)
{
	guest_main(device, -1, secret);
}

static struct guest_client *connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t begin = clock_mono_ns();
	struct guest_client *client;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		die(path, NULL);
	client = connect_client(fd, true);
	printf("linked in %.1f ms\n", (double)(clock_mono_ns() - begin) / 1e6);
	return client;
}

static void run_host(const char *path)
{
	measure(connect_to(path), "vm");
}

static void run_ping(const char *path)
{
	printf("round trip %.0f us\n", run(connect_to(path), 3, 1) / ROUND_TRIPS * 1e6);
}

static void run_hold(const char *path)
{
	static struct near near[2];
	struct guest_client *client = connect_to(path);

	start(client, &near[0], 1, 1ull << 50);
	start(client, &near[1], 2, 1ull << 50);
	while (open_tunnels > 0)
		uv_run(&loop.uv, UV_RUN_ONCE);
}

static void on_tick(uv_timer_t *timer)
{
}

/* Once a second somebody wants a connection, as a host agent's users do. */
static void run_watch(const char *path)
{
	static struct near near[64];
	struct guest_client *client = connect_to(path);
	uint64_t asked_ns = clock_mono_ns();
	uv_timer_t tick;

	uv_timer_init(&loop.uv, &tick);
	uv_timer_start(&tick, on_tick, 100, 100);
	quiet_loss = true;
	for (unsigned i = 0; i < ARRAY_SIZE(near) && !lost_at_ns;) {
		uv_run(&loop.uv, UV_RUN_ONCE);
		if (!lost_at_ns && open_tunnels == 0 && clock_mono_ns() - asked_ns > 1000000000) {
			asked_ns = clock_mono_ns();
			near[i].trips = ROUND_TRIPS - 1;	/* one is enough */
			start(client, &near[i++], 3, 0);
		}
	}
	printf("found out %.1f s after the last request\n",
	       (double)(lost_at_ns - asked_ns) / 1e9);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(const char *arg);
	} modes[] = {
		{ "native", run_native }, { "guest", run_guest }, { "host", run_host },
		{ "ping", run_ping },	  { "hold", run_hold },	  { "watch", run_watch },
	};
	const char *mode = argc > 1 ? argv[1] : "native";

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	if (!streq(mode, "native"))	/* both halves must agree */
		bytes_per_stream = 32ull << 20;
	else if (argc > 2)
		bytes_per_stream = strtoull(argv[2], NULL, 10) << 20;
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!streq(mode, modes[i].name))
			continue;
		modes[i].run(argc > 2 ? argv[2] : "");
		return 0;
	}
	fprintf(stderr, "proto_bench: what is `%s`?\n", mode);
	return 2;
}
