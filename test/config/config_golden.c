/* config_golden.c - one lima.yaml in, the resolved text or the complaints out
 *
 *	config_golden [--write] DIR/pass-x.yaml|DIR/fail-x.yaml
 *
 * pass-x.yaml is compared with pass-x.out: warnings, then the resolved config
 * as JSON. fail-x.yaml is compared with fail-x.err: every error and warning,
 * exactly. x.default and x.override next to it become _config/default.yaml and
 * _config/override.yaml. --write writes what is expected; read the diff.
 *
 * host_facts() of lib/config/host.c is replaced, so that the same comes out on
 * every machine; the files name their arch.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/config.h"
#include "lib/config/host.h"
#include "lib/config/node.h"

const struct host_facts *host_facts(void)
{
	static const struct host_facts facts = {
		.user = "ada", .comment = "Ada L", .home = "/home/ada", .uid = 1234,
		.timezone = "Europe/London", .temp_dir = "/tmp", .cpus = 8,
		.memory_bytes = 16ULL << 30,
	};

	return &facts;
}

/* STEM.SUFFIX to LIMA_HOME/_config/NAME, if there is one. */
static void copy_shared(const char *stem, const char *suffix, const char *home, const char *name)
{
	scoped_free char *from = xasprintf("%s.%s", stem, suffix);
	scoped_free char *to = xasprintf("%s/_config/%s", home, name);
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	if (path_exists(from) && (path_read_file(from, NODE_MAX_TEXT, &b, &err) < 0 ||
				  path_write_file(to, b.data, b.len, 0600, &err) < 0)) {
		fprintf(stderr, "%s\n", err.msg);
		exit(2);
	}
}

static void add_lines(struct buf *out, const char *level, const struct strv *lines)
{
	const char *line;

	strv_foreach(line, lines)
		buf_addf(out, "%s: %s\n", level, line);
}

static void add_json(struct buf *out, const struct config *c)
{
	json_t *j = json_loadb((const char *)c->json.data, c->json.len, 0, NULL);
	scoped_free char *text = json_dumps(j, JSON_INDENT(2));

	buf_add_str(out, text);
	buf_add_str(out, "\n");
	json_decref(j);
}

/* The directory made for this run is called LIMA_HOME in the expected text. */
static char *without_home(const char *text, const char *home)
{
	struct buf out = { 0 };
	const char *at;

	for (; (at = strstr(text, home)); text = at + strlen(home)) {
		buf_add(&out, text, (size_t)(at - text));
		buf_add_str(&out, "LIMA_HOME");
	}
	buf_add_str(&out, text);
	return buf_steal_str(&out);
}

static char *run(const char *yaml, const char *home, bool *ret_passed)
{
	const struct config_context ctx = { .instance = "golden", .instance_dir = "/lima/golden",
					    .lima_home = home, .check_host = true };
	struct config_problems problems = { 0 };
	scoped_config struct config *c = NULL;
	scoped_buf struct buf text = { 0 }, out = { 0 };
	struct error err = ERROR_NONE;
	const char *slash = strrchr(yaml, '/');

	if (path_read_file(yaml, 2 * NODE_MAX_TEXT, &text, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		exit(2);
	}
	*ret_passed = config_load(&ctx, slash ? slash + 1 : yaml, buf_str(&text), text.len,
				  &problems, &c, &err) == 0;
	add_lines(&out, "error", &problems.errors);
	add_lines(&out, "warning", &problems.warnings);
	if (c)
		add_json(&out, c);
	config_problems_done(&problems);
	return without_home(buf_str(&out), home);
}

static int compare(const char *file, const char *got)
{
	scoped_buf struct buf want = { 0 };
	struct error err = ERROR_NONE;

	if (path_read_file(file, NODE_MAX_TEXT, &want, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
	} else if (streq(buf_str(&want), got)) {
		return 0;
	}
	fprintf(stderr, "%s: expected\n%s--- but came\n%s", file, buf_str(&want), got);
	return 1;
}

int main(int argc, char **argv)
{
	bool write = argc == 3 && streq(argv[1], "--write"), passed;
	const char *yaml = argv[argc - 1];
	char home[] = "/tmp/config_golden.XXXXXX";
	struct error err = ERROR_NONE;

	if (argc < 2 || !mkdtemp(home))
		return 2;
	scoped_free char *stem = xstrndup(yaml, strlen(yaml) - strlen(".yaml"));
	bool want_pass = strstr(stem, "/pass-") || strncmp(stem, "pass-", 5) == 0;
	scoped_free char *expected = xasprintf("%s.%s", stem, want_pass ? "out" : "err");
	scoped_free char *dir = xasprintf("%s/_config", home);
	int rc;

	path_mkdir_all(dir, 0700, &err);
	copy_shared(stem, "default", home, "default.yaml");
	copy_shared(stem, "override", home, "override.yaml");
	scoped_free char *got = run(yaml, home, &passed);
	path_remove_tree(home, &err);
	if (passed != want_pass)
		fprintf(stderr, "%s: %s unexpectedly\n", yaml, passed ? "passed" : "failed");
	if (write)
		rc = path_write_file(expected, got, strlen(got), 0644, &err);
	else
		rc = compare(expected, got);
	return rc || passed != want_pass;
}
