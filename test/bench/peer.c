/* peer.c - what the benchmarks run inside the guest: one small static program
 *
 *	peer PORT [ADDRESS]	serves on ADDRESS, else 127.0.0.1
 *	peer echo PORT		one thread that echoes for any number of clients
 *
 * A connection to the first kind sends one line and gets:
 *	sink		reads until EOF, then answers the byte count
 *	source N	sends N bytes, then closes
 *	echo		sends back what it gets
 *	time		answers our clock in ns for each byte received
 *	listen P	listens on 127.0.0.1:P, answers the clock from just before
 *			listen(); every client of P is greeted with one byte
 *	close P		closes that listener, answers the clock from just before
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 * 1024, LISTENERS = 65536 };

static int listeners[LISTENERS];	/* fd + 1 by port, 0: none */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void answer(int fd, uint64_t value)
{
	dprintf(fd, "%" PRIu64 "\n", value);
}

static void do_sink(int fd, char *buf)
{
	uint64_t total = 0;
	ssize_t n;

	while ((n = read(fd, buf, CHUNK)) > 0)
		total += (uint64_t)n;
	answer(fd, total);
}

static void do_source(int fd, char *buf, uint64_t left)
{
	memset(buf, 'x', left < CHUNK ? left : CHUNK);
	while (left) {
		ssize_t n = write(fd, buf, left < CHUNK ? left : CHUNK);

		if (n <= 0)
			return;
		left -= (uint64_t)n;
	}
}

static void do_echo(int fd, char *buf)
{
	ssize_t n;

	while ((n = read(fd, buf, CHUNK)) > 0)
		for (ssize_t off = 0, w; off < n; off += w)
			if ((w = write(fd, buf + off, (size_t)(n - off))) <= 0)
				return;
}

static void do_time(int fd, char *buf)
{
	while (read(fd, buf, 1) == 1)
		answer(fd, now_ns());
}

static void *greet_all(void *arg)
{
	int fd = (int)(intptr_t)arg, c;

	while ((c = accept(fd, NULL, NULL)) >= 0) {
		if (write(c, "!", 1) != 1)
			perror("greet");
		close(c);
	}
	return NULL;
}

static int bound(uint16_t port, const char *ip)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port),
				  .sin_addr.s_addr = inet_addr(ip) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		perror("bind");
		close(fd);
		return -1;
	}
	return fd;
}

static void do_listen(int fd, uint16_t port)
{
	int l = bound(port, "127.0.0.1");
	pthread_t thread;
	uint64_t at;

	if (l < 0)
		return;
	at = now_ns();
	listen(l, 128);
	listeners[port] = l + 1;
	pthread_create(&thread, NULL, greet_all, (void *)(intptr_t)l);
	pthread_detach(thread);
	answer(fd, at);
}

static void do_close(int fd, uint16_t port)
{
	uint64_t at = now_ns();

	if (listeners[port]) {
		shutdown(listeners[port] - 1, SHUT_RDWR);	/* wakes accept() */
		close(listeners[port] - 1);
	}
	listeners[port] = 0;
	answer(fd, at);
}

static void *serve(void *arg)
{
	int fd = (int)(intptr_t)arg, one = 1;
	char *buf = malloc(CHUNK), line[64] = "";
	unsigned long long n = 0;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (size_t i = 0; i + 1 < sizeof(line) && read(fd, line + i, 1) == 1 && line[i] != '\n'; i++)
		;
	sscanf(line, "%*s %llu", &n);
	if (!strncmp(line, "sink", 4))
		do_sink(fd, buf);
	else if (!strncmp(line, "source", 6))
		do_source(fd, buf, n);
	else if (!strncmp(line, "echo", 4))
		do_echo(fd, buf);
	else if (!strncmp(line, "time", 4))
		do_time(fd, buf);
	else if (!strncmp(line, "listen", 6))
		do_listen(fd, (uint16_t)n);
	else if (!strncmp(line, "close", 5))
		do_close(fd, (uint16_t)n);
	free(buf);
	close(fd);
	return NULL;
}

static int echo_all(uint16_t port)
{
	int l = bound(port, "127.0.0.1"), ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = l }, evs[256];
	struct rlimit r;
	char *buf = malloc(CHUNK);

	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	if (l < 0 || listen(l, 4096) < 0)
		return 1;
	epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev);
	for (;;) {
		int n = epoll_wait(ep, evs, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = evs[i].data.fd;

			if (fd == l) {
				ev.data.fd = accept(l, NULL, NULL);
				if (ev.data.fd >= 0)
					epoll_ctl(ep, EPOLL_CTL_ADD, ev.data.fd, &ev);
				continue;
			}
			ssize_t got = read(fd, buf, CHUNK);

			if (got <= 0 || write(fd, buf, (size_t)got) != got)
				close(fd);
		}
	}
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc > 2 && !strcmp(argv[1], "echo"))
		return echo_all((uint16_t)atoi(argv[2]));

	int l = bound((uint16_t)atoi(argc > 1 ? argv[1] : "0"), argc > 2 ? argv[2] : "127.0.0.1"), c;

	if (l < 0 || listen(l, 1024) < 0)
		return 1;
	while ((c = accept(l, NULL, NULL)) >= 0) {
		pthread_t thread;

		pthread_create(&thread, NULL, serve, (void *)(intptr_t)c);
		pthread_detach(thread);
	}
	return 0;
}
