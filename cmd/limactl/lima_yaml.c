#include "cmd/limactl/lima_yaml.h"

#include <errno.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

enum { MAX_BYTES = 4 << 20 };	/* config_load() takes no more */

int lima_yaml_read(const struct instance *inst, struct buf *ret, struct error *err)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_LIMA_YAML);

	return path_read_file(path, MAX_BYTES, ret, err);
}

static void log_problems(const struct config_problems *p)
{
	const char *line;

	strv_foreach(line, &p->warnings)
		log_warn("%s", line);
	if (p->errors.len > 1)
		strv_foreach(line, &p->errors)
			log_error("%s", line);
}

int lima_yaml_check(const struct instance *inst, const struct buf *yaml, struct error *err)
{
	struct config_context ctx = {
		.instance = inst->name, .instance_dir = inst->dir, .lima_home = inst->lima_home,
	};
	scoped_config struct config *config = NULL;
	struct config_problems problems = { 0 };
	int rc = config_load(&ctx, layout_file_name(FILE_LIMA_YAML), buf_str(yaml), yaml->len, &problems,
			     &config, err);

	log_problems(&problems);
	config_problems_done(&problems);
	if (rc == 0 && inst->config && config->disk_bytes < inst->config->disk_bytes)
		return error_set(err, -EINVAL, "disk: a disk cannot shrink");
	return rc;
}

int lima_yaml_replace(const struct instance *inst, const struct buf *yaml, struct error *err)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_LIMA_YAML);

	if (lima_yaml_check(inst, yaml, err) < 0)
		return err->code;
	return path_write_file(path, yaml->data, yaml->len, 0644, err);
}
