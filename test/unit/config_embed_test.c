#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/embed.h"

static char dir[] = "/tmp/config_embed_test.XXXXXX";
static struct strv template_dirs;

static void put(const char *name, const char *text)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);
	struct error err = ERROR_NONE;

	assert_int_equal(path_write_file(path, text, strlen(text), 0600, &err), 0);
}

static int setup(void **state)
{
	scoped_free char *sub = NULL;
	struct error err = ERROR_NONE;

	if (!mkdtemp(dir))
		return -1;
	sub = xasprintf("%s/_images", dir);
	path_mkdir_all(sub, 0700, &err);
	strv_add(&template_dirs, dir);
	return 0;
}

static int teardown(void **state)
{
	struct error err = ERROR_NONE;

	strv_done(&template_dirs);
	return path_remove_tree(dir, &err);
}

static int fetch(void *arg, const char *url, struct buf *ret, struct error *err)
{
	if (!streq(url, "https://example.test/d/base.yaml"))
		return error_set(err, -ENOENT, "%s: 404", url);
	buf_add_str(ret, "cpus: 7\n");
	return 0;
}

static int embed(const char *text, const char *base_yaml, char **ret, struct error *err)
{
	const struct config_embed_options opt = { .template_dirs = &template_dirs,
						  .base_yaml = base_yaml, .fetch = fetch };
	scoped_free char *self = xasprintf("%s/self.yaml", dir);
	scoped_buf struct buf b = { 0 };
	int rc;

	buf_add_str(&b, text);
	rc = config_embed(&b, self, &opt, err);
	*ret = xstrdup(buf_str(&b));
	return rc;
}

static void assert_embeds(const char *text, const char *want)
{
	scoped_free char *got = NULL;
	struct error err = ERROR_NONE;

	if (embed(text, NULL, &got, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(got, want);
}

static void assert_refuses(const char *text, const char *want)
{
	scoped_free char *got = NULL;
	struct error err = ERROR_NONE;

	assert_true(embed(text, NULL, &got, &err) < 0);
	if (!strstr(err.msg, want))
		fail_msg("`%s` does not say `%s`", err.msg, want);
	assert_string_equal(got, text);	/* nothing half-made */
}

static void test_embed_nothing_to_do(void **state)
{
	assert_embeds("# c\ncpus: 2   # two\n", "# c\ncpus: 2   # two\n");
}

static void test_embed_only_base_is_its_bytes(void **state)
{
	put("f.yaml", "#  odd   spacing\ncpus:   2\n\n\nimages:   []   # x\n");
	assert_embeds("base: f.yaml\n", "#  odd   spacing\ncpus:   2\n\n\nimages:   []   # x\n");
	assert_embeds("base: [template:f]\n", "#  odd   spacing\ncpus:   2\n\n\nimages:   []   # x\n");
}

static void test_embed_merges_below_with_comments(void **state)
{
	put("_images/x.yaml", "# of the images\nimages:\n# first\n- location: /base.img\n"
			      "  arch: x86_64 # intel\ncpus: 9\n");
	put("b2.yaml", "images:\n- location: /b2.img\nmessage: |\n  from b2\n\n  end\n"
		       "ssh:\n  # agent\n  forwardAgent: true\n  localPort: 1\n");
	assert_embeds("# mine\nbase:\n- template:_images/x\n- b2.yaml\n\nimages:\n- location: /own.img\n"
		      "ssh:\n    localPort: 5\ncpus: 2 # few\n",
		      "# mine\n\nimages:\n- location: /own.img\n# first\n- location: /base.img\n"
		      "  arch: x86_64 # intel\n- location: /b2.img\nssh:\n    localPort: 5\n"
		      "    # agent\n    forwardAgent: true\ncpus: 2 # few\n"
		      "message: |\n  from b2\n\n  end\n");
}

static void test_embed_lists_that_come_first(void **state)
{
	put("p1.yaml", "provision:\n- script: p1a\n- script: p1b\nprobes:\n- script: '#!1'\n");
	put("p2.yaml", "provision:\n- script: p2\n");
	assert_embeds("base: [p1.yaml, p2.yaml]\nprovision:\n- script: own\n",
		      "provision:\n- script: p2\n- script: p1a\n- script: p1b\n- script: own\n"
		      "probes:\n- script: '#!1'\n");
}

static void test_embed_dns_versions_union(void **state)
{
	put("v.yaml", "minimumLimaVersion: 2.0.0\ndns: [9.9.9.9]\nmountTypesUnsupported: [9p, wsl2]\n"
		      "vmOpts: {qemu: {minimumVersion: 8.0.0}}\n");
	assert_embeds("base: v.yaml\nminimumLimaVersion: 1.1.0\ndns: [1.1.1.1]\n"
		      "mountTypesUnsupported: [9p]\nvmOpts:\n  qemu:\n    minimumVersion: 9.0.0\n",
		      "minimumLimaVersion: 2.0.0\ndns: [1.1.1.1]\nmountTypesUnsupported: [9p, wsl2]\n"
		      "vmOpts:\n  qemu:\n    minimumVersion: 9.0.0\n");
	assert_embeds("base: v.yaml\ndns: []\nminimumLimaVersion: 2.1.0\nmountTypesUnsupported: []\n"
		      "vmOpts: {qemu: {minimumVersion: 7.0.0}}\n",
		      "dns: [9.9.9.9]\nminimumLimaVersion: 2.1.0\nmountTypesUnsupported: [9p, wsl2]\n"
		      "vmOpts: {qemu: {minimumVersion: 8.0.0}}\n");
}

static void test_embed_depth_first(void **state)
{
	put("inner.yaml", "cpus: 3\nmemory: 3GiB\ndisk: 3GiB\n");
	put("outer.yaml", "base: inner.yaml\ncpus: 5\n");
	put("later.yaml", "memory: 9GiB\ntimezone: UTC\n");
	assert_embeds("base: [outer.yaml, later.yaml]\ndisk: 1GiB\n",
		      "disk: 1GiB\ncpus: 5\nmemory: 3GiB\ntimezone: UTC\n");
}

static void test_embed_same_mount_becomes_one(void **state)
{
	put("m.yaml", "mounts:\n- location: \"~\"\n  writable: true\n  sshfs: {cache: false}\n"
		      "- location: /b\n- location: \"*\"\n  9p: {cache: mmap}\n"
		      "additionalDisks: [data]\n"
		      "networks: [{interface: n0, lima: user-v2, metric: 5}]\n");
	assert_embeds("base: m.yaml\nmounts:\n- location: \"~\"\n  writable: false\n"
		      "additionalDisks:\n- name: data\n  fsType: xfs\n"
		      "networks:\n- interface: n0\n  socket: /s\n",
		      "mounts:\n- location: \"~\"\n  writable: false\n  sshfs:\n    cache: false\n"
		      "  9p:\n    cache: mmap\n- location: /b\n  9p:\n    cache: mmap\n"
		      "additionalDisks:\n- name: data\n  fsType: xfs\n"
		      "networks:\n- interface: n0\n  socket: /s\n  metric: 5\n");
}

static void test_embed_files_become_scripts(void **state)
{
	put("s.sh", "#!/bin/sh\necho 'hi' # there\n\nexit 0\n");
	assert_embeds("provision:\n- mode: user # who\n  file: s.sh\n- mode: data\n  path: /x\n"
		      "  file: {url: s.sh}\nprobes:\n- file: s.sh\n  hint: h\n",
		      "provision:\n- mode: user # who\n  script: |\n    #!/bin/sh\n    echo 'hi' # there\n"
		      "\n    exit 0\n- mode: data\n  path: /x\n  content: |\n    #!/bin/sh\n"
		      "    echo 'hi' # there\n\n    exit 0\nprobes:\n- hint: h\n  script: |\n"
		      "    #!/bin/sh\n    echo 'hi' # there\n\n    exit 0\n");
}

static void test_embed_from_url_and_base_yaml(void **state)
{
	scoped_free char *base = xasprintf("%s/base.yaml", dir), *got = NULL;
	struct error err = ERROR_NONE;

	put("base.yaml", "memory: 1GiB\ncpus: 1\n");
	assert_int_equal(embed("base: https://example.test/d/base.yaml\ndisk: 1GiB\n", base, &got,
			       &err), 0);
	assert_string_equal(got, "disk: 1GiB\nmemory: 1GiB\ncpus: 1\n");
}

static void test_embed_refuses(void **state)
{
	put("loop.yaml", "base: loop.yaml\n");
	put("broken.yaml", "a: [\n");
	put("list.yaml", "- a\n");
	put("two.yaml", "base: f.yaml\n");
	assert_refuses("base: loop.yaml\na: 1\n", "comes twice, or contains itself");
	assert_refuses("base: [f.yaml, two.yaml]\na: 1\n", "comes twice");
	assert_refuses("base: ../x.yaml\na: 1\n", "leads out of the directory");
	assert_refuses("base: broken.yaml\na: 1\n", "broken.yaml:2:1: not valid YAML");
	assert_refuses("base: list.yaml\na: 1\n", "is not a map");
	assert_refuses("base: missing.yaml\na: 1\n", "there is no file");
	assert_refuses("base: template:defualt\na: 1\n", "unknown template");
	assert_refuses("base: {url: f.yaml, digest: 'sha256:00'}\na: 1\n", "is not checked");
	assert_refuses("base: https://example.test/none\na: 1\n", "404");
	assert_refuses("base: '-'\na: 1\n", "standard input");
	assert_refuses("provision:\n- file: nothere.sh\n", "provision[0].file");
	assert_refuses("provision:\n- file: s.sh\n  script: x\n", "give only one");
	assert_refuses("- a\n", "is not a map");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_embed_nothing_to_do),
		cmocka_unit_test(test_embed_only_base_is_its_bytes),
		cmocka_unit_test(test_embed_merges_below_with_comments),
		cmocka_unit_test(test_embed_lists_that_come_first),
		cmocka_unit_test(test_embed_dns_versions_union),
		cmocka_unit_test(test_embed_depth_first),
		cmocka_unit_test(test_embed_same_mount_becomes_one),
		cmocka_unit_test(test_embed_files_become_scripts),
		cmocka_unit_test(test_embed_from_url_and_base_yaml),
		cmocka_unit_test(test_embed_refuses),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
