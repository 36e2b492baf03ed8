#include "drivers/qemu/validate.h"

#include <errno.h>

#include "drivers/qemu/accel.h"
#include "drivers/qemu/args.h"
#include "drivers/qemu/binary.h"
#include "drivers/qemu/firmware.h"
#include "lib/base/child.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static int ask_version(const struct strv *program, struct qemu_version *ret, struct error *err)
{
	bool sandbox = true, retry = true;

	for (; retry; sandbox = false) {
		scoped_strv struct strv argv = { 0 };
		scoped_child_result struct child_result r = { 0 };
		struct child_spec spec = { 0 };

		qemu_binary_question(program, sandbox, &argv);
		spec.argv = (const char *const *)argv.items;
		if (child_run(&spec, &r, err) < 0)
			return err->code;
		if (qemu_binary_answer(program, r.exit_code, buf_str(&r.out), buf_str(&r.err),
				       sandbox, &retry, ret, err) < 0)
			return err->code;
	}
	return 0;
}

/* KVM would be used: does this QEMU know it? Some distributions' cross builds
 * do not. */
static int check_accel(const struct strv *program, enum arch arch, struct error *err)
{
	scoped_strv struct strv argv = { 0 };
	scoped_child_result struct child_result r = { 0 };
	struct child_spec spec = { 0 };
	const char *word;

	if (qemu_accel_choose(arch, NULL).kind != QEMU_KVM)
		return 0;
	strv_foreach(word, program)
		strv_add(&argv, word);
	strv_add_all(&argv, "-accel", "help", NULL);
	spec.argv = (const char *const *)argv.items;
	if (child_run_ok(&spec, &r, err) < 0)
		return err->code;
	if (!strstr(buf_str(&r.out), "kvm"))
		return error_set(err, -ENOTSUP, "%s was built without KVM; install "
				 "your distribution's package %s", program->items[0],
				 qemu_arch_find(arch)->package);
	return 0;
}

static const struct config_image *first_image(const struct config *c)
{
	for (size_t i = 0; i < c->n_images; i++)
		if (c->images[i].file.arch == c->arch)
			return &c->images[i];
	return NULL;
}

/* Before the first start the image is not here yet, so what it will need is a
 * guess from its entry: a missing firmware is then a warning only. */
static int check_firmware(const struct driver_spec *spec, const struct strv *program,
			  struct strv *warnings, struct error *err)
{
	const struct config *c = spec->config;
	scoped_free char *kernel = layout_instance_file(spec->dir, FILE_KERNEL);
	scoped_free char *disk = layout_instance_file(spec->dir, FILE_DISK);
	scoped_free char *own = layout_instance_file(spec->dir, FILE_EFI_CODE);
	scoped_free char *prefix = qemu_binary_prefix(program);
	struct qemu_firmware_search where = { own, getenv("HOME"), prefix, "" };
	const struct config_image *image = first_image(c);
	struct qemu_firmware found = { 0 };
	struct error missing = ERROR_NONE;

	if (path_exists(kernel) ||
	    (c->firmware.legacy_bios && qemu_arch_find(c->arch)->has_legacy_bios))
		return 0;
	if (qemu_firmware_find(c->arch, &where, &found, &missing) == 0) {
		free(found.path);
		return 0;
	}
	if (path_exists(disk)) {
		*err = missing;
		return err->code;
	}
	if (image && !image->kernel.location && image->file.location &&
	    strncmp(image->file.location, "mmdebstrap:", 11) != 0)
		strv_addf(warnings, "%s", missing.msg);
	return 0;
}

int qemu_validate(const struct driver_spec *spec, struct strv *warnings, struct error *err)
{
	scoped_strv struct strv program = { 0 };
	struct qemu_version version = { 0 };

	if (qemu_binary_find(spec->config->arch, &program, err) < 0 ||
	    ask_version(&program, &version, err) < 0 ||
	    qemu_binary_check_version(&version, spec->config, warnings, err) < 0 ||
	    check_accel(&program, spec->config->arch, err) < 0 ||
	    check_firmware(spec, &program, warnings, err) < 0)
		return err->code;
	return layout_check_socket_paths(spec->dir, err);
}
