#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cmd/limactl/help.h"
#include "lib/base/child.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[] = "/tmp/help-test.XXXXXX";

static char *completion_of(const char *const *words)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int n = 0;

	while (words[n])
		n++;
	help_complete(out, n, (char *const *)words);
	fclose(out);
	return text;
}

#define WORDS(...) (const char *const[]){ __VA_ARGS__, NULL }

static void test_complete_offers_what_can_stand_there(void **state)
{
	static const struct {
		const char *words[6];
		const char *has, *has_not;
	} cases[] = {
		{ { "st" }, "start\t", "list\t" },
		{ { "list", "--js" }, "--json\t", "--quiet" },
		{ { "start", "--log-l" }, "--log-level\t", NULL },
		{ { "stop", "" }, "web\t", "_config" },
		{ { "--log-level", "debug", "stop", "" }, "web\t", NULL },
		{ { "start", "--cpus", "4", "w" }, "web\t", NULL },	 /* 4 is a value */
		{ { "start", "--cpus", "" }, NULL, "web" },	 /* so is this */
		{ { "shell", "web", "" }, NULL, "web\t" },		 /* a command of the guest */
		{ { "completion", "" }, "fish\t", NULL },
		{ { "start", "x", "" }, NULL, "web" },
		{ { "port", "" }, "remove\t", "web" },
		{ { "pro" }, "protect\t", "unprotect" },
		{ { "unprotect", "" }, "web\t", NULL },
		{ { "copy", "--back" }, "--backend\t", NULL },
		{ { "create", "--mount-" }, "--mount-only\t", "--mount\t" },
		{ { "port", "a" }, "add\t", "list" },
		{ { "--debug", "port", "add", "" }, "web\t", "list" },
		{ { "port", "add", "web", "" }, NULL, "web" },		 /* a SPEC */
		{ { "port", "add", "--lane", "grpc", "" }, "web\t", NULL },
		{ { "port", "add", "web", "--st" }, "--static\t", "--watch" },
		{ { "port", "list", "--w" }, "--watch\t", "--static" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_free char *out = completion_of(cases[i].words);

		if (cases[i].has)
			assert_non_null(strstr(out, cases[i].has));
		if (cases[i].has_not)
			assert_null(strstr(out, cases[i].has_not));
	}
}

/* The script in a real bash, with a limactl that answers `template:…`: bash cuts
 * words at colons. */
static void test_complete_bash_script_completes_after_a_colon(void **state)
{
	scoped_free char *path = xasprintf("%s/bash", dir);
	scoped_free char *test = xasprintf(
		". %s/bash\n"
		"limactl() { printf '%%s\\thelp\\n' 'template:a*' template:b; }\n"
		"COMP_LINE='limactl start template:' COMP_POINT=23 COMP_CWORD=3\n"
		"COMP_WORDS=(limactl start template :)\n"
		"_limactl; printf '<%%s>' \"${COMPREPLY[@]}\"\n", dir);
	scoped_child_result struct child_result r = { 0 };
	struct child_spec spec = { .argv = (const char *const[]){ "bash", "-c", test, NULL } };
	struct error err = { 0 };
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_true(help_completion(f, "bash"));
	assert_false(help_completion(f, "powershell"));
	fclose(f);
	assert_int_equal(child_run(&spec, &r, &err), 0);
	assert_non_null(strstr(buf_str(&r.out), "<a*><b>"));
}

static void check_pages(const struct verb *const *list)
{
	struct error err = { 0 };

	for (size_t i = 0; list[i]; i++) {
		char name[VERB_PATH_SIZE];
		scoped_free char *path = xasprintf("%s/limactl-%s.1", dir, verb_path(list[i], '-', name));
		scoped_buf struct buf b = { 0 };

		if (list[i]->verbs)
			check_pages(list[i]->verbs);
		if (list[i]->group == VERB_HIDDEN) {
			assert_false(path_exists(path));
			continue;
		}
		assert_int_equal(path_read_file(path, 1 << 20, &b, &err), 0);
		assert_memory_equal(buf_str(&b), ".TH ", 4);
		assert_null(strchr(buf_str(&b), '`'));	/* all made bold */
		assert_null(strstr(buf_str(&b), "\n\n"));	/* mandoc: no blank lines in fill mode */
		assert_null(strstr(buf_str(&b), "instance\\fR\n.TP")); /* hidden flags stay hidden */
	}
}

static void test_man_pages_exist_for_every_verb(void **state)
{
	struct error err = { 0 };

	assert_int_equal(help_write_man(dir, &err), 0);
	check_pages(verbs);
}

static int make_dir(void **state)
{
	scoped_free char *inst = NULL, *config = NULL;
	struct error err = { 0 };

	if (!mkdtemp(dir))
		return -1;
	setenv("LIMA_HOME", dir, 1);
	inst = xasprintf("%s/web", dir);
	config = xasprintf("%s/_config", dir);
	return path_mkdir_all(inst, 0700, &err) < 0 || path_mkdir_all(config, 0700, &err) < 0 ? -1 : 0;
}

static int remove_dir(void **state)
{
	struct error err = { 0 };

	return path_remove_tree(dir, &err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_complete_offers_what_can_stand_there),
		cmocka_unit_test(test_complete_bash_script_completes_after_a_colon),
		cmocka_unit_test(test_man_pages_exist_for_every_verb),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
