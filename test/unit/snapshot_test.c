/* What may be a snapshot and what may be done with it, and snapshots of a real qcow2. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/disk.h"
#include "lib/store/snapshot.h"
#include "lib/store/snapshot_room.h"

/* A comma and a colon, which QEMU's option syntax takes for its own. */
static char tmp[] = "/tmp/lima,snap:x-XXXXXX";

static int setup(void **state)
{
	return mkdtemp(tmp) ? 0 : -1;
}

static int teardown(void **state)
{
	struct error err;

	return path_remove_tree(tmp, &err);
}

static void test_snapshot_tags(void **state)
{
	static const char *const good[] = { "a", "before-upgrade", "1a", "ü v1.0", "a,b=c" };
	static const char *const bad[] = { "", "-a", "12", "a\nb", "\x1b[2J", "\xff", "a\tb" };
	struct error err = ERROR_NONE;
	char text[SNAPSHOT_TAG_MAX_BYTES + 2] = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(snapshot_check_tag(good[i], &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(snapshot_check_tag(bad[i], &err), -EINVAL);
	memset(text, 'x', SNAPSHOT_TAG_MAX_BYTES);
	assert_int_equal(snapshot_check_tag(text, &err), 0);
	text[SNAPSHOT_TAG_MAX_BYTES] = 'x';
	assert_int_equal(snapshot_check_tag(text, &err), -EINVAL);
}

static void test_snapshot_what_may_be_done(void **state)
{
	struct snapshot items[] = { { .tag = (char *)"live", .memory_bytes = 7 },
				    { .tag = (char *)"off\x1b" } };
	struct snapshot_list list = { items, 2 };
	struct error err = ERROR_NONE;

	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_CREATE, "live", true, &err), -EEXIST);
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_CREATE, "new", true, &err), 0);
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_APPLY, "live", true, &err), 0);
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_DELETE, "new", false, &err), -ENOENT);
	assert_string_equal(err.msg, "there is no snapshot `new`; there are: live, off\\x1b");
	items[1].tag = (char *)"off";
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_APPLY, "off", true, &err), -ENOTSUP);
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_APPLY, "off", false, &err), 0);
	list.n = 0;
	assert_int_equal(snapshot_check_change(&list, SNAPSHOT_APPLY, "off", false, &err), -ENOENT);
	assert_string_equal(err.msg, "there is no snapshot `off`; there is none");
}

static void test_snapshot_json(void **state)
{
	struct snapshot s = { .tag = (char *)"a\x1b", .taken_s = 1795301048, .vm_clock_ms = 51200,
			      .memory_bytes = 181326771 };
	json_t *o = snapshot_json(&s);
	scoped_free char *text = json_dumps(o, JSON_COMPACT);

	assert_string_equal(text, "{\"tag\":\"a\\\\x1b\",\"date\":\"2026-11-21T22:44:08Z\","
				  "\"vmClockMillis\":51200,\"memoryBytes\":181326771}");
	json_decref(o);
	s.taken_s = INT64_MAX;	/* no date at all */
	json_decref(snapshot_json(&s));
}

static void test_snapshot_of_a_disk(void **state)
{
	scoped_free char *disk = xasprintf("%s/disk", tmp), *raw = xasprintf("%s/raw", tmp);
	struct snapshot_list list = { 0 };
	struct error err = ERROR_NONE;
	struct disk_info info;

	assert_int_equal(disk_create(disk, 8 << 20, &err), 0);
	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_CREATE, "a,b c", &err), 0);
	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_CREATE, "a,b c", &err), -EEXIST);
	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_CREATE, "second", &err), 0);
	assert_int_equal(snapshot_disk_list(disk, &list, &err), 0);
	assert_int_equal(list.n, 2);
	assert_string_equal(list.items[0].tag, "a,b c");
	assert_true(list.items[0].taken_s > 1700000000);
	assert_int_equal(list.items[0].memory_bytes, 0);
	snapshot_list_done(&list);

	/* back to before it grew */
	assert_int_equal(disk_grow(disk, 16 << 20, &err), 0);
	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_APPLY, "a,b c", &err), 0);
	assert_int_equal(disk_inspect(disk, &info, &err), 0);
	assert_int_equal(info.virtual_bytes, 8 << 20);

	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_DELETE, "a,b c", &err), 0);
	assert_int_equal(snapshot_disk_change(disk, SNAPSHOT_DELETE, "a,b c", &err), -ENOENT);
	assert_int_equal(snapshot_disk_list(disk, &list, &err), 0);
	assert_int_equal(list.n, 1);
	snapshot_list_done(&list);

	assert_int_equal(path_write_file(raw, "raw", 3, 0600, &err), 0);
	assert_int_equal(snapshot_disk_list(raw, &list, &err), -ENOTSUP);
	assert_int_equal(snapshot_disk_change(raw, SNAPSHOT_CREATE, "a", &err), -ENOTSUP);
}

static void test_snapshot_room(void **state)
{
	enum { BYTES = 32 << 20 };
	scoped_free char *touched = malloc(BYTES);
	struct error err = ERROR_NONE;

	memset(touched, getpid() & 0x7f, BYTES);
	assert_true(snapshot_room_needed(getpid(), UINT64_MAX) >= BYTES);
	assert_int_equal(snapshot_room_needed(getpid(), 1000), 1000);	/* never more than it has */
	assert_int_equal(snapshot_room_needed(-1, 1000), 0);
	assert_int_equal(snapshot_room_check("/proc", 1, &err), 0);	/* does not tell */
	assert_int_equal(snapshot_room_check(tmp, UINT64_C(1) << 62, &err), -ENOSPC);
	assert_non_null(strstr(err.msg, tmp));
	assert_int_equal(touched[BYTES - 1], getpid() & 0x7f);
}

/* Shared memory that was swapped out is in no number of the process. */
static void test_snapshot_room_of_a_host_that_swaps(void **state)
{
	static const char status[] = "Name:\tqemu\nVmRSS:\t  1024 kB\nVmSwap:\t       0 kB\n";
	static const char swaps[] = "MemTotal: 9 kB\nSwapTotal:    4096 kB\nSwapFree:     3072 kB\n";
	static const char none[] = "MemTotal: 9 kB\nSwapTotal:       0 kB\nSwapFree:        0 kB\n";

	assert_int_equal(snapshot_room_count(status, none, 8 << 20), 1 << 20);
	assert_int_equal(snapshot_room_count(status, swaps, 8 << 20), 2 << 20);
	assert_int_equal(snapshot_room_count(status, swaps, 1 << 20), 1 << 20);
	assert_int_equal(snapshot_room_count("", "", 8 << 20), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_snapshot_tags),
		cmocka_unit_test(test_snapshot_what_may_be_done),
		cmocka_unit_test(test_snapshot_json),
		cmocka_unit_test(test_snapshot_of_a_disk),
		cmocka_unit_test(test_snapshot_room),
		cmocka_unit_test(test_snapshot_room_of_a_host_that_swaps),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
