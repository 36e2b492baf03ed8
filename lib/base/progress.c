#include "lib/base/progress.h"

#include <stddef.h>

#include "lib/base/mem.h"

void progress_update(const struct progress *p, const char *what, uint64_t done, uint64_t total)
{
	if (p && p->update)
		p->update(p->arg, what, done, total);
}

void progress_note(const struct progress *p, const char *fmt, ...)
{
	va_list ap;

	if (!p || !p->note)
		return;
	va_start(ap, fmt);
	scoped_free char *text = xvasprintf(fmt, ap);
	va_end(ap);
	p->note(p->arg, text);
}
