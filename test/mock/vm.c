#include "test/mock/vm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"
#include "proto/guest_server.h"

struct mock_vm_plan mock_vm_plan;

struct vm {
	struct loop *loop;
	const struct driver_spec *spec;
	struct driver_callbacks cb;
	struct rpc *rpc;
	struct guest_server *server;	/* of the connection that is open */
	uv_poll_t commands;
	uv_tcp_t sshd, ssh_client;
	bool sshd_open, client_open;
	uv_timer_t later;
	driver_done_fn done;		/* start, adopt or stop under way */
	void *done_arg;
	struct error result;
	bool running, silent, shutting_down;
	unsigned boots;
	uint64_t revision;
	Info info;
	Event snapshot;
	BootProgress boot;
	IPPort ports[2], *port_list[2];
	char boot_id[16];
	char *features[2];
	char *failed[1];
	unsigned servers;	/* not closed yet */
	bool closing;
	unsigned refs;
};

static void vm_unref(struct vm *vm)
{
	if (--vm->refs == 0)
		free(vm);
}

static void on_handle_closed(uv_handle_t *h)
{
	vm_unref(h->data);
}

/* --- the guest ----------------------------------------------------------- */

static const Info *get_info(void *arg)
{
	struct vm *vm = arg;

	return &vm->info;
}

static const Event *get_snapshot(void *arg)
{
	struct vm *vm = arg;

	vm->snapshot.revision = vm->revision;
	return &vm->snapshot;
}

static void sync_time(void *arg, const TimeSyncRequest *req, TimeSyncResponse *res)
{
	res->drift_ms = 0;
}

static void inotify(void *arg, const Inotify *msg)
{
}

static void tunnel(void *arg, struct guest_stream *s, int proto, const char *guest_addr)
{
	guest_stream_refused(s, -ECONNREFUSED);
}

static void guest_boot(struct vm *vm)
{
	static const char *const features[] = { "snapshot", "boot-progress" };

	info__init(&vm->info);
	event__init(&vm->snapshot);
	boot_progress__init(&vm->boot);
	for (size_t i = 0; i < 2; i++) {
		ipport__init(&vm->ports[i]);
		vm->ports[i].protocol = (char *)"tcp";
		vm->ports[i].ip = (char *)"127.0.0.1";
		vm->ports[i].port = mock_vm_plan.guest_port + (int)i;
		vm->port_list[i] = &vm->ports[i];
		vm->features[i] = (char *)features[i];
	}
	snprintf(vm->boot_id, sizeof(vm->boot_id), "boot-%u", ++vm->boots);
	vm->info.agent_version = (char *)"0.1.0";
	vm->info.kernel = (char *)"6.12.0";
	vm->info.boot_id = vm->boot_id;
	vm->info.features = vm->features;
	vm->info.n_features = 2;
	vm->info.boot = &vm->boot;
	vm->boot.instance_id = (char *)"iid-mock";
	vm->boot.step = (char *)"system 1/1: 00000000";
	vm->snapshot.snapshot = true;
	vm->snapshot.boot = &vm->boot;
	vm->snapshot.added_local_ports = vm->port_list;
	vm->snapshot.n_added_local_ports = 1;
}

static void publish_boot(struct vm *vm)
{
	Event e = EVENT__INIT;

	e.boot = &vm->boot;
	e.revision = ++vm->revision;
	if (vm->server)
		guest_server_publish(vm->server, &e);
}

static void publish_port(struct vm *vm)
{
	Event e = EVENT__INIT;

	vm->snapshot.n_added_local_ports = 2;
	e.added_local_ports = &vm->port_list[1];
	e.n_added_local_ports = 1;
	e.revision = ++vm->revision;
	if (vm->server)
		guest_server_publish(vm->server, &e);
}

static void free_rpc(void *arg)
{
	struct vm *vm = arg;

	rpc_free(vm->rpc);
	loop_unref(vm->loop);
	vm_unref(vm);
}

static void check_closed(struct vm *vm)
{
	if (!vm->closing || vm->servers)
		return;
	loop_ref(vm->loop);
	vm->refs++;
	loop_post(vm->loop, free_rpc, vm);
}

static void on_server_closed(void *arg)
{
	struct vm *vm = arg;

	vm->servers--;
	check_closed(vm);
	vm_unref(vm);
}

static void agent_dies(struct vm *vm)
{
	if (vm->server)
		guest_server_close(vm->server, on_server_closed, vm);
	vm->server = NULL;
}

static int new_server(struct vm *vm, struct error *err)
{
	struct guest_server_callbacks cb = { .get_info = get_info, .get_snapshot = get_snapshot,
					     .sync_time = sync_time, .inotify = inotify,
					     .tunnel = tunnel, .arg = vm };

	if (guest_server_new(vm->loop, vm->rpc, &cb, &vm->server, err) < 0)
		return err->code;
	vm->refs++;
	vm->servers++;
	return 0;
}

/* Lima's agent: plain HTTP/2, and nothing of what we added. */
static void serve_unix(struct vm *vm)
{
	scoped_free char *path = xasprintf("%s/guest.sock", getenv("FAKE_SSH_DIR"));
	struct error err = ERROR_NONE;
	int rc = new_server(vm, &err);

	assert(rc == 0);
	vm->info.n_features = 0;
	vm->info.agent_version = vm->info.kernel = vm->info.boot_id = (char *)"";
	vm->info.boot = vm->snapshot.boot = NULL;
	vm->snapshot.snapshot = false;
	rc = guest_server_listen_unix(vm->server, path, getuid(), &err);
	assert(rc == 0);
}

static int serve(struct vm *vm, int fd, struct error *err)
{
	scoped_free char *path = layout_instance_file(vm->spec->dir, FILE_GA_SECRET);
	scoped_buf struct buf secret = { 0 };

	if (path_read_file(path, 64, &secret, err) < 0 || new_server(vm, err) < 0)
		return err->code;
	return guest_server_serve_fd(vm->server, fd, secret.data, err);
}

/* --- sshd ---------------------------------------------------------------- */

static void on_client_closed(uv_handle_t *h)
{
	struct vm *vm = h->data;

	vm->client_open = false;
	vm_unref(vm);
}

static void on_ssh_client(uv_stream_t *server, int status)
{
	struct vm *vm = server->data;
	uv_buf_t banner = uv_buf_init((char *)"SSH-2.0-mock\r\n", 14);

	if (vm->client_open)
		return;	/* one at a time is enough here */
	uv_tcp_init(&vm->loop->uv, &vm->ssh_client);
	vm->ssh_client.data = vm;
	vm->client_open = true;
	vm->refs++;
	uv_accept(server, (uv_stream_t *)&vm->ssh_client);
	uv_try_write((uv_stream_t *)&vm->ssh_client, &banner, 1);
	uv_close((uv_handle_t *)&vm->ssh_client, on_client_closed);
}

static int listen_sshd(struct vm *vm)
{
	struct sockaddr_in sa;
	int rc;

	uv_ip4_addr("127.0.0.1", vm->spec->ssh_port, &sa);
	uv_tcp_init(&vm->loop->uv, &vm->sshd);
	vm->sshd.data = vm;
	vm->sshd_open = true;
	vm->refs++;
	rc = uv_tcp_bind(&vm->sshd, (struct sockaddr *)&sa, 0);	/* sets SO_REUSEADDR */
	return rc ? rc : uv_listen((uv_stream_t *)&vm->sshd, 8, on_ssh_client);
}

/* --- the machine --------------------------------------------------------- */

static void tell_done(uv_timer_t *t)
{
	struct vm *vm = t->data;
	driver_done_fn done = vm->done;

	vm->done = NULL;
	if (vm->shutting_down && vm->running) {
		vm->running = false;
		agent_dies(vm);
		vm->cb.event(vm->cb.arg, DRIVER_EXITED, "");
	}
	if (done)
		done(vm->done_arg, &vm->result);
}

static void done_soon(struct vm *vm, driver_done_fn done, void *arg)
{
	vm->done = done;
	vm->done_arg = arg;
	uv_timer_start(&vm->later, tell_done, 10, 0);
}

static void vm_ends(struct vm *vm, const char *why)
{
	vm->running = false;
	agent_dies(vm);
	vm->cb.event(vm->cb.arg, DRIVER_EXITED, why);
}

static void guest_resets(struct vm *vm)
{
	agent_dies(vm);
	vm->cb.event(vm->cb.arg, DRIVER_AGENT_PORT_CLOSED, "reset");
	vm->cb.event(vm->cb.arg, DRIVER_RESET, "guest-reset");
	guest_boot(vm);
}

static void obey(struct vm *vm, char command)
{
	switch (command) {
	case 'u': serve_unix(vm); break;
	case 's': vm->boot.ssh_ready = true; publish_boot(vm); break;
	case 'f':
		vm->failed[0] = (char *)"system/00000000";
		vm->boot.failed = vm->failed;
		vm->boot.n_failed = 1;
		/* fallthrough */
	case 'b': vm->boot.ssh_ready = vm->boot.boot_done = true; publish_boot(vm); break;
	case 'l': agent_dies(vm); break;
	case 'R': guest_resets(vm); break;
	case 'p': publish_port(vm); break;
	case 'P':
		vm->cb.event(vm->cb.arg, DRIVER_SHUTDOWN, "guest-shutdown");
		vm_ends(vm, "the guest powered off");
		break;
	case 'k': vm_ends(vm, "QEMU died of signal 11 (Segmentation fault)"); break;
	default: assert(!"unknown command");
	}
}

static void on_commands(uv_poll_t *p, int status, int events)
{
	struct vm *vm = p->data;
	char c;

	if (read(mock_vm_plan.command_fd, &c, 1) == 1)
		obey(vm, c);
	else
		uv_poll_stop(p);
}

static int vm_validate(const struct driver_spec *spec, struct strv *warnings, struct error *err)
{
	return 0;
}

static int vm_open(struct loop *loop, const struct driver_spec *spec,
		   const struct driver_callbacks *cb, struct driver **ret, struct error *err)
{
	struct vm *vm = xnew(struct vm);

	vm->loop = loop;
	vm->spec = spec;
	vm->cb = *cb;
	vm->silent = mock_vm_plan.silent;
	vm->refs = 2;
	if (rpc_new(loop, &vm->rpc, err) < 0) {
		free(vm);
		return err->code;
	}
	guest_boot(vm);
	uv_timer_init(&loop->uv, &vm->later);
	uv_poll_init(&loop->uv, &vm->commands, mock_vm_plan.command_fd);
	vm->later.data = vm->commands.data = vm;
	*ret = (struct driver *)vm;
	return 0;
}

static void vm_starts(struct vm *vm, driver_done_fn done, void *arg)
{
	vm->running = true;
	uv_poll_start(&vm->commands, UV_READABLE, on_commands);
	if (!mock_vm_plan.no_sshd && listen_sshd(vm) < 0)
		error_set(&vm->result, -EADDRINUSE, "ssh port %u", vm->spec->ssh_port);
	done_soon(vm, done, arg);
}

static void vm_start(struct driver *d, driver_done_fn done, void *arg)
{
	struct vm *vm = (struct vm *)d;

	vm->cb.notice(vm->cb.arg, "using TCG (slow)");
	if (mock_vm_plan.start_fails) {
		error_set(&vm->result, -EIO, "QEMU exited with code 1: no such machine");
		done_soon(vm, done, arg);
		return;
	}
	vm_starts(vm, done, arg);
}

static void vm_adopt(struct driver *d, driver_done_fn done, void *arg)
{
	struct vm *vm = (struct vm *)d;

	if (!mock_vm_plan.runs_already) {
		error_set(&vm->result, -ENOENT, "no VM");
		done_soon(vm, done, arg);
		return;
	}
	vm->boot.ssh_ready = vm->boot.boot_done = true;
	vm_starts(vm, done, arg);
}

static void vm_info(struct driver *d, struct driver_info *ret)
{
	*ret = (struct driver_info){ .accel = "tcg", .machine = "mock", .version = "1",
				     .pid = 4711 };
}

static int vm_agent_connect(struct driver *d, int *ret_fd, struct error *err)
{
	struct vm *vm = (struct vm *)d;
	int pair[2];

	if (vm->silent || !vm->running)
		return error_set(err, -EAGAIN, "no agent yet");
	agent_dies(vm);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return error_sys(err, -errno, "socketpair");
	if (serve(vm, pair[1], err) < 0) {
		close(pair[0]);
		return err->code;
	}
	*ret_fd = pair[0];
	return 0;
}

static void vm_stop(struct driver *d, bool force, driver_done_fn done, void *arg)
{
	struct vm *vm = (struct vm *)d;

	vm->shutting_down = true;
	vm->result = ERROR_NONE;
	if (!force && mock_vm_plan.ignores_powerdown) {
		vm->done = done;
		vm->done_arg = arg;
		return;
	}
	if (vm->done) {	/* a forced one ends the polite one that waits */
		uv_timer_start(&vm->later, tell_done, 10, 0);
		return;
	}
	done_soon(vm, done, arg);
}

static void vm_close(struct driver *d)
{
	struct vm *vm = (struct vm *)d;

	agent_dies(vm);
	vm->closing = true;
	check_closed(vm);
	if (vm->sshd_open)
		uv_close((uv_handle_t *)&vm->sshd, on_handle_closed);
	uv_close((uv_handle_t *)&vm->later, on_handle_closed);
	uv_close((uv_handle_t *)&vm->commands, on_handle_closed);
}

const struct driver_ops mock_vm_ops = {
	.name = "mock",
	.features = DRIVER_CAN_ADOPT,
	.validate = vm_validate,
	.open = vm_open,
	.start = vm_start,
	.adopt = vm_adopt,
	.info = vm_info,
	.agent_connect = vm_agent_connect,
	.stop = vm_stop,
	.close = vm_close,
};
