#include "lib/config/locator.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/config.h"
#include "lib/config/edit.h"
#include "lib/config/near.h"
#include "lib/config/node.h"

bool locator_is_url(const char *locator)
{
	return strncmp(locator, "http://", 7) == 0 || strncmp(locator, "https://", 8) == 0;
}

/* Behind "template:" or "template://"; NULL if it is none. */
static const char *template_name(const char *locator)
{
	if (strncmp(locator, "template:", 9) != 0)
		return NULL;
	return locator + 9 + (strncmp(locator + 9, "//", 2) == 0 ? 2 : 0);
}

/* "github:", "oci:": letters, then a colon; so not "./a:b". */
static size_t scheme_len(const char *s)
{
	size_t n = 0;

	while (isalnum((unsigned char)s[n]) || (n && strchr("+-.", s[n]) && s[n]))
		n++;
	return n > 1 && s[n] == ':' && isalpha((unsigned char)*s) ? n : 0;
}

static bool has_dotdot(const char *path)
{
	for (const char *p = path; (p = strstr(p, "..")); p += 2)
		if ((p == path || p[-1] == '/') && (!p[2] || p[2] == '/'))
			return true;
	return false;
}

static bool ends_with(const char *s, const char *suffix)
{
	size_t ls = strlen(s), lx = strlen(suffix);

	return ls > lx && strcasecmp(s + ls - lx, suffix) == 0;
}

static char *base_name(const char *path)
{
	size_t len = strcspn(path, "?#");

	while (len && path[len - 1] == '/')
		len--;
	for (size_t i = len; i-- > 0;)
		if (path[i] == '/' || (path[i] == ':' && !i))
			return xstrndup(path + i + 1, len - i - 1);
	return xstrndup(path, len);
}

/* "Web.yaml" → "web" */
static char *instance_name(const char *path)
{
	char *name = base_name(path);
	size_t len = strlen(name);

	if (ends_with(name, ".yaml"))
		name[len - 5] = 0;
	else if (ends_with(name, ".yml"))
		name[len - 4] = 0;
	for (char *p = name; *p; p++)
		*p = (char)tolower((unsigned char)*p);
	return name;
}

/* --- template directories ----------------------------------------------------------- */

/* The extension is added when there is none: ".04" of ubuntu-24.04 is none. */
static char *with_extension(const char *name)
{
	const char *slash = strrchr(name, '/'), *dot = strrchr(slash ? slash : name, '.');

	return !dot || isdigit((unsigned char)dot[1]) ? xasprintf("%s.yaml", name) : xstrdup(name);
}

static int unknown_template(const char *name, const struct strv *dirs, struct error *err)
{
	struct locator_template *list = NULL;
	struct near near = { .wanted = name };
	scoped_strv struct strv names = { 0 };
	struct error ignored = ERROR_NONE;
	size_t len = 0;
	int rc;

	locator_list(dirs, &list, &len, &ignored);
	for (size_t i = 0; i < len; i++) {
		near_offer(&near, list[i].name);
		if (strncmp(list[i].name, name, strlen(name)) == 0 && !near.best)
			near.best = list[i].name;	/* "debian" of "debian-12" */
		strv_add(&names, list[i].name);
	}
	scoped_free char *all = strv_join(&names, ", ");
	if (near.best)
		rc = error_set(err, -ENOENT, "unknown template `%s`; did you mean `%s`?", name,
			       near.best);
	else
		rc = error_set(err, -ENOENT, "unknown template `%s`; there are: %s", name,
			       len ? all : "none");
	locator_list_free(list, len);
	return rc;
}

static int read_template(const char *name, const struct strv *dirs, struct buf *ret,
			 struct error *err)
{
	scoped_free char *file = with_extension(name);
	const char *dir;

	if (!*name || *name == '/' || has_dotdot(name) || strchr(name, '\\'))
		return error_set(err, -EINVAL, "`template:%s`: not the name of a template", name);
	strv_foreach(dir, dirs) {
		scoped_free char *path = xasprintf("%s/%s", dir, file);
		int rc = path_read_file(path, NODE_MAX_TEXT, ret, err);

		if (rc != -ENOENT && rc != -ENOTDIR)
			return rc;
	}
	return unknown_template(name, dirs, err);
}

static void add_template(struct locator_template **list, size_t *len, const char *dir,
			 const char *file)
{
	char *name;

	if (*file == '.' || *file == '_' || !ends_with(file, ".yaml"))
		return;
	name = xstrndup(file, strlen(file) - 5);
	for (size_t i = 0; i < *len; i++) {
		if (streq((*list)[i].name, name)) {	/* an earlier directory has it */
			free(name);
			return;
		}
	}
	*list = xreallocarray(*list, *len + 1, sizeof(**list));
	(*list)[(*len)++] = (struct locator_template){ name, xasprintf("%s/%s", dir, file) };
}

static int by_name(const void *a, const void *b)
{
	const struct locator_template *x = a, *y = b;

	return strcmp(x->name, y->name);
}

int locator_list(const struct strv *template_dirs, struct locator_template **ret, size_t *ret_len,
		 struct error *err)
{
	struct locator_template *list = NULL;
	size_t len = 0;
	const char *dir;

	strv_foreach(dir, template_dirs) {
		scoped_dir DIR *d = opendir(dir);
		const struct dirent *de;

		if (!d && errno != ENOENT && errno != ENOTDIR) {
			locator_list_free(list, len);
			return error_sys(err, -errno, "open %s", dir);
		}
		while (d && (de = readdir(d)))
			add_template(&list, &len, dir, de->d_name);
	}
	if (len)
		qsort(list, len, sizeof(*list), by_name);
	*ret = list;
	*ret_len = len;
	return 0;
}

void locator_list_free(struct locator_template *list, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		free(list[i].name);
		free(list[i].path);
	}
	free(list);
}

/* --- bare images --------------------------------------------------------------------- */

static const char *const packed[] = { ".gz", ".xz", ".bz2", ".zst", ".zstd" };
static const char *const images[] = { ".img", ".qcow2", ".raw", ".iso" };

static bool cut_suffix(char *name, const char *const *suffixes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (ends_with(name, suffixes[i])) {
			name[strlen(name) - strlen(suffixes[i])] = 0;
			return true;
		}
	}
	return false;
}

static bool is_image(const char *locator)
{
	scoped_free char *name = base_name(locator);

	cut_suffix(name, packed, ARRAY_SIZE(packed));
	return cut_suffix(name, images, ARRAY_SIZE(images));
}

/* Words of a file name that name an architecture, as distributions write them. */
static bool word_arch(const char *word, enum arch *ret)
{
	static const struct { const char *word; enum arch arch; } words[] = {
		{ "aarch64", ARCH_AARCH64 },  { "arm64", ARCH_AARCH64 },
		{ "amd64", ARCH_X86_64 },     { "x86_64", ARCH_X86_64 },
		{ "armhf", ARCH_ARMV7L },     { "armv7l", ARCH_ARMV7L },
		{ "ppc64el", ARCH_PPC64LE },  { "ppc64le", ARCH_PPC64LE },
		{ "riscv64", ARCH_RISCV64 },  { "s390x", ARCH_S390X },
	};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (strcasecmp(words[i].word, word) == 0) {
			*ret = words[i].arch;
			return true;
		}
	}
	return false;
}

static bool is_generic_word(const char *word)
{
	static const char *const words[] = { "cloud", "cloudimg", "cloudinit", "generic",
					     "genericcloud", "server", "latest", "nocloud", "uefi",
					     "base", "disk", "image", "live" };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (strcasecmp(words[i], word) == 0)
			return true;
	return strlen(word) == 8 && strspn(word, "0123456789") == 8;	/* a date */
}

/* A name and an architecture out of "debian-13-genericcloud-amd64.qcow2". */
static char *read_image_name(const char *locator, enum arch *ret_arch)
{
	scoped_free char *file = base_name(locator);
	scoped_strv struct strv words = { 0 }, kept = { 0 };
	char *name;
	const char *word;

	cut_suffix(file, packed, ARRAY_SIZE(packed));
	cut_suffix(file, images, ARRAY_SIZE(images));
	strv_split(&words, file, "-");
	strv_foreach(word, &words)
		if (!word_arch(word, ret_arch) && !is_generic_word(word))
			strv_add(&kept, word);
	name = kept.len ? strv_join(&kept, "-") : xstrdup("image");
	for (char *p = name; *p; p++)
		*p = isalnum((unsigned char)*p) || *p == '.' ? (char)tolower((unsigned char)*p) : '-';
	return name;
}

static int absolute(const char *path, char **ret, struct error *err)
{
	scoped_free char *full = path_expand_home(path), *cwd = NULL;

	if (*full != '/') {
		cwd = getcwd(NULL, 0);
		if (!cwd)
			return error_sys(err, -errno, "current directory");
	}
	*ret = cwd ? xasprintf("%s/%s", cwd, full) : steal_ptr(&full);
	return 0;
}

static int make_image_template(const char *locator, struct buf *ret_text, char **ret_name,
			       struct error *err)
{
	scoped_free char *where = NULL, *quoted = NULL;
	enum arch arch = arch_host();

	if (locator_is_url(locator) || strncmp(locator, "file:///", 8) == 0)
		where = xstrdup(locator);
	else if (absolute(locator, &where, err) < 0)
		return err->code;
	quoted = edit_quote(where);
	*ret_name = read_image_name(locator, &arch);
	buf_reset(ret_text);
	buf_addf(ret_text, "arch: %s\nimages:\n- location: %s\n  arch: %s\n", arch_name(arch), quoted,
		 arch_name(arch));
	return 0;
}

/* --- reading -------------------------------------------------------------------------- */

static int read_stdin(struct buf *ret, struct error *err)
{
	scoped_buf struct buf b = { 0 };
	ssize_t n;

	do {
		n = read(STDIN_FILENO, buf_reserve(&b, 65536), 65536);
		if (n < 0 && errno != EINTR)
			return error_sys(err, -errno, "read standard input");
		b.len += n > 0 ? (size_t)n : 0;
		if (b.len > NODE_MAX_TEXT)
			return error_set(err, -EFBIG, "standard input: larger than %d MiB",
					 NODE_MAX_TEXT >> 20);
	} while (n != 0);
	buf_add_str(&b, "");
	buf_done(ret);
	*ret = b;
	b = (struct buf){ 0 };
	return 0;
}

static int read_path(const char *path, const struct strv *dirs, struct buf *ret, struct error *err)
{
	scoped_free char *full = path_expand_home(path);
	struct near near = { .wanted = path };
	struct locator_template *list = NULL;
	struct error ignored = ERROR_NONE;
	size_t len = 0;
	int rc = path_read_file(full, NODE_MAX_TEXT, ret, err);

	if (rc != -ENOENT)
		return rc;
	error_set(err, rc, "there is no file `%s`", path);
	if (strchr(path, '/') || locator_list(dirs, &list, &len, &ignored) < 0)
		return rc;
	for (size_t i = 0; i < len; i++)
		near_offer(&near, list[i].name);
	if (near.best)
		rc = error_set(err, -ENOENT, "there is no file `%s`; did you mean `template:%s`?",
			       path, near.best);
	locator_list_free(list, len);
	return rc;
}

struct found {
	char *shown, *name;
};

static int read_any(const char *locator, const struct strv *dirs, struct buf *text,
		    struct found *f, struct error *err)
{
	const char *template = template_name(locator);

	if (streq(locator, "-")) {
		f->shown = xstrdup("standard input");
		return read_stdin(text, err);
	}
	if (is_image(locator)) {
		f->shown = xstrdup(locator);
		return make_image_template(locator, text, &f->name, err);
	}
	f->name = instance_name(template ? template : locator);
	if (template) {
		f->shown = xasprintf("template:%s", template);
		return read_template(template, dirs, text, err);
	}
	f->shown = xstrdup(locator);
	if (locator_is_url(locator))
		return error_set(err, -EPROTONOSUPPORT, "%s: has to be downloaded", locator);
	if (strncmp(locator, "file:///", 8) == 0)
		return read_path(locator + 7, dirs, text, err);
	if (scheme_len(locator) && !path_exists(locator))
		return error_set(err, -EINVAL, "`%s`: unknown scheme `%.*s`; known are template:, "
				 "file://, http:// and https://", locator,
				 (int)scheme_len(locator), locator);
	return read_path(locator, dirs, text, err);
}

int locator_read(const char *locator, const struct strv *template_dirs, struct buf *ret_text,
		 char **ret_shown_name, char **ret_instance_name, struct error *err)
{
	scoped_buf struct buf text = { 0 };
	struct found f = { 0 };
	int rc = read_any(locator, template_dirs, &text, &f, err);

	if (rc == 0 && ret_text) {
		buf_done(ret_text);
		*ret_text = text;
		text = (struct buf){ 0 };
	}
	if (ret_shown_name && (rc == 0 || rc == -EPROTONOSUPPORT))
		*ret_shown_name = steal_ptr(&f.shown);
	if (ret_instance_name && (rc == 0 || rc == -EPROTONOSUPPORT))
		*ret_instance_name = steal_ptr(&f.name);
	free(f.shown);
	free(f.name);
	return rc;
}

int locator_join(const char *from, const char *locator, char **ret, struct error *err)
{
	const char *template = template_name(from), *slash;
	scoped_free char *file = NULL;

	if (*locator == '/' || *locator == '~' || streq(locator, "-") || scheme_len(locator)) {
		*ret = xstrdup(locator);
		return 0;
	}
	if (!*locator || has_dotdot(locator))
		return error_set(err, -EINVAL, "`%s`: leads out of the directory of %s", locator, from);
	if (streq(from, "-"))
		return absolute(locator, ret, err);
	if (!template && !locator_is_url(from)) {
		if (absolute(strncmp(from, "file://", 7) == 0 ? from + 7 : from, &file, err) < 0)
			return err->code;
		from = file;
	}
	if (template) {
		slash = strrchr(template, '/');
		*ret = xasprintf("template:%.*s%s", slash ? (int)(slash - template + 1) : 0, template,
				 locator);
		return 0;
	}
	for (slash = from + strcspn(from, "?#"); slash > from && slash[-1] != '/';)
		slash--;
	*ret = xasprintf("%.*s%s", (int)(slash - from), from, locator);
	return 0;
}
