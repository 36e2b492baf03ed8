#include "lib/store/digest.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/store/shlib.h"

enum { CHUNK_BYTES = 1 << 20 };

static struct crypto_api {
	__typeof__(EVP_MD_CTX_new) *ctx_new;
	__typeof__(EVP_MD_CTX_free) *ctx_free;
	__typeof__(EVP_get_digestbyname) *by_name;
	__typeof__(EVP_DigestInit_ex) *init;
	__typeof__(EVP_DigestUpdate) *update;
	__typeof__(EVP_DigestFinal_ex) *final;
} crypto;

static const struct shlib_symbol crypto_symbols[] = {
	SHLIB_SYM(struct crypto_api, ctx_new, EVP_MD_CTX_new),
	SHLIB_SYM(struct crypto_api, ctx_free, EVP_MD_CTX_free),
	SHLIB_SYM(struct crypto_api, by_name, EVP_get_digestbyname),
	SHLIB_SYM(struct crypto_api, init, EVP_DigestInit_ex),
	SHLIB_SYM(struct crypto_api, update, EVP_DigestUpdate),
	SHLIB_SYM(struct crypto_api, final, EVP_DigestFinal_ex),
};

static const char *const crypto_sonames[] = { "libcrypto.so.3", "libcrypto.so.1.1", NULL };

static struct shlib crypto_lib = {
	.sonames = crypto_sonames,
	.package = "libssl3",
	.symbols = crypto_symbols,
	.n_symbols = ARRAY_SIZE(crypto_symbols),
	.table = &crypto,
};

static const struct algo {
	char name[DIGEST_ALGO_SIZE];
	unsigned hex_len;
} algos[] = { { "sha256", 64 }, { "sha384", 96 }, { "sha512", 128 } };

struct digest {
	const struct algo *algo;
	EVP_MD_CTX *ctx;
};

static const struct algo *find_algo(const char *text)
{
	size_t len = strcspn(text, ":");

	for (size_t i = 0; i < ARRAY_SIZE(algos); i++)
		if (strlen(algos[i].name) == len && strncmp(algos[i].name, text, len) == 0)
			return &algos[i];
	return NULL;
}

int digest_check_text(const char *text, struct error *err)
{
	const struct algo *algo = find_algo(text);
	const char *hex = strchr(text, ':');

	if (!algo || !hex)
		return error_set(
			err, -EINVAL,
			"digest `%.140s`: it should read sha256:, sha384: or sha512: and hex "
			"digits",
			text);
	hex++;
	if (strlen(hex) != algo->hex_len || strspn(hex, "0123456789abcdef") != algo->hex_len)
		return error_set(err, -EINVAL,
				 "digest `%.140s`: %s has %u hex digits, in lower case", text,
				 algo->name, algo->hex_len);
	return 0;
}

const char *digest_algo(const char *text, char out[DIGEST_ALGO_SIZE])
{
	const struct algo *algo = find_algo(text);

	assert(algo);
	return strcpy(out, algo->name);
}

int digest_new(const char *name, struct digest **ret, struct error *err)
{
	const struct algo *algo = find_algo(name);
	struct digest *d;
	const EVP_MD *md;

	if (!algo)
		return error_set(err, -EINVAL, "digest algorithm of `%.20s` is unknown", name);
	if (shlib_load(&crypto_lib, err) < 0)
		return err->code;
	d = xnew(struct digest);
	d->algo = algo;
	d->ctx = crypto.ctx_new();
	md = crypto.by_name(algo->name);
	if (!d->ctx || !md || !crypto.init(d->ctx, md, NULL)) {
		digest_free(d);
		return error_set(err, -ENOSYS, "libcrypto refuses %s", algo->name);
	}
	*ret = d;
	return 0;
}

void digest_update(struct digest *d, const void *data, size_t len)
{
	int ok = crypto.update(d->ctx, data, len);

	assert(ok);
}

const char *digest_final(struct digest *d, char out[DIGEST_TEXT_SIZE])
{
	unsigned char raw[EVP_MAX_MD_SIZE];
	unsigned len = 0;
	int ok = crypto.final(d->ctx, raw, &len);
	char *p;

	assert(ok && len * 2 == d->algo->hex_len);
	p = out + sprintf(out, "%s:", d->algo->name);
	for (unsigned i = 0; i < len; i++)
		p += sprintf(p, "%02x", raw[i]);
	return out;
}

void digest_free(struct digest *d)
{
	if (!d)
		return;
	if (d->ctx)
		crypto.ctx_free(d->ctx);
	free(d);
}

int digest_update_file(struct digest *d, const char *path, const char *what,
		       const struct progress *progress, struct error *err)
{
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	scoped_free char *chunk = xmalloc(CHUNK_BYTES);
	uint64_t done = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_sys(err, -errno, "open %s", path);
	for (;;) {
		ssize_t n = read(fd, chunk, CHUNK_BYTES);

		if (interrupt_check(err) < 0)
			return err->code;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_sys(err, -errno, "read %s", path);
		if (n == 0)
			return 0;
		digest_update(d, chunk, (size_t)n);
		done += (uint64_t)n;
		progress_update(progress, what, done, (uint64_t)st.st_size);
	}
}

int digest_verify_file(const char *path, const char *expected, const char *what,
		       const struct progress *progress, struct error *err)
{
	scoped_digest struct digest *d = NULL;
	char got[DIGEST_TEXT_SIZE];

	if (digest_check_text(expected, err) < 0 || digest_new(expected, &d, err) < 0 ||
	    digest_update_file(d, path, what, progress, err) < 0)
		return err->code;
	if (!streq(digest_final(d, got), expected))
		return error_set(err, -EBADMSG, "%s: digest mismatch: expected %s, got %s", path,
				 expected, got);
	return 0;
}

int digest_text(const char *algo, const void *data, size_t len, char out[DIGEST_TEXT_SIZE],
		struct error *err)
{
	scoped_digest struct digest *d = NULL;

	if (digest_new(algo, &d, err) < 0)
		return err->code;
	digest_update(d, data, len);
	digest_final(d, out);
	return 0;
}
