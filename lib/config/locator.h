/* locator.h - where a template comes from
 *
 *	template:NAME, template://NAME	NAME.yaml in one of the template directories
 *	file:///abs/x.yaml, x.yaml	a file
 *	-				standard input
 *	http://…, https://…		the caller fetches (lib/store), see below
 *	DISK.qcow2, URL.img …		no template at all: one is made around the image
 *
 * reference/lima-yaml.md §2. Names inside `base` and `file` of a template are
 * locators too, relative to the template they stand in.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"

/* Text of the template, the name to show in messages ("template:debian-12",
 * "web.yaml") and the instance name that goes with it ("debian-12", "web"; NULL
 * for standard input); caller frees. Each ret_… may be NULL.
 * -EPROTONOSUPPORT: it is an http(s) URL; ret_shown_name and ret_instance_name
 * are set all the same, the text is the caller's to fetch.
 * -ENOENT with the nearest names when a template is unknown. */
int locator_read(const char *locator, const struct strv *template_dirs, struct buf *ret_text,
		 char **ret_shown_name, char **ret_instance_name, struct error *err);

bool locator_is_url(const char *locator);	/* http:// or https:// */

/* @locator as seen from template @from (a locator that locator_join() returned
 * or the user gave): absolute ones unchanged, others beside @from. Caller
 * frees. -EINVAL for one that leaves @from's directory by "..". */
int locator_join(const char *from, const char *locator, char **ret, struct error *err);

/* All template names ("debian-12"), sorted, each once, and where each is; names
 * that begin with _ are parts of others and left out. */
struct locator_template {
	char *name, *path;
};
int locator_list(const struct strv *template_dirs, struct locator_template **ret, size_t *ret_len,
		 struct error *err);
void locator_list_free(struct locator_template *list, size_t len);
