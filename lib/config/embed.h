/* embed.h - a template with all it refers to, as one text
 *
 * Before an instance is stored, `base:` templates are merged into the text and
 * `file:` scripts are put in place of their names (reference/lima-yaml.md §3),
 * so that the stored lima.yaml stands alone. The user's lines stay as they are;
 * what comes from a base is added below with the base's own comments.
 *
 * The including template wins, earlier bases win over later ones. Lists get the
 * base's entries behind their own, except provision and probes, where the
 * base's come first, and dns, which is taken only when there is none.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"

struct config_embed_options {
	const struct strv *template_dirs;
	const char *base_yaml;		/* _config/base.yaml: a base of everything; NULL: none */
	/* Gets an http(s) base or file; NULL: such a one is an error. */
	int (*fetch)(void *arg, const char *url, struct buf *ret, struct error *err);
	void *arg;
};

/* Changes @text, which came from @locator ("template:web", a path, a URL). On
 * failure it is as before. */
int config_embed(struct buf *text, const char *locator, const struct config_embed_options *opt,
		 struct error *err);
