#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/edit_flags.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/edit.h"

static const char yaml[] = "# kept\n"
			   "images:\n"
			   "- location: /i.qcow2\n"
			   "- location: /min.qcow2\n"
			   "  variant: minimal\n"
			   "cpus: 1  # why one\n"
			   "disk: 20GiB\n"
			   "mounts:\n"
			   "- location: /srv/x\n"
			   "message: '{{.Param.COLOR}}'\n"
			   "param:\n"
			   "  COLOR: red\n";

static void apply(const char *const *argv, struct buf *y, int want, struct error *err)
{
	scoped_args struct args a = { 0 };
	int argc = 0;

	while (argv[argc])
		argc++;
	buf_add_str(y, yaml);
	assert_int_equal(args_parse(&verb_create, argc, (char **)argv, &a, err), 0);
	assert_int_equal(edit_flags_apply(&a, y, err), want);
}

#define ARGV(...) (const char *const[]){ __VA_ARGS__, NULL }

static void assert_value(const struct buf *y, const char *path, const char *want)
{
	scoped_free char *have = NULL;
	struct error err = { 0 };

	assert_int_equal(edit_get(y, path, &have, &err), 0);
	assert_non_null(have);
	assert_string_equal(have, want);
}

static void test_edit_flags_reach_their_keys(void **state)
{
	static const struct {
		const char *flag, *path, *value;
	} cases[] = {
		{ "--cpus=08", "cpus", "8" },
		{ "--memory=1.5", "memory", "1.5GiB" },
		{ "--disk=0x10", "disk", "16GiB" },
		{ "--plain=1", "plain", "true" },
		{ "--arch=aarch64", "arch", "aarch64" },
		{ "--ssh-port=2222", "ssh.localPort", "2222" },
		{ "--shell=/bin/zsh", "user.shell", "/bin/zsh" },
		{ "--param=COLOR=a: b", "param.COLOR", "a: b" },
		{ "--dns=9.9.9.9", "hostResolver.enabled", "false" },
		{ "--dns=9.9.9.9,1.1.1.1", "dns", "[9.9.9.9, 1.1.1.1]" },
		{ "--mount-type=9p", "mountType", "9p" },
		{ "--mount-inotify", "mountInotify", "true" },
		{ "--mount-writable", "mounts[0].writable", "true" },
		{ "--mount-only=/tmp", "mounts", "[{location: /tmp, writable: false}]" },
		{ "--mount-none", "mounts", "[]" },
		{ "--network=lima:user-v2", "networks[0].lima", "user-v2" },
		{ "--network=vzNAT", "networks[0].vzNAT", "true" },
		{ "--network=lima:a,lima:a,lima:b", "networks", "[{lima: a}, {lima: b}]" },
		{ "--vm-type=qemu", "vmType", "qemu" },
		{ "--video", "video.display", "default" },
		{ "--video=false", "video.display", "none" },
		{ "--nested-virt", "nestedVirtualization", "true" },
		{ "--rosetta", "vmOpts.vz.rosetta.enabled", "true" },
		{ "--containerd=user+system", "containerd", "{user: true, system: true}" },
		{ "--containerd=none", "containerd.user", "false" },
		{ "--audio-device=alsa", "audio.device", "alsa" },
		{ "--image-variant=minimal", "images", "[{location: /min.qcow2, variant: minimal}]" },
		{ "--port-forward=8080:80,static=true", "portForwards[0].hostPort", "8080" },
		{ "--set=.user.name = \"x\"", "user.name", "x" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_buf struct buf y = { 0 };
		struct error err = { 0 };

		apply(ARGV(cases[i].flag), &y, 0, &err);
		assert_value(&y, cases[i].path, cases[i].value);
		assert_non_null(strstr(buf_str(&y), "# kept"));
	}
}

static void test_edit_flags_mounts_come_first_and_split(void **state)
{
	scoped_buf struct buf y = { 0 };
	struct error err = { 0 };

	apply(ARGV("--mount", "/tmp:w,/etc", "--mount=/var"), &y, 0, &err);
	assert_value(&y, "mounts[0].location", "/var");
	assert_value(&y, "mounts[1].location", "/etc");
	assert_value(&y, "mounts[2].location", "/tmp");
	assert_value(&y, "mounts[2].writable", "true");
	assert_value(&y, "mounts[3].location", "/srv/x");
}

static void test_edit_flags_about_all_mounts_exclude_each_other(void **state)
{
	static const char *const cases[][2] = {
		{ "--mount=/tmp", "--mount-only=/tmp" },
		{ "--mount=/tmp", "--mount-none" },
		{ "--mount-only=/tmp", "--mount-none" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_buf struct buf y = { 0 };
		struct error err = { 0 };

		apply(ARGV(cases[i][0], cases[i][1]), &y, -EINVAL, &err);
		assert_non_null(strstr(err.msg, "contradict each other"));
	}
}

static void test_edit_flags_mistakes_name_the_flag(void **state)
{
	static const struct {
		const char *flag, *part;
	} cases[] = {
		{ "--param=SIZE=1", "--param SIZE=1" },
		{ "--param=COLOR", "write NAME=VALUE" },
		{ "--port-forward=80", "--port-forward 80" },
		{ "--port-forward=80:80,static=maybe", "static=true" },
		{ "--mount=/no/such/dir", "--mount /no/such/dir: no such file" },
		{ "--mount-only=/tmp,/no/such", "--mount-only /no/such: no such file" },
		{ "--containerd=podman", "write user, system" },
		{ "--network=user-v2", "write lima:NAME" },
		{ "--image-variant=tiny", "--image-variant tiny: no image" },
		{ "--set=nonsense", "--set nonsense" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_buf struct buf y = { 0 };
		struct error err = { 0 };
		scoped_args struct args a = { 0 };
		const char *argv[] = { cases[i].flag };

		buf_add_str(&y, yaml);
		assert_int_equal(args_parse(&verb_create, 1, (char **)argv, &a, &err), 0);
		assert_true(edit_flags_apply(&a, &y, &err) < 0);
		assert_non_null(strstr(err.msg, cases[i].part));
		assert_string_equal(buf_str(&y), yaml);
	}
}

/* An instance on disk, changed by `start` flags. */
static int change_instance(const char *const *argv, char **ret_after, struct error *err)
{
	char home[] = "/tmp/edit-flags.XXXXXX";
	scoped_instance struct instance *inst = NULL;
	scoped_args struct args a = { 0 };
	scoped_buf struct buf after = { 0 };
	struct error ignored = { 0 };
	int argc = 0, rc;

	while (argv[argc])
		argc++;
	assert_non_null(mkdtemp(home));
	scoped_free char *path = xasprintf("%s/t/lima.yaml", home);
	assert_int_equal(instance_create(home, "t", yaml, sizeof(yaml) - 1, err), 0);
	assert_int_equal(instance_inspect(home, "t", &inst, err), 0);
	assert_non_null(inst->config);
	assert_int_equal(args_parse(&verb_start, argc, (char **)argv, &a, err), 0);
	rc = edit_flags_apply_to_instance(&a, inst, err);
	assert_int_equal(path_read_file(path, 1 << 20, &after, &ignored), 0);
	assert_int_equal(path_remove_tree(home, &ignored), 0);
	*ret_after = buf_steal_str(&after);
	return rc;
}

static void test_edit_flags_on_an_instance_keep_its_comments(void **state)
{
	scoped_free char *after = NULL;
	struct error err = { 0 };

	assert_int_equal(change_instance(ARGV("--cpus", "3", "--plain"), &after, &err), 0);
	assert_non_null(strstr(after, "cpus: 3  # why one\n"));
	assert_null(strstr(after, "plain")); /* for new instances only */
}

static void test_edit_flags_that_would_break_an_instance_change_nothing(void **state)
{
	scoped_free char *small = NULL, *broken = NULL;
	struct error err = { 0 };

	assert_true(change_instance(ARGV("--disk", "10"), &small, &err) < 0);
	assert_non_null(strstr(err.msg, "cannot shrink"));
	assert_string_equal(small, yaml);
	assert_true(change_instance(ARGV("--ssh-port", "70000"), &broken, &err) < 0);
	assert_non_null(strstr(err.msg, "ssh.localPort"));
	assert_string_equal(broken, yaml);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_edit_flags_reach_their_keys),
		cmocka_unit_test(test_edit_flags_mounts_come_first_and_split),
		cmocka_unit_test(test_edit_flags_about_all_mounts_exclude_each_other),
		cmocka_unit_test(test_edit_flags_mistakes_name_the_flag),
		cmocka_unit_test(test_edit_flags_on_an_instance_keep_its_comments),
		cmocka_unit_test(test_edit_flags_that_would_break_an_instance_change_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
