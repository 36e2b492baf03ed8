#include "hostagent/forward/latency.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

void latency_add(struct latency *l, uint64_t ns)
{
	/* 0 stands for "none": what took no time took one microsecond */
	l->us[l->n++ % LATENCY_KEPT] = (uint32_t)MAX(MIN(ns / 1000, (uint64_t)UINT32_MAX), 1ull);
}

uint32_t latency_last_us(const struct latency *l)
{
	return l->n ? l->us[(l->n - 1) % LATENCY_KEPT] : 0;
}

static int by_size(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

uint32_t latency_quantile_us(const struct latency *l, unsigned percent)
{
	size_t n = MIN(l->n, (unsigned long)LATENCY_KEPT);
	uint32_t sorted[LATENCY_KEPT];

	if (n == 0)
		return 0;
	memcpy(sorted, l->us, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), by_size);
	return sorted[(n * percent + 99) / 100 - 1]; /* nearest rank */
}
