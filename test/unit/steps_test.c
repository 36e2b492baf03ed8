#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "hostagent/steps.h"
#include "lib/base/buf.h"
#include "lib/base/mem.h"

/* Steps a, b, c write what happens to them into one line. */
static struct loop loop;
static struct steps *steps;
static struct buf story;
static struct error outcome;
static bool went_down;
static char fails, degrades, hangs, unwanted;	/* the step that does, 0 none */
static bool stop_when_up;

static void told(void *ctx, const char *name, enum step_state state, uint64_t ms, const char *detail,
		 const char *error)
{
	static const char marks[] = { [STEP_STARTED] = '+', [STEP_PROGRESS] = '~',
				      [STEP_DONE] = '!', [STEP_FAILED] = '?' };

	buf_addf(&story, "%c%s ", marks[state], name);
}

static void run_step(struct steps *s, char name)
{
	struct error err = ERROR_NONE;

	error_set(&err, -EIO, "disk is gone");
	if (fails == name)
		steps_fail(s, &err);
	else if (degrades == name)
		steps_degrade(s, &err);
	else if (hangs != name)
		steps_done(s, "");
	else
		steps_stop(s, NULL);	/* Ctrl-C in the middle */
}

static void abort_step(void *ctx, struct steps *s)
{
	struct error err = ERROR_NONE;

	buf_add_str(&story, "abort ");
	error_set(&err, -ECANCELED, "stopped");
	steps_fail(s, &err);
}

#define STEP_FUNCTIONS(n)                                \
	static void run_##n(void *ctx, struct steps *s)      \
	{                                                    \
		run_step(s, #n[0]);                              \
	}                                                    \
	static void undo_##n(void *ctx, struct steps *s)     \
	{                                                    \
		buf_add_str(&story, "-" #n " ");                 \
		steps_undone(s);                                 \
	}                                                    \
	static bool wanted_##n(void *ctx)                    \
	{                                                    \
		return unwanted != #n[0];                        \
	}
STEP_FUNCTIONS(a)
STEP_FUNCTIONS(b)
STEP_FUNCTIONS(c)

static const struct step table[] = {
	{ "a", false, wanted_a, run_a, abort_step, undo_a },
	{ "b", false, wanted_b, run_b, abort_step, undo_b },
	{ "c", false, wanted_c, run_c, abort_step, undo_c },
};

static void up(void *ctx)
{
	buf_add_str(&story, "up ");
	if (stop_when_up)
		steps_stop(steps, NULL);
	else
		loop_stop(&loop);
}

static void down(void *ctx, const struct error *why)
{
	buf_add_str(&story, "down");
	outcome = *why;
	went_down = true;
}

static const char *play(void)
{
	struct steps_options o = { .table = table, .n = ARRAY_SIZE(table), .event = told, .up = up,
				   .down = down };

	buf_reset(&story);
	outcome = ERROR_NONE;
	went_down = false;
	assert_int_equal(loop_init(&loop, &outcome), 0);
	steps = steps_new(&loop, &o);
	steps_start(steps);
	loop_run(&loop);
	if (!went_down) {
		steps_stop(steps, NULL);
		loop_run(&loop);
	}
	assert_true(went_down);
	steps_free(steps);
	assert_int_equal(loop_done(&loop), 0);
	fails = degrades = hangs = unwanted = 0;
	stop_when_up = false;
	return buf_str(&story);
}

static void test_steps_up_and_down(void **state)
{
	stop_when_up = true;
	assert_string_equal(play(), "+a !a +b !b +c !c up -c -b -a down");
	assert_int_equal(outcome.code, 0);
}

static void test_steps_failure_undoes_what_was_done(void **state)
{
	fails = 'b';
	assert_string_equal(play(), "+a !a +b ?b -a down");
	assert_string_equal(outcome.msg, "b: disk is gone");
	fails = 'a';
	assert_string_equal(play(), "+a ?a down");
}

static void test_steps_stop_in_the_middle(void **state)
{
	hangs = 'c';
	assert_string_equal(play(), "+a !a +b !b +c abort -b -a down");
	assert_int_equal(outcome.code, 0);
}

static void test_steps_degraded_goes_on(void **state)
{
	degrades = 'b';
	stop_when_up = true;
	assert_string_equal(play(), "+a !a +b ?b +c !c up -c -b -a down");
}

static void test_steps_unwanted_is_not_undone(void **state)
{
	unwanted = 'b';
	stop_when_up = true;
	assert_string_equal(play(), "+a !a +c !c up -c -a down");
	unwanted = 'c';
	stop_when_up = true;
	assert_string_equal(play(), "+a !a +b !b up -b -a down");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_steps_up_and_down),
		cmocka_unit_test(test_steps_failure_undoes_what_was_done),
		cmocka_unit_test(test_steps_stop_in_the_middle),
		cmocka_unit_test(test_steps_degraded_goes_on),
		cmocka_unit_test(test_steps_unwanted_is_not_undone),
	};
	int rc = cmocka_run_group_tests(tests, NULL, NULL);

	buf_done(&story);
	return rc;
}
