#include "lib/base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static uint64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t clock_mono_ns(void)
{
	return read_ns(CLOCK_MONOTONIC);
}

uint64_t clock_thread_cpu_ns(void)
{
	return read_ns(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t clock_mono_ms(void)
{
	return clock_mono_ns() / 1000000u;
}

const char *clock_rfc3339_now(char out[CLOCK_RFC3339_SIZE])
{
	struct timespec ts;
	struct tm tm;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = strftime(out, CLOCK_RFC3339_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out + n, CLOCK_RFC3339_SIZE - n, ".%09ldZ", ts.tv_nsec);
	return out;
}

int clock_rfc3339_parse(const char *s, struct timespec *ret)
{
	struct tm tm = { 0 };
	const char *p = strptime(s, "%Y-%m-%dT%H:%M:%S", &tm);
	long nsec = 0, offset_s = 0;

	if (!p)
		return -EINVAL;
	if (*p == '.') {
		long digit = 100000000;

		for (p++; *p >= '0' && *p <= '9'; p++, digit /= 10)
			nsec += (*p - '0') * digit;
	}
	if (*p == '+' || *p == '-') {
		unsigned h, m;

		if (sscanf(p + 1, "%2u:%2u", &h, &m) != 2 || h > 23 || m > 59)
			return -EINVAL;
		offset_s = (long)(h * 3600 + m * 60) * (*p == '-' ? -1 : 1);
	} else if (strcmp(p, "Z") != 0) {
		return -EINVAL;
	}
	ret->tv_sec = timegm(&tm) - offset_s;
	ret->tv_nsec = nsec;
	return 0;
}
