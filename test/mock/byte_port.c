#include "test/mock/byte_port.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

enum { HOLD_MAX = 256 << 10 };	/* about what the kernel and QEMU hold together */

struct byte_port {
	pthread_t thread;
	pthread_mutex_t lock;		/* guards the rest */
	int wake[2];
	int guest_far;			/* the guest's own end, kept open: a port outlives agents */
	int guest, host;
	struct buf to_host, to_guest;
	bool deaf, stop;
};

static void set_nonblock(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/* Reads what fits. False: the other end is gone. */
static bool fill(int fd, struct buf *b)
{
	ssize_t n;

	if (b->len >= HOLD_MAX)
		return true;
	n = read(fd, buf_reserve(b, 65536), 65536);
	if (n > 0)
		b->len += (size_t)n;
	return n > 0 || (n < 0 && errno == EAGAIN);
}

static void drain(int fd, struct buf *b)
{
	ssize_t n = b->len ? write(fd, b->data, b->len) : 0;

	if (n > 0)
		buf_consume(b, (size_t)n);
}

static void turn(struct byte_port *p, const struct pollfd *fds)
{
	uint8_t sink[64];

	while (read(p->wake[0], sink, sizeof(sink)) > 0)
		;
	if (fds[1].revents & POLLIN)
		fill(p->guest, &p->to_host);
	if (p->host >= 0 && fds[2].fd == p->host) {
		if (fds[2].revents & (POLLIN | POLLHUP) && !fill(p->host, &p->to_guest)) {
			close(p->host);
			p->host = -1;
		}
		if (p->deaf)
			buf_reset(&p->to_guest);
	}
	drain(p->guest, &p->to_guest);
	if (p->host >= 0)
		drain(p->host, &p->to_host);
}

static void *port_thread(void *arg)
{
	struct byte_port *p = arg;
	sigset_t pipe_signal;

	sigemptyset(&pipe_signal);	/* a host that is gone is no reason to end */
	sigaddset(&pipe_signal, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe_signal, NULL);
	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		struct pollfd fds[3] = {
			{ p->wake[0], POLLIN, 0 },
			{ p->guest, 0, 0 },
			{ p->host, 0, 0 },
		};

		if (p->to_host.len < HOLD_MAX)
			fds[1].events |= POLLIN;
		if (p->to_guest.len > 0)
			fds[1].events |= POLLOUT;
		if (p->to_guest.len < HOLD_MAX)
			fds[2].events |= POLLIN;
		if (p->to_host.len > 0)
			fds[2].events |= POLLOUT;
		pthread_mutex_unlock(&p->lock);
		poll(fds, 3, -1);
		pthread_mutex_lock(&p->lock);
		turn(p, fds);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static void wake(struct byte_port *p)
{
	assert(write(p->wake[1], "", 1) == 1);
}

struct byte_port *byte_port_new(bool pty)
{
	struct byte_port *p = xnew(struct byte_port);
	struct termios raw;
	int pair[2];

	p->host = -1;
	if (pty) {
		assert(openpty(&pair[0], &pair[1], NULL, NULL, NULL) == 0);
		tcgetattr(pair[1], &raw);
		cfmakeraw(&raw);
		tcsetattr(pair[1], TCSANOW, &raw);
	} else {
		assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	}
	p->guest = pair[0];
	p->guest_far = pair[1];
	set_nonblock(p->guest);
	assert(pipe2(p->wake, O_CLOEXEC | O_NONBLOCK) == 0);
	pthread_mutex_init(&p->lock, NULL);
	assert(pthread_create(&p->thread, NULL, port_thread, p) == 0);
	return p;
}

void byte_port_free(struct byte_port *p)
{
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_mutex_unlock(&p->lock);
	wake(p);
	pthread_join(p->thread, NULL);
	close(p->guest);
	close(p->wake[0]);
	close(p->wake[1]);
	close(p->guest_far);
	if (p->host >= 0)
		close(p->host);
	buf_done(&p->to_host);
	buf_done(&p->to_guest);
	free(p);
}

int byte_port_guest(struct byte_port *p)
{
	return fcntl(p->guest_far, F_DUPFD_CLOEXEC, 0);
}

int byte_port_connect(struct byte_port *p)
{
	int pair[2];

	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	set_nonblock(pair[0]);
	pthread_mutex_lock(&p->lock);
	if (p->host >= 0) {
		while (fill(p->host, &p->to_guest) && p->to_guest.len < HOLD_MAX) {
			uint8_t byte;

			if (recv(p->host, &byte, 1, MSG_PEEK) <= 0)
				break;
		}
		close(p->host);
	}
	p->host = pair[0];
	pthread_mutex_unlock(&p->lock);
	wake(p);
	return pair[1];
}

void byte_port_stale_to_host(struct byte_port *p, const void *data, size_t len)
{
	pthread_mutex_lock(&p->lock);
	buf_add(&p->to_host, data, len);
	pthread_mutex_unlock(&p->lock);
	wake(p);
}

void byte_port_stale_to_guest(struct byte_port *p, const void *data, size_t len)
{
	pthread_mutex_lock(&p->lock);
	buf_add(&p->to_guest, data, len);
	pthread_mutex_unlock(&p->lock);
	wake(p);
}

void byte_port_deaf(struct byte_port *p, bool deaf)
{
	pthread_mutex_lock(&p->lock);
	p->deaf = deaf;
	pthread_mutex_unlock(&p->lock);
	wake(p);
}
