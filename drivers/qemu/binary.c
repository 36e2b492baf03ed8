#include "drivers/qemu/binary.h"

#include <errno.h>
#include <stdlib.h>

#include "drivers/qemu/args.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

/* lima-yaml.md §5: floor and soft floor. 4.0 brought what our -blockdev and
 * -accel lines need; 6.2 is the oldest that distributions still care for. */
static const struct qemu_version oldest = { 4, 0, 0 }, oldest_tested = { 6, 2, 0 };

static int not_found(const struct qemu_arch *arch, const char *named, struct error *err)
{
	if (named)
		return error_set(err, -ENOENT, "$%s names `%s`, which is no program", arch->env,
				 named);
	return error_set(err, -ENOENT, "qemu-system-%s is not installed: sudo apt install %s "
			 "qemu-utils (or set $%s)", arch->suffix, arch->package, arch->env);
}

int qemu_binary_find(enum arch arch, struct strv *ret_program, struct error *err)
{
	const struct qemu_arch *a = qemu_arch_find(arch);
	scoped_strv struct strv words = { 0 };
	const char *env;
	char *found;

	if (!a)
		return error_set(err, -ENOTSUP, "arch: the qemu driver runs x86_64 and aarch64 "
				 "guests, not %s", arch_name(arch));
	env = getenv(a->env);
	if (env && *env && access(env, X_OK) == 0)	/* a path with spaces in it */
		strv_add(&words, env);
	else if (env && *env)
		strv_split(&words, env, " ");
	else
		strv_addf(&words, "qemu-system-%s", a->suffix);
	found = words.len ? path_find_program(words.items[0]) : NULL;
	if (!found)
		return not_found(a, env && *env ? env : NULL, err);
	strv_take(ret_program, found);
	for (size_t i = 1; i < words.len; i++)
		strv_add(ret_program, words.items[i]);
	return 0;
}

char *qemu_binary_prefix(const struct strv *program)
{
	scoped_free char *real = realpath(program->items[0], NULL);
	char *slash = real ? strrchr(real, '/') : NULL;

	if (!slash || slash - real < 5 || strncmp(slash - 4, "/bin", 4) != 0)
		return NULL;
	return xstrndup(real, (size_t)(slash - 4 - real));
}

void qemu_binary_question(const struct strv *program, bool sandbox, struct strv *ret_argv)
{
	const char *word;

	strv_foreach(word, program)
		strv_add(ret_argv, word);
	if (sandbox)	/* read before -version, which ends the program */
		strv_add_all(ret_argv, "-sandbox", "on,obsolete=deny", NULL);
	strv_add(ret_argv, "-version");
}

int qemu_binary_answer(const struct strv *program, int exit_code, const char *out,
		       const char *errout, bool asked_sandbox, bool *ret_retry,
		       struct qemu_version *ret, struct error *err)
{
	*ret_retry = false;
	if (exit_code != 0 && asked_sandbox && strstr(errout, "sandbox")) {
		*ret_retry = true;
		return 0;
	}
	if (exit_code != 0 || !qemu_version_parse(out, ret)) {
		scoped_free char *said = log_escape(*errout ? errout : out, 200);

		return error_set(err, -ENOEXEC, "%s -version: exit %d, `%s`: is it QEMU?",
				 program->items[0], exit_code, said);
	}
	return 0;
}

int qemu_binary_check_version(const struct qemu_version *v, const struct config *config,
			      struct strv *warnings, struct error *err)
{
	char have[QEMU_VERSION_SIZE], want[QEMU_VERSION_SIZE];
	struct qemu_version minimum;

	qemu_version_text(v, have);
	if (qemu_version_compare(v, &oldest) < 0)
		return error_set(err, -ENOTSUP, "QEMU %s is too old: at least %s is needed; "
				 "install a newer one or name it in $QEMU_SYSTEM_%s", have,
				 qemu_version_text(&oldest, want),
				 config->arch == ARCH_X86_64 ? "X86_64" : "AARCH64");
	if (config->qemu_minimum_version &&
	    !qemu_version_parse(config->qemu_minimum_version, &minimum))
		return error_set(err, -EINVAL, "vmOpts.qemu.minimumVersion: `%s` is no version",
				 config->qemu_minimum_version);
	if (config->qemu_minimum_version && qemu_version_compare(v, &minimum) < 0)
		return error_set(err, -ENOTSUP, "QEMU %s is too old: vmOpts.qemu.minimumVersion "
				 "is %s; install a newer one", have, config->qemu_minimum_version);
	if (warnings && qemu_version_compare(v, &oldest_tested) < 0)
		strv_addf(warnings, "QEMU %s is older than %s, the oldest that is tested", have,
			  qemu_version_text(&oldest_tested, want));
	return 0;
}
