#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/rule.h"
#include "hostagent/live_rules.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

static char dir[] = "/tmp/lima-live-rules-XXXXXX";

/* A rule's JSON of @len bytes. */
static char *rule_of(size_t len)
{
	static const char head[] = "{\"guestSocket\":\"/", tail[] = "\"}";
	char *text = xmalloc(len + 1);

	memset(text, 'x', len);
	memcpy(text, head, strlen(head));
	memcpy(text + len - strlen(tail), tail, sizeof(tail));
	return text;
}

static void collect(void *arg, unsigned id, const char *text)
{
	strv_addf(arg, "%u %s", id, text);
}

/* As many as there can be, of the longest text: the next host agent has them all. */
static void test_live_rules_the_longest_are_read_back(void **state)
{
	const unsigned first_id = (1 << 30) - RULE_LIVE_MAX;
	scoped_free char *path = xasprintf("%s/live-rules", dir);
	scoped_free char *text = rule_of(LIVE_RULE_MAX_BYTES);
	scoped_strv struct strv got = { 0 };
	struct error err = ERROR_NONE;
	struct live_rules *one, *next;
	struct loop loop;

	assert_int_equal(loop_init(&loop, &err), 0);
	one = live_rules_new(&loop, path);
	assert_int_equal(live_rules_check(text, &err), 0);
	for (unsigned i = 0; i < RULE_LIVE_MAX; i++)
		live_rules_add(one, first_id + i, text);
	loop_run(&loop);	/* until written */
	next = live_rules_new(&loop, path);
	live_rules_read(next, collect, &got);
	assert_int_equal(got.len, RULE_LIVE_MAX);
	for (unsigned i = 0; i < RULE_LIVE_MAX; i++) {
		scoped_free char *want = xasprintf("%u %s", first_id + i, text);

		assert_string_equal(got.items[i], want);
	}
	live_rules_close(next);
	live_rules_close(one);
	loop_run(&loop);
	assert_int_equal(loop_done(&loop), 0);
	assert_false(path_exists(path));
}

static void test_live_rules_longer_than_the_longest(void **state)
{
	scoped_free char *path = xasprintf("%s/live-rules", dir);
	scoped_free char *text = rule_of(LIVE_RULE_MAX_BYTES + 1);
	scoped_free char *lines = xasprintf("1 %s\n2 {\"guestPort\":80}\n", text);
	scoped_strv struct strv got = { 0 };
	struct error err = ERROR_NONE;
	struct live_rules *l;
	struct loop loop;

	assert_int_equal(live_rules_check(text, &err), -EMSGSIZE);
	assert_null(strchr(err.msg, '\n'));
	/* somebody's own: skipped, and the others count */
	assert_int_equal(path_write_file(path, lines, strlen(lines), 0600, &err), 0);
	assert_int_equal(loop_init(&loop, &err), 0);
	l = live_rules_new(&loop, path);
	live_rules_read(l, collect, &got);
	assert_int_equal(got.len, 1);
	assert_string_equal(got.items[0], "2 {\"guestPort\":80}");
	live_rules_close(l);
	assert_int_equal(loop_done(&loop), 0);
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_live_rules_the_longest_are_read_back),
		cmocka_unit_test(test_live_rules_longer_than_the_longest),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
