/* info.c - what this installation is, as JSON (reference/cli.md §2) */
#include <jansson.h>
#include <stdio.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/template_arg.h"
#include "drivers/driver.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

static json_t *templates(const struct locator_template *list, size_t n)
{
	json_t *out = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(out, json_pack("{s:s, s:s}", "name", list[i].name, "location",
						     list[i].path));
	return out;
}

static json_t *default_template(const struct locator_template *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (streq(list[i].name, "default"))
			return json_string(list[i].path);
	return json_null();
}

static json_t *guest_agents(void)
{
	json_t *o = json_object();

	for (int arch = 0; arch < ARCH_COUNT; arch++) {
		struct error none = { 0 };
		scoped_free char *path = layout_guest_agent(arch_name((enum arch)arch), &none);

		if (path)
			json_object_set_new(o, arch_name((enum arch)arch),
					    json_pack("{s:s}", "location", path));
	}
	return o;
}

static void add_drivers(json_t *root)
{
	json_t *names = json_array(), *ex = json_object();

	for (const struct driver_ops *const *d = driver_all(); *d; d++) {
		json_array_append_new(names, json_string((*d)->name));
		json_object_set_new(ex, (*d)->name, json_pack("{s:s}", "location", "internal"));
	}
	json_object_set_new(root, "vmTypes", names);
	json_object_set_new(root, "vmTypesEx", ex);
}

static int run(const struct args *a)
{
	scoped_free char *home = NULL, *key = NULL, *share = NULL;
	struct error err = { 0 }, none = { 0 };
	struct locator_template *list = NULL;
	size_t n = 0;
	json_t *root;

	if (layout_lima_home(&home, &err) < 0 || template_arg_list(home, &list, &n, &err) < 0)
		return verb_fail(&err);
	root = json_object();
	key = layout_user_key(home);
	share = layout_share_dir(&none);
	json_object_set_new(root, "version", json_string(LIMA_VERSION));
	json_object_set_new(root, "templates", templates(list, n));
	json_object_set_new(root, "defaultTemplate", default_template(list, n));
	json_object_set_new(root, "limaHome", json_string(home));
	add_drivers(root);
	json_object_set_new(root, "guestAgents", guest_agents());
	json_object_set_new(root, "hostOS", json_string("linux"));
	json_object_set_new(root, "hostArch", json_string(arch_name(arch_host())));
	json_object_set_new(root, "identityFile", json_string(key));
	json_object_set_new(root, "sharePaths", share ? json_pack("[s]", share) : json_array());
	json_dumpf(root, stdout, JSON_INDENT(4));
	putchar('\n');
	json_decref(root);
	locator_list_free(list, n);
	return 0;
}

const struct verb verb_info = {
	.name = "info",
	.group = VERB_ADVANCED,
	.usage = "",
	.summary = "tell about this installation, as JSON",
	.max_args = 0,
	.run = run,
};
