#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/config.h"
#include "lib/config/embed.h"
#include "lib/config/locator.h"

static char dir[] = "/tmp/config_locator_test.XXXXXX";
static struct strv dirs;

static int setup(void **state)
{
	static const char *const names[] = { "debian-12", "ubuntu-24.04", "_part", "Web" };
	struct error err = ERROR_NONE;

	if (!mkdtemp(dir))
		return -1;
	strv_add(&dirs, "/nonexistent");
	strv_add(&dirs, dir);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		scoped_free char *path = xasprintf("%s/%s.yaml", dir, names[i]);

		if (path_write_file(path, names[i], strlen(names[i]), 0600, &err) < 0)
			return -1;
	}
	return 0;
}

static int teardown(void **state)
{
	struct error err = ERROR_NONE;

	strv_done(&dirs);
	return path_remove_tree(dir, &err);
}

static void test_locator_read(void **state)
{
	scoped_free char *path = xasprintf("%s/Web.yaml", dir), *uri = xasprintf("file://%s", path);
	const struct { const char *locator, *text, *name; } rows[] = {
		{ "template:debian-12", "debian-12", "debian-12" },
		{ "template://ubuntu-24.04", "ubuntu-24.04", "ubuntu-24.04" },
		{ "template:debian-12.yaml", "debian-12", "debian-12" },
		{ path, "Web", "web" },
		{ uri, "Web", "web" },
		{ "/x/debian-13-genericcloud-arm64-20260101.qcow2.xz",
		  "arch: aarch64\nimages:\n- location: /x/debian-13-genericcloud-arm64-20260101.qcow2.xz\n"
		  "  arch: aarch64\n", "debian-13" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *shown = NULL, *name = NULL;
		scoped_buf struct buf text = { 0 };
		struct error err = ERROR_NONE;

		if (locator_read(rows[i].locator, &dirs, &text, &shown, &name, &err) < 0)
			fail_msg("%s", err.msg);
		assert_string_equal(buf_str(&text), rows[i].text);
		assert_string_equal(name, rows[i].name);
		assert_non_null(shown);
	}
}

static void test_locator_read_refuses(void **state)
{
	static const struct { const char *locator; int code; const char *says; } rows[] = {
		{ "template:debain-12", -ENOENT, "did you mean `debian-12`?" },
		{ "template:debian", -ENOENT, "did you mean `debian-12`?" },
		{ "template:zzzzzzzz", -ENOENT, "there are: Web, debian-12, ubuntu-24.04" },
		{ "template:../x", -EINVAL, "not the name of a template" },
		{ "template:a/../../x", -EINVAL, "not the name of a template" },
		{ "template:/etc/passwd", -EINVAL, "not the name of a template" },
		{ "template:", -EINVAL, "not the name of a template" },
		{ "https://example.test/Big.YAML?x=1", -EPROTONOSUPPORT, "has to be downloaded" },
		{ "oci:thing", -EINVAL, "unknown scheme `oci`" },
		{ "debian-21", -ENOENT, "did you mean `template:debian-12`?" },
		{ "/no/such.yaml", -ENOENT, "there is no file" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *shown = NULL, *name = NULL;
		scoped_buf struct buf text = { 0 };
		struct error err = ERROR_NONE;

		assert_int_equal(locator_read(rows[i].locator, &dirs, &text, &shown, &name, &err),
				 rows[i].code);
		if (!strstr(err.msg, rows[i].says))
			fail_msg("`%s` does not say `%s`", err.msg, rows[i].says);
		if (rows[i].code == -EPROTONOSUPPORT)
			assert_string_equal(name, "big");
	}
}

static void test_locator_read_stdin(void **state)
{
	scoped_free char *name = NULL;
	scoped_buf struct buf text = { 0 };
	struct error err = ERROR_NONE;
	int fds[2], saved = dup(0);

	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "cpus: 1\n", 8), 8);
	close(fds[1]);
	dup2(fds[0], 0);
	close(fds[0]);
	assert_int_equal(locator_read("-", &dirs, &text, NULL, &name, &err), 0);
	dup2(saved, 0);
	close(saved);
	assert_string_equal(buf_str(&text), "cpus: 1\n");
	assert_null(name);
}

static void test_locator_join(void **state)
{
	static const char *const rows[][3] = {
		{ "template:web", "template:x", "template:x" },
		{ "template:web", "_images/x.yaml", "template:_images/x.yaml" },
		{ "template://a/web", "b", "template:a/b" },
		{ "/t/web.yaml", "s/x.sh", "/t/s/x.sh" },
		{ "file:///t/web.yaml", "x.sh", "/t/x.sh" },
		{ "https://h.test/a/b.yaml?q=/z", "x.sh", "https://h.test/a/x.sh" },
		{ "/t/web.yaml", "/abs", "/abs" },
		{ "/t/web.yaml", "https://h.test/x", "https://h.test/x" },
	};
	struct error err = ERROR_NONE;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *out = NULL;

		assert_int_equal(locator_join(rows[i][0], rows[i][1], &out, &err), 0);
		assert_string_equal(out, rows[i][2]);
	}
	assert_int_equal(locator_join("/t/web.yaml", "../x", &(char *){ NULL }, &err), -EINVAL);
	assert_int_equal(locator_join("/t/web.yaml", "a/..", &(char *){ NULL }, &err), -EINVAL);
	assert_int_equal(locator_join("/t/web.yaml", "", &(char *){ NULL }, &err), -EINVAL);
}

/* What we ship is without fault, for every arch it has an image for. */
static void test_shipped_templates_are_valid(void **state)
{
	static const char *const must[] = { "alpine", "archlinux", "debian-12", "debian-13",
					    "debian-local", "default", "fedora", "ubuntu-24.04",
					    "ubuntu-26.04" };
	const struct config_context ctx = { .instance = "t", .instance_dir = "/l/t",
					    .lima_home = "/nonexistent", .check_host = true };
	scoped_strv struct strv ours = { 0 };
	const struct config_embed_options opt = { .template_dirs = &ours };
	struct locator_template *list = NULL;
	struct error err = ERROR_NONE;
	size_t len = 0;

	strv_add(&ours, TEMPLATES);
	assert_int_equal(locator_list(&ours, &list, &len, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(must); i++) {
		bool found = false;

		for (size_t j = 0; j < len; j++)
			found |= streq(list[j].name, must[i]);
		if (!found)
			fail_msg("no template %s", must[i]);
	}
	for (size_t i = 0; i < len; i++) {
		scoped_free char *locator = xasprintf("template:%s", list[i].name);
		struct config_problems problems = { 0 };
		scoped_config struct config *c = NULL;
		scoped_buf struct buf text = { 0 };

		assert_int_equal(locator_read(locator, &ours, &text, NULL, NULL, &err), 0);
		assert_int_equal(config_embed(&text, locator, &opt, &err), 0);
		/* whatever host runs the tests, Arch has x86_64 only */
		if (!strstr(buf_str(&text), "\narch:"))
			buf_add_str(&text, "arch: x86_64\n");
		if (config_load(&ctx, locator, buf_str(&text), text.len, &problems, &c, &err) < 0)
			fail_msg("%s", err.msg);
		if (problems.warnings.len)
			fail_msg("%s", problems.warnings.items[0]);
		config_problems_done(&problems);
	}
	locator_list_free(list, len);
}

/* Each key that default.yaml shows as a comment is one that we know. */
static void test_default_template_comments_are_valid(void **state)
{
	const struct config_context ctx = { .instance = "t", .instance_dir = "/l/t",
					    .lima_home = "/nonexistent" };
	struct config_problems problems = { 0 };
	scoped_config struct config *c = NULL;
	scoped_buf struct buf text = { 0 }, live = { 0 };
	struct error err = ERROR_NONE;
	char *save = NULL;
	const char *warning;

	assert_int_equal(path_read_file(TEMPLATES "/default.yaml", 1 << 20, &text, &err), 0);
	for (char *line = strtok_r((char *)text.data, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		/* "# key: …", "#   key: …", "# - …" and deeper comments; not sentences */
		const char *s = strncmp(line, "# ", 2) == 0 ? line + 2 : line;
		size_t word = strspn(s, " -abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.");
		bool value = s[word] == ':' && (!s[word + 1] || s[word + 1] == ' ');

		if (s == line || (value && !strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZ", *s)))
			buf_addf(&live, "%s\n", s);
	}
	/* the wrong forms of dns and base are fine here, wrong keys are not */
	config_load(&ctx, "default.yaml", buf_str(&live), live.len, &problems, &c, &err);
	if (strstr(err.msg, "not valid YAML"))
		fail_msg("%s", err.msg);
	strv_foreach(warning, &problems.warnings)
		if (strstr(warning, "unknown key"))
			fail_msg("%s", warning);
	config_problems_done(&problems);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_locator_read),
		cmocka_unit_test(test_locator_read_refuses),
		cmocka_unit_test(test_locator_read_stdin),
		cmocka_unit_test(test_locator_join),
		cmocka_unit_test(test_shipped_templates_are_valid),
		cmocka_unit_test(test_default_template_comments_are_valid),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
