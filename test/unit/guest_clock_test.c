/* What the guest does about its clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "guestagent/clock.h"

static const int64_t MS = 1000000;
static const int64_t T = 1700000000ll * 1000000000ll;

static void test_clock_plan(void **state)
{
	static const struct {
		int64_t ahead_ms;	/* guest minus host's stamp, as seen on arrival */
		int64_t rtt_ms;
		int synced;
		enum guest_clock_action action;
		int64_t drift_ms;
	} rows[] = {
		{ 0, 2, 0, GUEST_CLOCK_LEAVE, -1 },
		{ 51, 100, 0, GUEST_CLOCK_LEAVE, 1 },		/* half the trip is no drift */
		{ 90, 2, 0, GUEST_CLOCK_LEAVE, 89 },
		{ -90, 2, 0, GUEST_CLOCK_LEAVE, -91 },
		{ 301, 2, 0, GUEST_CLOCK_SLEW, 300 },
		{ -299, 2, 0, GUEST_CLOCK_SLEW, -300 },
		{ 301, 2, 1, GUEST_CLOCK_LEAVE, 300 },		/* chrony's business */
		{ 601, 2, 1, GUEST_CLOCK_STEP, 600 },
		{ -3600000, 2, 0, GUEST_CLOCK_STEP, -3600001 },	/* host slept an hour */
		{ 2000, 4000, 0, GUEST_CLOCK_LEAVE, 0 },
		{ 3000, 4000, 0, GUEST_CLOCK_LEAVE, 1000 },	/* within the uncertainty */
		{ 600, 0, 0, GUEST_CLOCK_LEAVE, 600 },		/* may be a late message */
		{ 2600, 0, 0, GUEST_CLOCK_STEP, 2600 },
		{ -600, 0, 0, GUEST_CLOCK_STEP, -600 },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct guest_clock_plan p = guest_clock_plan(T, rows[i].rtt_ms * MS,
							     T + rows[i].ahead_ms * MS,
							     rows[i].synced);

		if (p.action != rows[i].action || p.drift_ns != rows[i].drift_ms * MS)
			fail_msg("row %zu: action %d, drift %lld ms", i, (int)p.action,
				 (long long)(p.drift_ns / MS));
	}
}

static void test_clock_absurd_requests(void **state)
{
	static const struct {
		int64_t seconds;
		int32_t nanos;
	} rows[] = { { 0, 0 }, { -1, 0 }, { INT64_MAX, 0 }, { 1800000000, -1 }, { 1800000000, 1000000000 } };

	for (size_t i = 0; i <= sizeof(rows) / sizeof(rows[0]); i++) {
		Google__Protobuf__Timestamp t = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
		TimeSyncRequest req = TIME_SYNC_REQUEST__INIT;
		TimeSyncResponse res = TIME_SYNC_RESPONSE__INIT;

		if (i < sizeof(rows) / sizeof(rows[0])) {
			t.seconds = rows[i].seconds;
			t.nanos = rows[i].nanos;
			req.host_time = &t;
		}
		guest_clock_sync(&req, &res);
		assert_false(res.adjusted);
		assert_non_null(strstr(res.error, "absurd"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clock_plan),
		cmocka_unit_test(test_clock_absurd_requests),
	};

	return cmocka_run_group_tests_name("guest_clock", tests, NULL, NULL);
}
