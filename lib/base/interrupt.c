#include "lib/base/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t pending;

static void on_signal(int sig)
{
	if (pending && sig == SIGINT)
		_exit(128 + SIGINT);
	pending = sig;
}

void interrupt_install(void)
{
	struct sigaction sa = { .sa_handler = on_signal }; /* no SA_RESTART, on purpose */
	struct sigaction before;

	sigemptyset(&sa.sa_mask);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, NULL, &before);
	if (before.sa_handler != SIG_IGN) /* nohup */
		sigaction(SIGHUP, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

bool interrupt_pending(void)
{
	return pending != 0;
}

int interrupt_signal(void)
{
	return pending;
}

int interrupt_check(struct error *err)
{
	return pending ? error_set(err, -ECANCELED, "interrupted") : 0;
}
