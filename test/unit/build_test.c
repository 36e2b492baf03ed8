#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/store/build_impl.h"

static char *key_of(const char *location)
{
	struct build_spec s;
	struct error err = { 0 };
	scoped_buf struct buf inputs = { 0 };
	char key[DIGEST_TEXT_SIZE];

	if (build_spec_parse(location, arch_host(), &s, &err) < 0 ||
	    build_spec_inputs(&s, &inputs, &err) < 0 || build_spec_key(&inputs, key, &err) < 0)
		fail_msg("%s: %s", location, err.msg);
	build_spec_done(&s);
	return xstrdup(key);
}

static void assert_same_key(bool same, const char *a, const char *b)
{
	scoped_free char *key_a = key_of(a), *key_b = key_of(b);

	assert_int_equal(strlen(key_a), 64);
	if (same != !!streq(key_a, key_b))
		fail_msg("%s and %s: %s and %s", a, b, key_a, key_b);
}

static void test_build_location(void **state)
{
	assert_true(build_is_location("mmdebstrap:trixie"));
	assert_false(build_is_location("https://example.com/mmdebstrap:trixie"));
}

static void test_build_parse(void **state)
{
	struct build_spec s;
	struct error err = { 0 };

	assert_int_equal(build_spec_parse("mmdebstrap:bookworm?include=git,g++,git", arch_host(), &s,
					  &err), 0);
	assert_string_equal(s.suite, "bookworm");
	assert_true(strv_contains(&s.packages, "g++"));
	assert_true(strv_contains(&s.packages, "openssh-server"));
	for (size_t i = 1; i < s.packages.len; i++)
		assert_true(strcmp(s.packages.items[i - 1], s.packages.items[i]) < 0);
	build_spec_done(&s);
}

static void test_build_parse_refuses(void **state)
{
	static const struct {
		const char *location, *says;
	} cases[] = {
		{ "mmdebstrap:", "is not a suite" },
		{ "mmdebstrap:jessie", "`jessie` is not a suite" },
		{ "mmdebstrap:../x", "is not a suite" },
		{ "mmdebstrap:trixie?packages=x", "only include=" },
		{ "mmdebstrap:trixie?include=x;rm", "`x;rm` is no name" },
		{ "mmdebstrap:trixie?include=--setup-hook=x", "is no name of a package" },
		{ "mmdebstrap:trixie?include=Git", "`Git` is no name" },
	};
	struct build_spec s;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct error err = { 0 };

		assert_int_equal(build_spec_parse(cases[i].location, arch_host(), &s, &err), -EINVAL);
		if (!strstr(err.msg, cases[i].says))
			fail_msg("%s: %s", cases[i].location, err.msg);
	}
}

static void test_build_foreign_arch(void **state)
{
	struct build_spec s;
	struct error err = { 0 };
	enum arch other = arch_host() == ARCH_S390X ? ARCH_RISCV64 : ARCH_S390X;

	assert_int_equal(build_spec_parse("mmdebstrap:trixie", other, &s, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, arch_name(other)));
}

static void test_build_key(void **state)
{
	unsetenv("LIMA_DEBIAN_MIRROR");
	assert_same_key(true, "mmdebstrap:trixie", "mmdebstrap:trixie");
	assert_same_key(true, "mmdebstrap:trixie?include=git,gcc", "mmdebstrap:trixie?include=gcc,git,git");
	assert_same_key(true, "mmdebstrap:trixie?include=curl", "mmdebstrap:trixie");
	assert_same_key(false, "mmdebstrap:trixie?include=git", "mmdebstrap:trixie");
	assert_same_key(false, "mmdebstrap:bookworm", "mmdebstrap:trixie");
}

static void test_build_key_follows_mirror(void **state)
{
	scoped_free char *before = key_of("mmdebstrap:trixie"), *after = NULL;

	setenv("LIMA_DEBIAN_MIRROR", "http://mirror.example/debian", 1);
	after = key_of("mmdebstrap:trixie");
	unsetenv("LIMA_DEBIAN_MIRROR");
	assert_string_not_equal(before, after);
}

static void test_build_module_order(void **state)
{
	static const char deps[] =
		"kernel/virtio/virtio.ko.xz:\n"
		"kernel/virtio/virtio_ring.ko.xz:\n"
		"kernel/net/net_failover.ko.xz: kernel/net/failover.ko.xz\n"
		"kernel/net/failover.ko.xz:\n"
		"kernel/net/virtio-net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko.xz "
		"kernel/virtio/virtio.ko.xz kernel/virtio/virtio_ring.ko.xz\n"
		"kernel/block/virtio_blk.ko.xz: kernel/virtio/virtio.ko.xz kernel/virtio/virtio_ring.ko.xz\n";
	static const char *const wanted[] = { "virtio_blk", "ext4", "virtio_net", NULL };
	scoped_strv struct strv order = { 0 };
	scoped_free char *joined = NULL;

	build_initrd_order(deps, wanted, &order);
	joined = strv_join(&order, " ");
	assert_string_equal(joined,
			    "kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz "
			    "kernel/block/virtio_blk.ko.xz kernel/net/failover.ko.xz "
			    "kernel/net/net_failover.ko.xz kernel/net/virtio-net.ko.xz");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_build_location),
		cmocka_unit_test(test_build_parse),
		cmocka_unit_test(test_build_parse_refuses),
		cmocka_unit_test(test_build_foreign_arch),
		cmocka_unit_test(test_build_key),
		cmocka_unit_test(test_build_key_follows_mirror),
		cmocka_unit_test(test_build_module_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
