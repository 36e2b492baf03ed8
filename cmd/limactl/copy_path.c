#include "cmd/limactl/copy_path.h"

#include <string.h>

#include "lib/base/mem.h"
#include "lib/store/layout.h"

/* The programs run in the guest's home, and ~ is quoted away on the way there. */
static char *guest_path(const char *path)
{
	if (path[0] == '~' && (!path[1] || path[1] == '/'))
		return xstrdup(path + 1 + strspn(path + 1, "/"));
	return xstrdup(path);
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
