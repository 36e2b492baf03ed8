/* clock.h - the two clocks and how times are written */
#pragma once

#include <stdint.h>
#include <time.h>

/* Monotonic, milliseconds / nanoseconds. For intervals and deadlines. */
uint64_t clock_mono_ms(void);
uint64_t clock_mono_ns(void);
/* What the calling thread used of a CPU so far, nanoseconds. */
uint64_t clock_thread_cpu_ns(void);

enum { CLOCK_RFC3339_SIZE = sizeof("2026-01-02T15:04:05.000000000+00:00") };

/* Wall clock now, RFC 3339 with nanoseconds in UTC, written to and returned as @out. */
const char *clock_rfc3339_now(char out[CLOCK_RFC3339_SIZE]);

/* Reads what clock_rfc3339_now writes, and Go's shape with an offset such as
 * +01:00. 0, or -EINVAL. */
int clock_rfc3339_parse(const char *s, struct timespec *ret);
