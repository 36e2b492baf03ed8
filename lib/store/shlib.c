#include "lib/store/shlib.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

static void *open_first(const struct shlib *lib)
{
	for (const char *const *name = lib->sonames; *name; name++) {
		void *handle = dlopen(*name, RTLD_LAZY | RTLD_LOCAL);

		if (handle)
			return handle;
	}
	return NULL;
}

int shlib_load(struct shlib *lib, struct error *err)
{
	void *handle;

	if (lib->loaded)
		return 0;
	handle = open_first(lib);
	if (!handle)
		return error_set(
			err, -ENOENT,
			"%s is needed for this and cannot be loaded: install the package %s",
			lib->sonames[0], lib->package);
	for (size_t i = 0; i < lib->n_symbols; i++) {
		void *symbol = dlsym(handle, lib->symbols[i].name);

		if (!symbol) {
			dlclose(handle);
			return error_set(err, -ENOSYS, "%s has no %s: it is too old",
					 lib->sonames[0], lib->symbols[i].name);
		}
		/* memcpy: a pointer to a function cannot be assigned from void * in ISO C */
		memcpy((char *)lib->table + lib->symbols[i].offset, &symbol, sizeof(symbol));
	}
	lib->loaded = true; /* stays open until the process ends */
	return 0;
}
