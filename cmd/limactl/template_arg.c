#include "cmd/limactl/template_arg.h"

#include <errno.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/config/embed.h"
#include "lib/config/locator.h"
#include "lib/store/download.h"
#include "lib/store/layout.h"

enum { MAX_TEMPLATE_BYTES = 4 << 20 };	/* reference/lima-yaml.md §1 */

void template_arg_done(struct template_arg *t)
{
	free(t->shown);
	free(t->name);
	buf_done(&t->yaml);
	*t = (struct template_arg){ 0 };
}

static int fetch(void *arg, const char *url, struct buf *ret, struct error *err)
{
	scoped_free char *what = xasprintf("downloading %s", url);
	scoped_download struct download d = { 0 };

	if (download_fetch(url, NULL, what, arg, &d, err) < 0)
		return err->code;
	return path_read_file(d.path, MAX_TEMPLATE_BYTES, ret, err);
}

static int read_text(const char *locator, const struct strv *dirs, const struct progress *progress,
		     struct template_arg *t, struct error *err)
{
	int rc = locator_read(locator, dirs, &t->yaml, &t->shown, &t->name, err);

	if (rc == -EPROTONOSUPPORT)
		rc = fetch((void *)progress, locator, &t->yaml, err);
	return rc;
}

int template_arg_read(const char *arg, const char *lima_home, const struct progress *progress,
		      struct template_arg *ret, struct error *err)
{
	const char *locator = arg ? arg : "template:default";
	scoped_free char *config_dir = layout_config_dir(lima_home);
	scoped_free char *base = xasprintf("%s/base.yaml", config_dir);
	struct template_arg t __attribute__((cleanup(template_arg_done))) = { 0 };
	scoped_strv struct strv dirs = { 0 };
	struct config_embed_options opt = {
		.template_dirs = &dirs,
		.base_yaml = path_exists(base) ? base : NULL,
		.fetch = fetch,
		.arg = (void *)progress,
	};

	if (layout_template_dirs(lima_home, &dirs, err) < 0 ||
	    read_text(locator, &dirs, progress, &t, err) < 0 ||
	    config_embed(&t.yaml, locator, &opt, err) < 0)
		return err->code;
	*ret = t;
	t = (struct template_arg){ 0 };
	return 0;
}

int template_arg_list(const char *lima_home, struct locator_template **ret, size_t *ret_n,
		      struct error *err)
{
	scoped_strv struct strv dirs = { 0 };

	if (layout_template_dirs(lima_home, &dirs, err) < 0)
		return err->code;
	return locator_list(&dirs, ret, ret_n, err);
}

static void log_problems(const struct config_problems *p)
{
	const char *line;

	strv_foreach(line, &p->warnings)
		log_warn("%s", line);
	strv_foreach(line, &p->errors)
		log_error("%s", line);
}

int template_arg_check(const struct template_arg *t, const char *lima_home, const char *name,
		       struct config **ret, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);
	struct config_context ctx = {
		.instance = name, .instance_dir = dir, .lima_home = lima_home, .check_host = true,
	};
	struct config_problems problems = { 0 };
	int rc = config_load(&ctx, t->shown, (const char *)t->yaml.data, t->yaml.len, &problems, ret, err);

	log_problems(&problems);
	if (rc < 0 && problems.errors.len)
		error_set(err, rc, "%zu error%s in %s", problems.errors.len,
			  problems.errors.len == 1 ? "" : "s", t->shown);
	config_problems_done(&problems);
	return rc;
}
