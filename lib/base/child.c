#include "lib/base/child.h"

void child_result_done(struct child_result *r)
{
	buf_done(&r->out);
	buf_done(&r->err);
}
