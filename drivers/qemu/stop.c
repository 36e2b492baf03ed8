#include "drivers/qemu/stop.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "drivers/qemu/run_state.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum stop_phase { STOP_POWERDOWN, STOP_QUIT, STOP_TERM, STOP_KILL, STOP_OVER };

enum { QMP_REPLY_MS = 5000 };

/* design: Lima gives 3 min to the button and then kills (lima-yaml.md §9). 2 min
 * are beyond systemd's 90 s for its slowest service. */
const struct stop_waits stop_waits_default = {
	.powerdown_ms = 120 * 1000,
	.ignored_ms = 45 * 1000,
	.again_ms = 1000,
	.quit_ms = 5000,
	.term_ms = 5000,
	.kill_ms = 10 * 1000,
};

struct stop {			/* owner: the driver. freed when timer is closed and no
				 * QMP call of ours is in flight */
	uv_timer_t timer;
	unsigned refs;
	bool closing;
	struct stop_target t;
	struct stop_waits waits;
	enum stop_phase phase;
	uint64_t since_ms;	/* of this phase, uv_now() time */
	bool begun;		/* the first step is taken from the loop: failed() must
				 * not run before the owner has our address */
	bool agent_was_open, obeyed;
	bool may_press;		/* QEMU was asked, and the guest is one that may run */
};

static void enter(struct stop *s, enum stop_phase phase);

static void stop_unref(struct stop *s)
{
	if (--s->refs == 0)
		free(s);
}

static void on_closed(uv_handle_t *h)
{
	stop_unref(h->data);
}

static void say(struct stop *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct stop *s, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *text = xvasprintf(fmt, ap);
	va_end(ap);
	s->t.say(s->t.arg, text);
}

struct call {			/* which phase a QMP reply belongs to */
	struct stop *stop;
	enum stop_phase phase;
	void (*then)(struct stop *s, json_t *ret);	/* NULL: nothing */
};

static void on_reply(void *arg, json_t *ret, const struct error *err)
{
	struct call *c = arg;
	struct stop *s = c->stop;
	bool ours = !s->closing && s->phase == c->phase;

	/* QEMU closes the connection on `quit`, perhaps before it answered */
	if (ours && err->code && err->code != -ECANCELED && err->code != -ECONNRESET) {
		say(s, "%s; going on", err->msg);
		enter(s, c->phase + 1);
	} else if (ours && !err->code && c->then) {
		c->then(s, ret);
	}
	free(c);
	stop_unref(s);
}

static int call(struct stop *s, const char *command, void (*then)(struct stop *s, json_t *ret))
{
	struct call *c;

	if (!*s->t.qmp)
		return -ENOTCONN;
	c = xnew(struct call);
	c->stop = s;
	c->phase = s->phase;
	c->then = then;
	s->refs++;
	qmp_call(*s->t.qmp, command, NULL, QMP_REPLY_MS, on_reply, c);
	return 0;
}

/* One that stands still hears no button. But not everyone may be let run: the disk of
 * one with half of a snapshot's memory is the snapshot's by now, and stays that. */
static void press_if_it_may_run(struct stop *s, json_t *status)
{
	const char *why = run_state_forbids(status);

	if (why) {
		say(s, "%s and must not run; ending QEMU without it", why);
		enter(s, STOP_QUIT);
		return;
	}
	if (!s->may_press && !json_is_true(json_object_get(status, "running")))
		call(s, "cont", NULL);
	s->may_press = true;
	call(s, "system_powerdown", NULL);
}

static int press_button(struct stop *s)
{
	return s->may_press ? call(s, "system_powerdown", NULL)
			    : call(s, "query-status", press_if_it_may_run);
}

static int quit(struct stop *s)
{
	return call(s, "quit", NULL);
}

static int send_signal(struct stop *s, int sig)
{
	int rc = process_signal(s->t.process, sig);

	return rc == -ESRCH ? 0 : rc;	/* gone: the owner is about to be told */
}

static int send_term(struct stop *s)
{
	return send_signal(s, SIGTERM);
}

static int send_kill(struct stop *s)
{
	return send_signal(s, SIGKILL);
}

static const struct {
	const char *name;
	int (*act)(struct stop *s);	/* negative: cannot be done */
	size_t wait_at;			/* in struct stop_waits */
} steps[] = {
	[STOP_POWERDOWN] = { "power button", press_button, offsetof(struct stop_waits, powerdown_ms) },
	[STOP_QUIT] = { "quit", quit, offsetof(struct stop_waits, quit_ms) },
	[STOP_TERM] = { "SIGTERM", send_term, offsetof(struct stop_waits, term_ms) },
	[STOP_KILL] = { "SIGKILL", send_kill, offsetof(struct stop_waits, kill_ms) },
};
static_assert(ARRAY_SIZE(steps) == STOP_OVER, "a step for every phase");

static unsigned wait_ms(const struct stop *s)
{
	if (s->phase == STOP_POWERDOWN && s->agent_was_open && !s->obeyed)
		return s->waits.ignored_ms;
	return *(const unsigned *)((const char *)&s->waits + steps[s->phase].wait_at);
}

static void arm(struct stop *s);

static void on_timer(uv_timer_t *timer)
{
	struct stop *s = timer->data;
	uint64_t waited = uv_now(timer->loop) - s->since_ms;

	if (s->closing || s->phase == STOP_OVER)
		return;
	if (!s->begun) {
		s->begun = true;
		enter(s, s->phase);
		return;
	}
	if (!*s->t.agent_open)
		s->obeyed = s->agent_was_open;
	if (waited >= wait_ms(s)) {
		if (s->phase == STOP_POWERDOWN)
			say(s, "the guest %s within %u s; ending QEMU without it",
			    s->agent_was_open && !s->obeyed ? "ignores the power button and did not stop"
							    : "did not power off",
			    wait_ms(s) / 1000);
		else
			say(s, "QEMU did not end by %s within %u s", steps[s->phase].name,
			    wait_ms(s) / 1000);
		enter(s, s->phase + 1);
		return;
	}
	if (s->phase == STOP_POWERDOWN && !s->obeyed && press_button(s) < 0) {
		enter(s, STOP_QUIT);
		return;
	}
	arm(s);
}

static void arm(struct stop *s)
{
	uint64_t waited = uv_now(s->timer.loop) - s->since_ms;
	uint64_t left = waited < wait_ms(s) ? wait_ms(s) - waited : 0;

	if (s->phase == STOP_POWERDOWN)
		left = MIN(left, s->waits.again_ms);
	uv_timer_start(&s->timer, on_timer, left, 0);
}

static void enter(struct stop *s, enum stop_phase phase)
{
	struct error err = ERROR_NONE;

	for (s->phase = phase; s->phase < STOP_OVER; s->phase++) {
		log_info("stop: %s, pid %d", steps[s->phase].name, process_pid(s->t.process));
		uv_update_time(s->timer.loop);
		s->since_ms = uv_now(s->timer.loop);
		if (steps[s->phase].act(s) >= 0) {
			arm(s);
			return;
		}
	}
	uv_timer_stop(&s->timer);
	error_set(&err, -ETIMEDOUT, "stop: QEMU (pid %d) does not end, not even by SIGKILL: the "
		  "kernel holds it, see /proc/%d/stack", process_pid(s->t.process),
		  process_pid(s->t.process));
	s->t.failed(s->t.arg, &err);
}

struct stop *stop_begin(const struct stop_target *target, const struct stop_waits *waits,
			bool force)
{
	struct stop *s = xnew(struct stop);

	s->t = *target;
	s->waits = *waits;
	s->agent_was_open = *target->agent_open;
	uv_timer_init(&target->loop->uv, &s->timer);
	s->timer.data = s;
	s->refs = 1;
	s->phase = force ? STOP_QUIT : STOP_POWERDOWN;
	uv_timer_start(&s->timer, on_timer, 0, 0);
	return s;
}

void stop_force(struct stop *s)
{
	if (s->phase >= STOP_QUIT)
		return;
	s->begun = true;
	enter(s, STOP_QUIT);
}

void stop_free(struct stop *s)
{
	if (s->closing)
		return;
	s->closing = true;
	uv_close((uv_handle_t *)&s->timer, on_closed);
}
