/* info.c - what this installation is, as JSON (reference/cli.md §2) */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cmd/limactl/args.h"
#include "cmd/limactl/instance_arg.h"
#include "drivers/driver.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static void add_templates_of(json_t *list, const char *path)
{
	scoped_dir DIR *dir = opendir(path);
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		size_t len = strlen(de->d_name);

		if (len < 6 || de->d_name[0] == '_' || !streq(de->d_name + len - 5, ".yaml"))
			continue;
		json_array_append_new(list, json_pack("{s:s%, s:o}", "name", de->d_name, len - 5,
						      "location",
						      json_sprintf("%s/%s", path, de->d_name)));
	}
}

static json_t *templates(const struct strv *dirs)
{
	json_t *list = json_array();
	const char *dir;

	strv_foreach(dir, dirs)
		add_templates_of(list, dir);
	return list;
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

static json_t *default_template(const struct strv *dirs)
{
	const char *dir;

	strv_foreach(dir, dirs) {
		scoped_free char *path = xasprintf("%s/default.yaml", dir);

		if (path_exists(path))
			return json_string(path);
	}
	return json_null();
}

static int run(const struct args *a)
{
	scoped_strv struct strv dirs = { 0 };
	scoped_free char *home = NULL, *key = NULL, *share = NULL;
	struct error err = { 0 }, none = { 0 };
	json_t *root = json_object();

	if (layout_lima_home(&home, &err) < 0 || layout_template_dirs(home, &dirs, &err) < 0)
		return verb_fail(&err);
	key = layout_user_key(home);
	share = layout_share_dir(&none);
	json_object_set_new(root, "version", json_string(LIMA_VERSION));
	json_object_set_new(root, "templates", templates(&dirs));
	json_object_set_new(root, "defaultTemplate", default_template(&dirs));
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
