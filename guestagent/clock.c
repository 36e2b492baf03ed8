#include "guestagent/clock.h"

#include <errno.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

#include "lib/base/error.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

static const int64_t MS = 1000000, SECOND = 1000000000;
static const int64_t YEAR_2020_S = 1577836800, YEAR_2200_S = 7258118400;

struct guest_clock_plan guest_clock_plan(int64_t host_ns, int64_t round_trip_ns, int64_t now_ns,
					 bool ntp_synced)
{
	struct guest_clock_plan plan = { .action = GUEST_CLOCK_LEAVE };
	bool unknown = round_trip_ns <= 0;
	int64_t unsure_ns = unknown ? 0 : round_trip_ns / 2;
	int64_t drift = now_ns - host_ns - unsure_ns;
	int64_t size = drift < 0 ? -drift : drift;

	plan.drift_ns = drift;
	if (size <= MAX(100 * MS, unsure_ns))
		return plan;
	if (unknown && drift > 0 && drift < 2 * SECOND)
		return plan;
	if (size > 500 * MS)
		plan.action = GUEST_CLOCK_STEP;
	else if (!ntp_synced)
		plan.action = GUEST_CLOCK_SLEW;
	return plan;
}

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * SECOND + ts.tv_nsec;
}

static bool kernel_is_synced(void)
{
	struct timex tx = { 0 };

	return adjtimex(&tx) >= 0 && !(tx.status & STA_UNSYNC);
}

static int slew(int64_t drift_ns)
{
	int64_t us = -drift_ns / 1000;
	struct timeval delta = { .tv_sec = us / 1000000, .tv_usec = us % 1000000 };

	return adjtime(&delta, NULL) < 0 ? -errno : 0;
}

static int step(int64_t drift_ns)
{
	int64_t to = now_ns() - drift_ns;
	struct timespec ts = { .tv_sec = to / SECOND, .tv_nsec = to % SECOND };

	return clock_settime(CLOCK_REALTIME, &ts) < 0 ? -errno : 0;
}

static bool time_is_sane(const Google__Protobuf__Timestamp *t)
{
	return t && t->seconds >= YEAR_2020_S && t->seconds < YEAR_2200_S && t->nanos >= 0 &&
	       t->nanos < SECOND;
}

void guest_clock_sync(const TimeSyncRequest *req, TimeSyncResponse *res)
{
	static char text[ERROR_MSG_SIZE];
	struct error err = ERROR_NONE;
	struct guest_clock_plan plan;
	int rc = 0;

	if (!time_is_sane(req->host_time)) {
		error_set(&err, -EINVAL, "clock: the host's time is missing or absurd");
		goto out;
	}
	plan = guest_clock_plan(req->host_time->seconds * SECOND + req->host_time->nanos,
				req->round_trip_ns, now_ns(), kernel_is_synced());
	res->drift_ms = plan.drift_ns / MS;
	if (plan.action == GUEST_CLOCK_STEP)
		rc = step(plan.drift_ns);
	else if (plan.action == GUEST_CLOCK_SLEW)
		rc = slew(plan.drift_ns);
	if (rc < 0)
		error_sys(&err, rc, "clock: set");
	else
		res->adjusted = plan.action != GUEST_CLOCK_LEAVE;
	if (res->adjusted)
		log_info("clock: was %lld ms off, %s", (long long)res->drift_ms,
			 plan.action == GUEST_CLOCK_STEP ? "stepped" : "slewing");
out:
	memcpy(text, err.msg, sizeof(text));
	res->error = text;
}
