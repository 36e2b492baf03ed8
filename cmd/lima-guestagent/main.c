/* lima-guestagent - runs in the guest, as root, from early boot on */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "guestagent/agent.h"
#include "guestagent/provision.h"
#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/relay.h"

enum {
	EXIT_USAGE = 2,
	/* Two for each of 16,384 connections of the relay (relay.h) and of 16,384 tunnels
	 * (tunnel.h), and the rest. Linux' fs.nr_open is 1,048,576 unless changed. */
	FILES_WANTED = 131072,
};

static const char help[] =
	"lima-guestagent - tells the host what listens in this guest, and carries its ports\n"
	"\n"
	"Usage: lima-guestagent daemon [options]\n"
	"       lima-guestagent --version | --help\n"
	"\n"
	"Options of daemon:\n"
	"  --virtio-port NAME   serve the virtio-serial port NAME (or a device /dev/...)\n"
	"  --secret-file PATH   32 hex digits shared with the host, for the port\n"
	"                       (default: RUNTIME-DIR/secret)\n"
	"  --vsock-port N       listen on this AF_VSOCK port, for the host only\n"
	"  --relay-vsock-port N take the host's data connections on this AF_VSOCK port, where\n"
	"                       the kernel has it (default 722; 0 for none)\n"
	"  --socket PATH        listen on a UNIX socket (default /run/lima-guestagent.sock;\n"
	"                       \"\" for none)\n"
	"  --socket-owner UID   who may connect to it besides root (default 0)\n"
	"  --runtime-dir DIR    default /run/lima-guestagent\n"
	"  --progress-dir DIR   where boot scripts tell how far they are\n"
	"                       (default " PROVISION_DIR ")\n"
	"  --poll-ports         do not use BPF to find ports\n"
	"  --debug              log more\n"
	"  --tick DURATION      accepted for Lima's units; events replace it\n";

enum option_id {
	OPT_VIRTIO_PORT = 1,
	OPT_SECRET_FILE,
	OPT_VSOCK_PORT,
	OPT_RELAY_VSOCK_PORT,
	OPT_SOCKET,
	OPT_SOCKET_OWNER,
	OPT_RUNTIME_DIR,
	OPT_PROGRESS_DIR,
	OPT_POLL_PORTS,
	OPT_DEBUG,
	OPT_TICK,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option options[] = {
	{ "virtio-port", required_argument, NULL, OPT_VIRTIO_PORT },
	{ "secret-file", required_argument, NULL, OPT_SECRET_FILE },
	{ "vsock-port", required_argument, NULL, OPT_VSOCK_PORT },
	{ "relay-vsock-port", required_argument, NULL, OPT_RELAY_VSOCK_PORT },
	{ "socket", required_argument, NULL, OPT_SOCKET },
	{ "socket-owner", required_argument, NULL, OPT_SOCKET_OWNER },
	{ "runtime-dir", required_argument, NULL, OPT_RUNTIME_DIR },
	{ "progress-dir", required_argument, NULL, OPT_PROGRESS_DIR },
	{ "poll-ports", no_argument, NULL, OPT_POLL_PORTS },
	{ "debug", no_argument, NULL, OPT_DEBUG },
	{ "tick", required_argument, NULL, OPT_TICK },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{ 0 },
};

static int parse_number(const char *what, const char *text, unsigned long max, unsigned *ret)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || v > max) {
		fprintf(stderr, "lima-guestagent: --%s: `%s` is not a number up to %lu\n", what,
			text, max);
		return -EINVAL;
	}
	*ret = (unsigned)v;
	return 0;
}

/* 0: go on; 1: all is done; negative: wrong usage, said. */
static int parse(int argc, char **argv, struct agent_options *o, const char **ret_runtime_dir,
		 bool *ret_debug)
{
	unsigned owner = 0;
	int id;

	while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch ((enum option_id)id) {
		case OPT_VIRTIO_PORT: o->virtio_port = *optarg ? optarg : NULL; break;
		case OPT_SECRET_FILE: o->secret_file = optarg; break;
		case OPT_SOCKET: o->socket = *optarg ? optarg : NULL; break;
		case OPT_RUNTIME_DIR: *ret_runtime_dir = optarg; break;
		case OPT_PROGRESS_DIR: o->progress_dir = optarg; break;
		case OPT_POLL_PORTS: o->poll_ports = true; break;
		case OPT_DEBUG: *ret_debug = true; break;
		case OPT_TICK: break;
		case OPT_VSOCK_PORT:
			if (parse_number("vsock-port", optarg, UINT_MAX - 1, &o->vsock_port) < 0)
				return -EINVAL;
			break;
		case OPT_RELAY_VSOCK_PORT:
			if (parse_number("relay-vsock-port", optarg, UINT_MAX - 1,
					 &o->relay_vsock_port) < 0)
				return -EINVAL;
			break;
		case OPT_SOCKET_OWNER:
			if (parse_number("socket-owner", optarg, UINT_MAX - 1, &owner) < 0)
				return -EINVAL;
			o->socket_owner = owner;
			break;
		case OPT_VERSION: printf("lima-guestagent version %s\n", LIMA_VERSION); return 1;
		case OPT_HELP: fputs(help, stdout); return 1;
		default: return -EINVAL; /* getopt_long said why */
		}
	}
	if (optind + 1 == argc && streq(argv[optind], "daemon"))
		return 0;
	fprintf(stderr, "lima-guestagent: %s; try --help\n",
		optind == argc ? "no command given" : "the only command is `daemon`");
	return -EINVAL;
}

/* Small and quiet: this runs in every guest, all the time. */
static void tune_process(void)
{
	struct rlimit files;

	heap_setup();
	/* One for touch.c, whose mount may hang, and one for ports_nat.c. */
	setenv("UV_THREADPOOL_SIZE", "2", 1);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_max = MAX(files.rlim_max, (rlim_t)FILES_WANTED);	/* root may */
		files.rlim_cur = files.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &files) < 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
			files.rlim_cur = files.rlim_max;
			setrlimit(RLIMIT_NOFILE, &files);
		}
	}
}

int main(int argc, char **argv)
{
	struct agent_options opts = { .relay_vsock_port = RELAY_VSOCK_PORT,
				      .socket = "/run/lima-guestagent.sock",
				      .progress_dir = PROVISION_DIR };
	struct error err = ERROR_NONE;
	scoped_free char *default_secret = NULL;
	const char *runtime_dir = "/run/lima-guestagent";
	bool debug = false;
	int rc = parse(argc, argv, &opts, &runtime_dir, &debug);

	if (rc != 0)
		return rc < 0 ? EXIT_USAGE : EXIT_SUCCESS;
	log_setup(debug ? LOG_DEBUG : LOG_INFO, LOG_FORMAT_TEXT);
	if (geteuid() != 0) {
		log_error("agent: must run as root: it loads BPF and sets the clock");
		return EXIT_FAILURE;
	}
	default_secret = xasprintf("%s/secret", runtime_dir);
	if (!opts.secret_file)
		opts.secret_file = default_secret;
	opts.runtime_dir = runtime_dir;
	if (!opts.virtio_port && !opts.vsock_port && !opts.socket) {
		log_error("agent: nothing to serve: give --virtio-port, --vsock-port or --socket");
		return EXIT_USAGE;
	}
	tune_process();
	if (agent_run(&opts, &err) < 0) {
		log_error("agent: %s", err.msg);
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
