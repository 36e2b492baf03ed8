/* validate.c - check lima.yaml files without creating anything */
#include <stdio.h>

#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/template_arg.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/config/emit.h"
#include "lib/store/layout.h"

static const struct flag flags[] = {
	{ "fill", 0, FLAG_BOOL, NULL, "print the result with all defaults, as YAML", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

struct validate {
	const char *home;
	bool fill;
};

static int validate(const char *word, void *arg, struct error *err)
{
	const struct validate *v = arg;
	struct template_arg t __attribute__((cleanup(template_arg_done))) = { 0 };
	scoped_config struct config *config = NULL;

	if (template_arg_read(word, v->home, NULL, &t, err) < 0 ||
	    template_arg_check(&t, v->home, t.name ? t.name : "default", &config, err) < 0)
		return err->code;
	if (v->fill) {
		scoped_buf struct buf yaml = { 0 };

		if (emit_json(buf_str(&config->json), config->json.len, &yaml, err) < 0)
			return err->code;
		fputs(buf_str(&yaml), stdout);
	}
	log_info("`%s`: OK", word);
	return 0;
}

static int run(const struct args *a)
{
	scoped_free char *home = NULL;
	struct error err = { 0 };

	if (layout_lima_home(&home, &err) < 0)
		return verb_fail(&err);
	return verb_for_each(a, NULL, validate, &(struct validate){
		.home = home, .fill = args_bool(a, "fill", false),
	});
}

const struct verb verb_validate = {
	.name = "validate",
	.group = VERB_ADVANCED,
	.usage = "TEMPLATE…",
	.summary = "check lima.yaml files",
	.text = "Everything that is wrong is told in one run, as FILE:LINE:COLUMN.",
	.flags = (const struct flag *const[]){ flags, NULL },
	.min_args = 1,
	.max_args = -1,
	.arg = ARG_TEMPLATE,
	.run = run,
};
