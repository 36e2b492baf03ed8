#include "cmd/limactl/create.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "cmd/limactl/edit_flags.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/launch.h"
#include "cmd/limactl/template_arg.h"
#include "drivers/driver.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"

const struct flag create_flags[] = {
	{ "name", 0, FLAG_STRING, "NAME", "name of the new instance (default: the template's)", false },
	{ "list-templates", 0, FLAG_BOOL, NULL, "print what template:NAME can be, and end", false },
	{ "list-drivers", 0, FLAG_BOOL, NULL, "print what --vm-type can be, and end", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int list_templates(void)
{
	struct locator_template *list = NULL;
	scoped_free char *home = NULL;
	struct error err = { 0 };
	size_t n = 0;

	if (layout_lima_home(&home, &err) < 0 || template_arg_list(home, &list, &n, &err) < 0)
		return verb_fail(&err);
	for (size_t i = 0; i < n; i++)
		puts(list[i].name);
	locator_list_free(list, n);
	return 0;
}

bool create_list(const struct args *a, int *ret_code)
{
	if (args_bool(a, "list-templates", false)) {
		*ret_code = list_templates();
		return true;
	}
	if (!args_bool(a, "list-drivers", false))
		return false;
	for (const struct driver_ops *const *d = driver_all(); *d; d++)
		puts((*d)->name);
	*ret_code = 0;
	return true;
}

void create_warn(const struct config *config)
{
	if (geteuid() == 0)
		log_warn("running as root: the instance is root's alone, and the guest user is `%s`",
			 config->user.name);
	if (config->n_mounts)
		log_warn("mounts: %zu checked, but this version does not mount them in the guest",
			 config->n_mounts);
}

/* A bare word is a name for an instance of the default template. */
static const char *template_of(const struct args *a)
{
	struct error ignored = { 0 };

	if (!a->positional.len || layout_check_name(a->positional.items[0], &ignored) == 0)
		return NULL;
	return a->positional.items[0];
}

/* Neither a file nor a name: was it meant as a name? */
static void explain_missing(const char *arg, struct error *err)
{
	const char *dot = strrchr(arg, '.');

	if (strchr(arg, ':') || (dot && (streq(dot, ".yaml") || streq(dot, ".yml"))))
		return;
	error_append(err, ", and an instance's name has only letters and digits, with single `.`, `_` or "
			  "`-` between them");
}

/* `limactl start debian-13` is not what it looks like. */
static void warn_name_of_template(const char *home, const char *name)
{
	struct locator_template *list = NULL;
	struct error ignored = { 0 };
	size_t n = 0;

	if (template_arg_list(home, &list, &n, &ignored) < 0)
		return;
	for (size_t i = 0; i < n; i++)
		if (streq(list[i].name, name) && !streq(name, "default"))
			log_warn("`%s` is taken as the name of a new instance of template:default; for the "
				 "template, write: template:%s", name, name);
	locator_list_free(list, n);
}

static int read_template(const struct args *a, const char *home, struct ui *ui, struct template_arg *t,
			 struct error *err)
{
	const char *locator = template_of(a);
	int rc = template_arg_read(locator, home, ui_progress(ui), t, err);

	if (rc == -ENOENT && locator)
		explain_missing(locator, err);
	if (rc == 0 && !locator && a->positional.len)
		warn_name_of_template(home, a->positional.items[0]);
	return rc;
}

/* The name for the new instance: --name, a bare word, or the template's own. */
static int choose_name(const struct args *a, const struct template_arg *t, const char **ret,
		       struct error *err)
{
	const char *arg = a->positional.len ? a->positional.items[0] : NULL;
	struct error ignored = { 0 };

	*ret = args_str(a, "name");
	if (!*ret && arg && layout_check_name(arg, &ignored) == 0)
		*ret = arg;
	if (!*ret)
		*ret = t->name;
	if (!*ret)
		return error_set(err, -EINVAL, "a template from stdin needs --name NAME");
	return layout_check_name(*ret, err);
}

static void show_title(struct ui *ui, const char *name, const char *from, const struct config *c)
{
	char memory[UI_SIZE_LEN], disk[UI_SIZE_LEN];

	ui_title(ui, "%s  %s, %u CPU%s, %s, disk %s", name, from, c->cpus, c->cpus == 1 ? "" : "s",
		 ui_size(c->memory_bytes, memory), ui_size(c->disk_bytes, disk));
}

/* The directory, and the lock on it. */
static int make_directory(const char *home, const char *name, const char *verb, const struct buf *yaml,
			  int *ret_lock, struct instance **ret, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(home, name);
	int rc;

	if (layout_check_socket_paths(dir, err) < 0)
		return err->code;
	rc = instance_create(home, name, (const char *)yaml->data, yaml->len, err);
	if (rc == -EEXIST)
		return error_set(err, rc, "instance `%s` exists already; start it with: limactl start %s",
				 name, name);
	if (rc < 0 || lock_instance(dir, verb, ret_lock, err) < 0)
		return err->code;
	return instance_inspect(home, name, ret, err);
}

static int fill(const char *home, const char *name, const char *verb, const struct buf *yaml,
		struct ui *ui, int *ret_lock, struct instance **ret, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_fd int lock = -1;
	struct error undo = { 0 };

	if (make_directory(home, name, verb, yaml, &lock, &inst, err) < 0)
		return err->code;
	if (!inst->config)
		error_set(err, -EINVAL, "%s", inst->errors.len ? inst->errors.items[0] : "broken");
	else if (launch_prepare(inst, ui, err) == 0) {
		*ret = steal_ptr(&inst);
		*ret_lock = steal_fd(&lock);
		return 0;
	}
	if (instance_remove(home, name, &undo) < 0)
		log_warn("%s", undo.msg);
	return error_wrap(err, "create %s", name);
}

int create_instance(const struct args *a, const char *verb, struct ui *ui, char **ret_home,
		    int *ret_lock, struct instance **ret, struct error *err)
{
	struct template_arg t __attribute__((cleanup(template_arg_done))) = { 0 };
	scoped_config struct config *config = NULL;
	scoped_free char *home = NULL;
	const char *name;

	if (layout_lima_home(&home, err) < 0 || read_template(a, home, ui, &t, err) < 0 ||
	    choose_name(a, &t, &name, err) < 0 || edit_flags_apply(a, &t.yaml, err) < 0)
		return err->code;
	if (template_arg_check(&t, home, name, &config, err) < 0)
		return error_append(err, ", nothing was created");
	show_title(ui, name, t.shown, config);
	create_warn(config);
	if (fill(home, name, verb, &t.yaml, ui, ret_lock, ret, err) < 0)
		return err->code;
	*ret_home = steal_ptr(&home);
	return 0;
}

static int create(const struct args *a, struct ui *ui, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;
	scoped_fd int lock = -1;

	if (create_instance(a, "create", ui, &home, &lock, &inst, err) < 0)
		return err->code;
	ui_note(ui, "`%s` was created; start it with: limactl start %s", inst->name, inst->name);
	return 0;
}

static int run(const struct args *a)
{
	int code;

	return create_list(a, &code) ? code : verb_with_ui(a, create);
}

const struct verb verb_create = {
	.name = "create",
	.group = VERB_ADVANCED,
	.usage = "[TEMPLATE]",
	.summary = "create an instance without starting it",
	.text = "TEMPLATE is a file, template:NAME, an http(s) URL, or - for stdin; without one it is\n"
		"template:default. The image is fetched or built and the disk made, so that the first start\n"
		"has only to boot. When something goes wrong nothing is left behind.",
	.examples = "  limactl create template:debian-13\n"
		    "  limactl create --name web --cpus 2 --memory 2 ./web.yaml",
	.flags = (const struct flag *const[]){ create_flags, edit_flags, edit_new_flags, NULL },
	.max_args = 1,
	.arg = ARG_TEMPLATE,
	.run = run,
};
