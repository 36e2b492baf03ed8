/* hostagent.c - the hidden verb that limactl starts itself as, once per instance */
#include <errno.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "hostagent/agent.h"

#include "cmd/limactl/args.h"
#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "pidfile", 'p', FLAG_STRING, "FILE", "write our pid here", false },
	{ "socket", 0, FLAG_STRING, "FILE", "serve HTTP here", false },
	{ "guestagent", 0, FLAG_STRING, "FILE", "guest agent binary for the seed", false },
	{ "run-gui", 0, FLAG_BOOL, NULL, "accepted for compatibility", true },
	{ "progress", 0, FLAG_BOOL, NULL, "accepted for compatibility", true },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

/* A daemon keeps no directory busy: whoever started it may want to unmount it. Names
 * were given in full, and LIMA_HOME is resolved by now. */
static void leave_directory(const struct agent_options *o)
{
	if (*o->pid_file != '/' || *o->socket != '/' || (o->guest_agent && *o->guest_agent != '/'))
		return;
	if (chdir("/") < 0)
		log_warn("hostagent: chdir /: %s, ignoring", error_text(-errno));
}

static int run(const struct args *a)
{
	scoped_free char *home = NULL;
	struct error err = { 0 };
	struct agent_options opts = {
		.name = a->positional.items[0],
		.pid_file = args_str(a, "pidfile"),
		.socket = args_str(a, "socket"),
		.guest_agent = args_str(a, "guestagent"),
	};

	prctl(PR_SET_NAME, "limactl-ha");	/* else `exe`, of /proc/self/exe */
	heap_setup();
	log_setup(args_bool(a, "debug", false) ? LOG_TRACE : LOG_DEBUG, LOG_FORMAT_JSON);
	if (!opts.pid_file || !opts.socket) {
		log_write(LOG_FATAL, "hostagent: --pidfile and --socket are needed");
		return 1;
	}
	if (layout_lima_home(&home, &err) < 0) {
		log_write(LOG_FATAL, "hostagent: %s", err.msg);
		return 1;
	}
	opts.lima_home = home;
	leave_directory(&opts);
	if (agent_run(&opts, &err) < 0) {
		log_write(LOG_FATAL, "hostagent %s: %s", opts.name, err.msg);
		return 1;
	}
	return 0;
}

const struct verb verb_hostagent = {
	.name = "hostagent",
	.group = VERB_HIDDEN,
	.usage = "INSTANCE",
	.summary = "run the host agent of an instance",
	.flags = (const struct flag *const[]){ flags, NULL },
	.min_args = 1,
	.max_args = 1,
	.arg = ARG_INSTANCE,
	.run = run,
};
