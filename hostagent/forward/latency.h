/* latency.h - how long something took lately
 *
 * The last 64 figures, of which quantiles are made when somebody asks.
 */
#pragma once

#include <stdint.h>

enum { LATENCY_KEPT = 64 };

struct latency { /* zeroed: none yet */
	uint32_t us[LATENCY_KEPT];
	unsigned long n; /* ever; us[n % 64] is the next to go */
};

void latency_add(struct latency *l, uint64_t ns);
uint32_t latency_last_us(const struct latency *l); /* 0: none yet */
/* @percent: 1..100, of those kept; 0: none yet. */
uint32_t latency_quantile_us(const struct latency *l, unsigned percent);
