/* prune.c - give back the room that downloads and built images take */
#include "lib/store/prune.h"

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/template_arg.h"
#include "cmd/limactl/ui.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/build.h"
#include "lib/store/download.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "keep-referred", 0, FLAG_BOOL, NULL, "keep what an instance or a template names", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static void keep_file(struct prune *p, const struct config_file *f)
{
	struct error none = { 0 };	/* an image that cannot be built here has no entry */
	char *dir = NULL;

	if (!f->location)
		return;
	if (build_is_location(f->location))
		build_entry_dir(f->location, f->arch, &dir, &none);
	else if (download_is_url(f->location))
		download_entry_dir(f->location, &dir, &none);
	if (dir)
		strv_take(&p->keep, dir);
}

static void keep_config(struct prune *p, const struct config *c)
{
	for (size_t i = 0; i < c->n_images; i++) {
		keep_file(p, &c->images[i].file);
		keep_file(p, &c->images[i].kernel);
		keep_file(p, &c->images[i].initrd);
	}
}

static int keep_instances(struct prune *p, const char *home, struct error *err)
{
	scoped_strv struct strv names = { 0 };
	const char *name;

	if (instance_list(home, &names, err) < 0)
		return err->code;
	strv_foreach(name, &names) {
		scoped_instance struct instance *inst = NULL;

		if (instance_inspect(home, name, &inst, err) < 0)
			continue;	/* deleted since */
		if (inst->config)
			keep_config(p, inst->config);
		else
			log_warn("instance `%s`: its lima.yaml cannot be read, so nothing is kept for it",
				 name);
	}
	return 0;
}

static int keep_template(struct prune *p, const char *home, const char *name, struct error *err)
{
	struct template_arg t __attribute__((cleanup(template_arg_done))) = { 0 };
	scoped_free char *locator = xasprintf("template:%s", name);
	scoped_free char *dir = layout_instance_dir(home, name);
	struct config_context ctx = { .instance = name, .instance_dir = dir, .lima_home = home };
	scoped_config struct config *config = NULL;

	if (template_arg_read(locator, home, NULL, &t, err) < 0 ||
	    config_load(&ctx, locator, buf_str(&t.yaml), t.yaml.len, NULL, &config, err) < 0)
		return error_wrap(err, "%s", locator);
	keep_config(p, config);
	return 0;
}

static int keep_templates(struct prune *p, const char *home, struct error *err)
{
	struct locator_template *list = NULL;
	size_t n = 0;

	if (template_arg_list(home, &list, &n, err) < 0)
		return err->code;
	for (size_t i = 0; i < n && !interrupt_pending(); i++)
		if (keep_template(p, home, list[i].name, err) < 0)
			log_warn("%s; nothing is kept for it", err->msg);
	locator_list_free(list, n);
	return interrupt_check(err);
}

static int run(const struct args *a)
{
	scoped_prune struct prune p = { 0 };
	scoped_free char *home = NULL;
	char freed[UI_SIZE_LEN];
	struct error err = { 0 };
	int rc;

	interrupt_install();
	if (args_bool(a, "keep-referred", false) &&
	    (layout_lima_home(&home, &err) < 0 || keep_instances(&p, home, &err) < 0 ||
	     keep_templates(&p, home, &err) < 0))
		return verb_fail(&err);
	rc = prune_cache(&p, &err);
	log_info("cache: %u entr%s removed, %s freed", p.removed, p.removed == 1 ? "y" : "ies",
		 ui_size(p.bytes, freed));
	if (p.busy)
		log_warn("cache: %u in use by another limactl, left alone", p.busy);
	return rc < 0 ? verb_fail(&err) : 0;
}

const struct verb verb_prune = {
	.name = "prune",
	.group = VERB_ADVANCED,
	.usage = "",
	.summary = "empty the cache of images",
	.text = "Instances have copies of what they need, so none is harmed; the next one of the same image\n"
		"fetches or builds it again.",
	.flags = (const struct flag *const[]){ flags, NULL },
	.max_args = 0,
	.run = run,
};
