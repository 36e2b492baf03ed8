#include "lib/store/archive_api.h"

#include "lib/base/mem.h"
#include "lib/store/shlib.h"

static struct archive_api api;

static const struct shlib_symbol symbols[] = {
#define X(name) SHLIB_SYM(struct archive_api, name, archive_##name),
	ARCHIVE_API(X)
#undef X
};

static const char *const sonames[] = { "libarchive.so.13", NULL };

static struct shlib lib = {
	.sonames = sonames,
	.package = "libarchive13",
	.symbols = symbols,
	.n_symbols = ARRAY_SIZE(symbols),
	.table = &api,
};

const struct archive_api *archive_api_load(struct error *err)
{
	return shlib_load(&lib, err) < 0 ? NULL : &api;
}
