#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "test/mock/driver_answer.h"

#include "lib/base/mem.h"

struct driver_answer {
	driver_done_fn done;
	void *arg;
	int code;
};

struct driver_answer *driver_answer_new(driver_done_fn done, void *arg, int code)
{
	struct driver_answer *a = xnew(struct driver_answer);

	*a = (struct driver_answer){ done, arg, code };
	return a;
}

static void on_turn(void *arg)
{
	struct driver_answer *a = arg;
	struct error err = ERROR_NONE;

	if (a->code)
		error_set(&err, a->code, "mock: %s", error_text(a->code));
	a->done(a->arg, &err);
	free(a);
}

void driver_answer_give(struct driver_answer *a, struct loop *loop)
{
	loop_post(loop, on_turn, a);
}
