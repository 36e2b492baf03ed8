#include "cmd/limactl/copy_path.h"

#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

/* The programs run in the guest's home, and ~ is quoted away on the way there. HOST::NAME
 * would be a module of a daemon to rsync. */
static char *guest_path(const char *path)
{
	if (path[0] == '~' && (!path[1] || path[1] == '/'))
		path += 1 + strspn(path + 1, "/");
	return xasprintf("%s%s", path[0] == ':' ? "./" : "", path);
}

/* So that nobody takes what stands before a colon for a host. */
static char *host_path(const char *path)
{
	size_t first = strcspn(path, ":/");

	return path[first] == ':' ? xasprintf("./%s", path) : xstrdup(path);
}

void copy_path_parse(const char *given, struct copy_path *ret)
{
	const char *colon = strchr(given, ':');
	scoped_free char *name = colon ? xstrndup(given, (size_t)(colon - given)) : NULL;
	struct error ignored = { 0 };
	bool remote = name && layout_check_name(name, &ignored) == 0;

	*ret = (struct copy_path){
		.given = given,
		.instance = remote ? steal_ptr(&name) : NULL,
		.path = remote ? guest_path(colon + 1) : host_path(given),
	};
}

void copy_path_done(struct copy_path *p)
{
	free(p->instance);
	free(p->path);
}

char *copy_path_ssh_config(const char *home, const struct copy_path *paths, size_t n)
{
	struct buf b = { 0 };

	buf_add_str(&b, "# Written by limactl copy: every instance, as lima-NAME\n");
	for (size_t i = 0; i < n; i++)
		if (paths[i].instance)
			buf_addf(&b, "Include \"%s/%s/%s\"\n", home, paths[i].instance,
				 layout_file_name(FILE_SSH_CONFIG));
	buf_addf(&b, "Include \"%s/[A-Za-z0-9]*/%s\"\n", home, layout_file_name(FILE_SSH_CONFIG));
	return buf_steal_str(&b);
}

void copy_path_trim(struct copy_path *p, bool slash)
{
	size_t len = strlen(p->path);
	char *trimmed;

	while (len > 1 && p->path[len - 1] == '/')
		len--;
	if (!len || streq(p->path, "/"))
		return;
	trimmed = xasprintf("%.*s%s", (int)len, p->path, slash ? "/" : "");
	free(p->path);
	p->path = trimmed;
}
