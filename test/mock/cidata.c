/* cidata.c - plays the seed's writer: a file with the instance's name in it */
#include "hostagent/cidata.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

int cidata_write(const struct cidata_spec *spec, struct error *err)
{
	scoped_free char *path = layout_instance_file(spec->dir, FILE_CIDATA);

	if (getenv("MOCK_SEED_FAILS"))
		return error_set(err, -ENOSPC, "write %s: no space left on device", path);
	if (getenv("MOCK_SEED_SLOW"))
		usleep(300 * 1000);	/* on libuv's pool */
	return path_write_file(path, spec->name, strlen(spec->name), 0600, err);
}

int cidata_instance_id(const char *dir, char **ret, struct error *err)
{
	*ret = xstrdup("iid-mock");
	return 0;
}
