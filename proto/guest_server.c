#include "proto/guest_server.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <linux/vm_sockets.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/guest_server_impl.h"

/* --- calls ------------------------------------------------------------------ */

static const struct method {
	const char *path;
	void (*handle)(struct guest_server *s, grpc_call *call);
} methods[] = {
	{ "/GuestService/GetInfo", server_get_info },
	{ "/GuestService/GetEvents", server_get_events },
	{ "/GuestService/PostInotify", server_post_inotify },
	{ "/GuestService/Tunnel", server_tunnel },
	{ "/GuestService/SyncTime", server_sync_time },
};

static void ask_for_call(struct server_incoming *in)
{
	struct guest_server *s = in->server;
	grpc_call_error rc;

	grpc_call_details_init(&in->details);
	grpc_metadata_array_init(&in->metadata);
	rpc_expect(s->rpc, &in->tag);
	rc = grpc_server_request_call(s->server, &in->call, &in->details, &in->metadata,
				      rpc_queue(s->rpc), rpc_queue(s->rpc), &in->tag);
	assert(rc == GRPC_CALL_OK);
}

static void dispatch(struct guest_server *s, grpc_slice path, grpc_call *call)
{
	for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
		if (grpc_slice_str_cmp(path, methods[i].path) == 0) {
			methods[i].handle(s, call);
			return;
		}
	}
	server_unknown_method(s, call);
}

static void on_call(struct rpc_tag *tag, bool ok)
{
	struct server_incoming *in = container_of(tag, struct server_incoming, tag);
	struct guest_server *s = in->server;
	grpc_call *call = steal_ptr(&in->call);

	if (call && s->closing)
		grpc_call_unref(call);
	else if (call)
		dispatch(s, in->details.method, call);
	grpc_call_details_destroy(&in->details);
	grpc_metadata_array_destroy(&in->metadata);
	if (ok && !s->closing)
		ask_for_call(in);
	server_check_done(s);
}

/* --- sockets ----------------------------------------------------------------- */

/* gRPC owns @fd from here on. */
static void add_channel(struct guest_server *s, int fd)
{
	grpc_server_credentials *plain = grpc_insecure_server_credentials_create();

	grpc_server_add_channel_from_fd(s->server, fd, plain);
	grpc_server_credentials_release(plain);
}

/* Out of descriptors, the connection would stay in the queue and keep the loop
 * spinning: it is taken with the spare one, and dropped. */
static void drop_one(struct server_socket *ss)
{
	if (ss->spare_fd >= 0)
		close(ss->spare_fd);
	ss->spare_fd = accept4(ss->fd, NULL, NULL, SOCK_CLOEXEC);
	if (ss->spare_fd >= 0)
		close(ss->spare_fd);
	ss->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void accept_one(struct server_socket *ss)
{
	struct sockaddr_storage from = { 0 };
	socklen_t len = sizeof(from);
	int fd = accept4(ss->fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0) {
		int code = errno;

		if (code != EAGAIN && code != EINTR && code != ECONNABORTED)
			log_warn_limited("guest server: accept: %s", error_text(-code));
		if (code == EMFILE || code == ENFILE)
			drop_one(ss);
		return;
	}
	if (ss->vsock && ((struct sockaddr_vm *)&from)->svm_cid != VMADDR_CID_HOST) {
		log_warn_limited("guest server: connection from vsock CID %u, which is not the "
				 "host, dropped", ((struct sockaddr_vm *)&from)->svm_cid);
		close(fd);
		return;
	}
	add_channel(ss->server, fd);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct server_socket *ss = poll->data;

	if (!ss->server->closing && events & UV_READABLE)
		accept_one(ss);
}

static void on_socket_closed(uv_handle_t *h)
{
	struct server_socket *ss = h->data;
	struct guest_server *s = ss->server;

	close(ss->fd);
	if (ss->spare_fd >= 0)
		close(ss->spare_fd);
	free(ss);
	s->sockets_open--;
	server_check_done(s);
}

/* Takes @fd, a bound socket, also on failure. */
static int listen_on(struct guest_server *s, int fd, bool vsock, struct error *err)
{
	scoped_fd int owned = fd;
	struct server_socket *ss;
	unsigned slot = 0;
	int rc;

	while (slot < SERVER_LISTENERS && s->sockets[slot])
		slot++;
	if (slot == SERVER_LISTENERS)
		return error_set(err, -EMFILE, "more than %d listening sockets", SERVER_LISTENERS);
	if (listen(fd, SOMAXCONN) < 0)
		return error_sys(err, -errno, "listen");
	ss = xnew(struct server_socket);
	ss->server = s;
	ss->vsock = vsock;
	rc = uv_poll_init(&s->loop->uv, &ss->poll, fd);
	if (rc < 0) {
		free(ss);
		return error_sys(err, rc, "watch the socket");
	}
	ss->fd = steal_fd(&owned);
	ss->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	ss->poll.data = ss;
	uv_poll_start(&ss->poll, UV_READABLE, on_connection);
	s->sockets[slot] = ss;
	s->sockets_open++;
	return 0;
}

int guest_server_listen_unix(struct guest_server *s, const char *path, uid_t owner,
			     struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	scoped_fd int fd = -1;
	struct stat st;

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG, "listen on `%s`: longer than %zu bytes", path,
				 sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	if (lstat(path, &st) == 0) {
		if (!S_ISSOCK(st.st_mode))
			return error_set(err, -EEXIST,
					 "listen on `%s`: a file that is no socket is there", path);
		unlink(path);
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_sys(err, -errno, "listen on `%s`: socket", path);
	/* before bind: the file is born with this mode (unix(7), "Pathname sockets") */
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_sys(err, -errno, "listen on `%s`", path);
	if (lchown(path, owner, (gid_t)-1) < 0)
		return error_sys(err, -errno, "listen on `%s`: give it to uid %u", path,
				 (unsigned)owner);
	if (listen_on(s, steal_fd(&fd), false, err) < 0)
		return error_wrap(err, "listen on `%s`", path);
	return 0;
}

int guest_server_listen_vsock(struct guest_server *s, unsigned port, struct error *err)
{
	struct sockaddr_vm addr = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
				    .svm_port = port };
	scoped_fd int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return error_sys(err, -errno, "listen on vsock port %u: socket", port);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_sys(err, -errno, "listen on vsock port %u", port);
	if (listen_on(s, steal_fd(&fd), true, err) < 0)
		return error_wrap(err, "listen on vsock port %u", port);
	return 0;
}

static void on_session(void *arg, int fd)
{
	add_channel(arg, fd);
}

int guest_server_serve_port(struct guest_server *s, const char *device, const uint8_t *secret,
			    struct error *err)
{
	assert(!s->link);
	return link_guest_open(s->loop, device, secret, on_session, s, &s->link, err);
}

int guest_server_serve_fd(struct guest_server *s, int fd, const uint8_t *secret, struct error *err)
{
	if (!secret) {
		add_channel(s, fd);
		return 0;
	}
	assert(!s->link);
	return link_guest_new(s->loop, fd, secret, on_session, s, &s->link, err);
}

/* --- life --------------------------------------------------------------------- */

static void free_server(void *arg)
{
	struct guest_server *s = arg;
	void (*closed)(void *arg) = s->closed;
	void *closed_arg = s->closed_arg;

	free(s);
	if (closed)
		closed(closed_arg);
}

/* Once all calls are over the server goes, which closes its connections; the
 * link then passes on what they still had to say. */
void server_check_done(struct guest_server *s)
{
	struct link_guest *link;

	if (!s->closing || !s->shut_down || s->sockets_open || s->listeners || s->streams ||
	    s->calls || !s->server)
		return;
	for (size_t i = 0; i < SERVER_CALLS_AHEAD; i++) {
		if (s->incoming[i].tag.busy)
			return;
	}
	grpc_server_destroy(steal_ptr(&s->server));
	link = steal_ptr(&s->link);
	if (link)
		link_guest_close(link, free_server, s);
	else
		free_server(s);
}

static void on_shut_down(struct rpc_tag *tag, bool ok)
{
	struct guest_server *s = container_of(tag, struct guest_server, shutdown_tag);

	s->shut_down = true;
	server_check_done(s);
}

int guest_server_new(struct loop *loop, struct rpc *rpc, const struct guest_server_callbacks *cb,
		     struct guest_server **ret, struct error *err)
{
	struct guest_server *s = xnew(struct guest_server);

	s->loop = loop;
	s->rpc = rpc;
	s->cb = *cb;
	s->server = grpc_server_create(rpc_server_args(), NULL);
	grpc_server_register_completion_queue(s->server, rpc_queue(rpc), NULL);
	grpc_server_start(s->server);
	rpc_tag_init(&s->shutdown_tag, on_shut_down);
	for (size_t i = 0; i < SERVER_CALLS_AHEAD; i++) {
		s->incoming[i].server = s;
		rpc_tag_init(&s->incoming[i].tag, on_call);
		ask_for_call(&s->incoming[i]);
	}
	*ret = s;
	return 0;
}

void guest_server_close(struct guest_server *s, void (*closed)(void *arg), void *arg)
{
	if (s->closing)
		return;
	s->closing = true;
	s->closed = closed;
	s->closed_arg = arg;
	for (size_t i = 0; i < SERVER_LISTENERS; i++) {
		if (s->sockets[i])
			uv_close((uv_handle_t *)&s->sockets[i]->poll, on_socket_closed);
	}
	server_streams_abort(s);
	rpc_expect(s->rpc, &s->shutdown_tag);
	grpc_server_shutdown_and_notify(s->server, rpc_queue(s->rpc), &s->shutdown_tag);
	grpc_server_cancel_all_calls(s->server);
}
