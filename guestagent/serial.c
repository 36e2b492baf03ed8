#include "guestagent/serial.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

#include "guestagent/watch.h"
#include "lib/base/buf.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum {
	SECRET_SIZE = 16,
	RETRY_MS = 2000,
	PORTS_MAX = 512,	/* entries of sysfs looked at */
};

struct serial {
	struct loop *loop;
	struct guest_server *server;
	char *name, *secret_file;
	struct watch *dev, *secret_dir;
	uv_timer_t retry;
	unsigned parts;		/* closes still to come */
	bool served, closing;
	char *last_problem;	/* told once, not at every try */
	void (*closed)(void *arg);
	void *closed_arg;
};

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int serial_read_secret(const char *path, uint8_t ret[16], struct error *err)
{
	scoped_buf struct buf b = { 0 };
	uint8_t secret[SECRET_SIZE];
	const char *s;
	int rc = path_read_file(path, 256, &b, err);

	if (rc < 0)
		return rc;
	s = buf_str(&b);
	for (size_t i = 0; i < SECRET_SIZE; i++, s += 2) {
		int high = hex_digit(s[0]), low = high < 0 ? -1 : hex_digit(s[1]);

		if (low < 0)
			return error_set(err, -EINVAL, "%s: not 32 hex digits", path);
		secret[i] = (uint8_t)(high << 4 | low);
	}
	if (s[strspn(s, "\r\n")] != 0)
		return error_set(err, -EINVAL, "%s: more than 32 hex digits", path);
	memcpy(ret, secret, SECRET_SIZE);
	return 0;
}

static bool sysfs_name_is(const char *dir, const char *name)
{
	scoped_free char *path = xasprintf("/sys/class/virtio-ports/%s/name", dir);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	if (path_read_file(path, 256, &b, &err) < 0)
		return false;
	b.data[strcspn((char *)b.data, "\n")] = 0;
	return streq((char *)b.data, name);
}

/* The device of the port, NULL while there is none. */
static char *find_device(const char *name)
{
	scoped_free char *udev = name[0] == '/' ? xstrdup(name)
						: xasprintf("/dev/virtio-ports/%s", name);
	scoped_dir DIR *d = NULL;
	struct dirent *e;

	if (path_exists(udev))
		return steal_ptr(&udev);
	if (name[0] == '/')
		return NULL;
	d = opendir("/sys/class/virtio-ports");
	for (unsigned n = 0; d && n < PORTS_MAX && (e = readdir(d)); n++) {
		scoped_free char *dev = xasprintf("/dev/%s", e->d_name);

		if (e->d_name[0] != '.' && sysfs_name_is(e->d_name, name) && path_exists(dev))
			return steal_ptr(&dev);
	}
	return NULL;
}

static void on_part_closed(void *arg)
{
	struct serial *s = arg;
	void (*closed)(void *arg) = s->closed;
	void *closed_arg = s->closed_arg;

	if (--s->parts || !s->closing)
		return;
	free(s->name);
	free(s->secret_file);
	free(s->last_problem);
	free(s);
	if (closed)
		closed(closed_arg);
}

static void stop_watching(struct serial *s)
{
	if (s->dev)
		watch_close(steal_ptr(&s->dev), on_part_closed, s);
	if (s->secret_dir)
		watch_close(steal_ptr(&s->secret_dir), on_part_closed, s);
}

static void say_once(struct serial *s, const char *problem)
{
	if (s->last_problem && streq(s->last_problem, problem))
		return;
	free(s->last_problem);
	s->last_problem = xstrdup(problem);
	log_info("agent: %s, waiting", problem);
}

static void on_retry(uv_timer_t *timer);

static void try_serve(void *arg)
{
	struct serial *s = arg;
	struct error err = ERROR_NONE;
	uint8_t secret[SECRET_SIZE];
	scoped_free char *device = NULL;

	if (s->served || s->closing)
		return;
	device = find_device(s->name);
	if (!device) {
		scoped_free char *text = xasprintf("no port `%s` yet", s->name);

		say_once(s, text);
		return;
	}
	if (serial_read_secret(s->secret_file, secret, &err) < 0) {
		say_once(s, err.msg);
		return;
	}
	if (guest_server_serve_port(s->server, device, secret, &err) < 0) {
		say_once(s, err.msg);
		uv_timer_start(&s->retry, on_retry, RETRY_MS, 0);
		return;
	}
	log_info("agent: serving `%s` (%s)", s->name, device);
	s->served = true;
	stop_watching(s);
}

static void on_retry(uv_timer_t *timer)
{
	try_serve(timer->data);
}

static char *parent_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash && slash > path ? xstrndup(path, (size_t)(slash - path)) : xstrdup("/");
}

struct serial *serial_new(struct loop *loop, const struct serial_options *opts,
			  struct guest_server *server)
{
	struct serial *s = xnew(struct serial);
	scoped_free char *dev_dir = opts->name[0] == '/' ? parent_of(opts->name) : xstrdup("/dev");
	scoped_free char *secret_dir = parent_of(opts->secret_file);

	s->loop = loop;
	s->server = server;
	s->name = xstrdup(opts->name);
	s->secret_file = xstrdup(opts->secret_file);
	uv_timer_init(&loop->uv, &s->retry);
	s->retry.data = s;
	s->parts = 3;
	s->dev = watch_new(loop, dev_dir, try_serve, s);
	s->secret_dir = watch_new(loop, secret_dir, try_serve, s);
	return s;
}

static void on_retry_closed(uv_handle_t *h)
{
	on_part_closed(h->data);
}

void serial_close(struct serial *s, void (*closed)(void *arg), void *arg)
{
	s->closing = true;
	s->closed = closed;
	s->closed_arg = arg;
	stop_watching(s);
	uv_close((uv_handle_t *)&s->retry, on_retry_closed);
}
