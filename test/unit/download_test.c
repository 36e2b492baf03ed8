#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"
#include "lib/store/digest.h"
#include "lib/store/download.h"

/* A cache, a root directory, and test/mock/httpd.py serving it. */
static char tmp[] = "/tmp/lima-download-XXXXXX";
static char *root;
static pid_t httpd_pid;
static int httpd_stdin = -1;
static int port;

enum { BLOB_BYTES = 300 * 1000 };

static void make_blob(const char *name, unsigned seed)
{
	scoped_free char *path = xasprintf("%s/%s", root, name);
	scoped_free uint8_t *data = xmalloc(BLOB_BYTES);
	struct error err;

	for (size_t i = 0; i < BLOB_BYTES; i++) {
		seed = seed * 1103515245 + 12345;
		data[i] = (uint8_t)(seed >> 16);
	}
	assert_int_equal(path_write_file(path, data, BLOB_BYTES, 0644, &err), 0);
}

static void blob_digest(const char *name, char out[DIGEST_TEXT_SIZE])
{
	scoped_free char *path = xasprintf("%s/%s", root, name);
	scoped_digest struct digest *d = NULL;
	struct error err;

	assert_int_equal(digest_new("sha512", &d, &err), 0);
	assert_int_equal(digest_update_file(d, path, "", NULL, &err), 0);
	digest_final(d, out);
}

static int start_httpd(void)
{
	int in[2], out[2];
	FILE *f;

	if (pipe(in) < 0 || pipe(out) < 0)
		return -1;
	httpd_pid = fork();
	if (httpd_pid == 0) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		close(in[1]);
		close(out[0]);
		execlp("python3", "python3", LIMA_TEST_MOCK "/httpd.py", root, NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	httpd_stdin = in[1];
	fcntl(httpd_stdin, F_SETFD, FD_CLOEXEC);
	f = fdopen(out[0], "r");
	if (fscanf(f, "%d", &port) != 1)
		return -1;
	fclose(f);
	return 0;
}

static int setup(void **state)
{
	static const char *const proxies[] = { "http_proxy", "all_proxy", "ALL_PROXY" };

	for (size_t i = 0; i < ARRAY_SIZE(proxies); i++)
		unsetenv(proxies[i]);
	interrupt_install();
	if (!mkdtemp(tmp))
		return -1;
	root = xasprintf("%s/root", tmp);
	mkdir(root, 0755);
	make_blob("blob", 1);
	return start_httpd();
}

static int teardown(void **state)
{
	struct error err;

	close(httpd_stdin);
	waitpid(httpd_pid, NULL, 0);
	free(root);
	return path_remove_tree(tmp, &err);
}

/* Each test has its own empty cache. */
static int fresh_cache(void **state)
{
	scoped_free char *cache = xasprintf("%s/cache", tmp);
	struct error err;

	setenv("XDG_CACHE_HOME", cache, 1);
	return path_remove_tree(cache, &err);
}

static char *url_of(const char *path)
{
	return xasprintf("http://127.0.0.1:%d/%s", port, path);
}

static void assert_same_file(const char *got, const char *name)
{
	scoped_free char *want = xasprintf("%s/%s", root, name);
	scoped_buf struct buf a = { 0 }, b = { 0 };
	struct error err;

	assert_int_equal(path_read_file(got, 1 << 20, &a, &err), 0);
	assert_int_equal(path_read_file(want, 1 << 20, &b, &err), 0);
	assert_int_equal(a.len, b.len);
	assert_memory_equal(a.data, b.data, a.len);
}

static char *read_entry(const char *url, const char *name)
{
	scoped_free char *dir = NULL, *path = NULL;
	scoped_buf struct buf b = { 0 };
	struct error err;

	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	path = xasprintf("%s/%s", dir, name);
	if (path_read_file(path, 1 << 20, &b, &err) < 0)
		return NULL;
	return buf_steal_str(&b);
}

static void assert_no_part(const char *url)
{
	scoped_free char *part = read_entry(url, "data.part");
	scoped_free char *etag = read_entry(url, "data.part.etag");

	assert_null(part);
	assert_null(etag);
}

/* Requests for @path that the server saw so far, joined by "|". */
static char *requests_for(const char *path)
{
	scoped_free char *cmd = xasprintf("python3 -c 'import urllib.request as u;"
					  "print(u.urlopen(\"http://127.0.0.1:%d/log\").read()"
					  ".decode())'",
					  port);
	scoped_strv struct strv lines = { 0 };
	scoped_free char *line = NULL;
	FILE *f = popen(cmd, "r");
	size_t cap = 0;

	while (getline(&line, &cap, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		if (strstr(line, path))
			strv_add(&lines, strstr(line, path) + strlen(path) + 1);
	}
	pclose(f);
	return strv_join(&lines, "|");
}

static void fetch_ok(const char *url, const char *digest, bool want_cached, const char *name)
{
	scoped_download struct download d = { 0 };
	struct error err = ERROR_NONE;

	if (download_fetch(url, digest, "downloading", NULL, &d, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(d.cached, want_cached);
	assert_same_file(d.path, name);
	assert_no_part(url);
}

static int fetch_fails(const char *url, const char *digest, const char *text)
{
	scoped_download struct download d = { 0 };
	struct error err = ERROR_NONE;

	if (download_fetch(url, digest, "downloading", NULL, &d, &err) == 0)
		fail_msg("fetching %s should fail with `%s`", url, text);
	if (!strstr(err.msg, text))
		fail_msg("`%s` is not in `%s`", text, err.msg);
	assert_null(d.path);
	return err.code;
}

static void test_download_keeps_the_cache_layout(void **state)
{
	scoped_free char *url = url_of("plain/blob");
	char digest[DIGEST_TEXT_SIZE];
	scoped_free char *u = NULL, *type = NULL, *time = NULL, *dig = NULL;

	blob_digest("blob", digest);
	fetch_ok(url, digest, false, "blob");
	u = read_entry(url, "url");
	type = read_entry(url, "type");
	time = read_entry(url, "time");
	dig = read_entry(url, "sha512.digest");
	assert_string_equal(u, url);
	assert_string_equal(type, "application/octet-stream");
	assert_non_null(strstr(time, " GMT"));
	assert_string_equal(dig, digest);
	fetch_ok(url, digest, true, "blob");
}

static void test_download_without_digest_asks_if_modified(void **state)
{
	scoped_free char *url = url_of("plain/changing");
	scoped_free char *seen = NULL;

	make_blob("changing", 2);
	fetch_ok(url, NULL, false, "changing");
	fetch_ok(url, NULL, true, "changing");
	make_blob("changing", 3);
	fetch_ok(url, NULL, false, "changing");
	seen = requests_for("/plain/changing");
	assert_string_equal(seen, "200 -|304 -|200 -");
}

static void test_download_uses_the_cache_when_offline(void **state)
{
	scoped_free char *url = NULL, *dir = NULL, *data = NULL;
	scoped_download struct download d = { 0 };
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	struct error err = ERROR_NONE;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t begin = clock_mono_ms();

	/* bound but not listening: refused, and nobody else can take the port */
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	getsockname(fd, (struct sockaddr *)&addr, &len);
	url = xasprintf("http://127.0.0.1:%d/x", ntohs(addr.sin_port));
	assert_int_equal(fetch_fails(url, NULL, "onnect"), -ENETUNREACH);
	assert_no_part(url);
	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	data = xasprintf("%s/data", dir);
	assert_int_equal(path_write_file(data, "old", 3, 0644, &err), 0);
	assert_int_equal(download_fetch(url, NULL, "x", NULL, &d, &err), 0);
	assert_true(d.cached);
	assert_in_range(clock_mono_ms() - begin, 0, 3000);
	close(fd);
}

static void test_download_unknown_host_fails_at_once(void **state)
{
	uint64_t begin = clock_mono_ms();

	assert_int_equal(fetch_fails("http://no-such-host.invalid/x", NULL, "no-such-host"),
			 -ENETUNREACH);
	assert_in_range(clock_mono_ms() - begin, 0, 5000);
}

static void test_download_resumes_after_cuts(void **state)
{
	scoped_free char *url = url_of("cut/blob");
	scoped_free char *seen = NULL;
	char digest[DIGEST_TEXT_SIZE];

	blob_digest("blob", digest);
	fetch_ok(url, digest, false, "blob");
	seen = requests_for("/cut/blob");
	assert_string_equal(seen, "200 -|206 bytes=100001-|206 bytes=200002-");
}

static void test_download_resumes_what_a_killed_process_left(void **state)
{
	scoped_free char *url = url_of("slow/left"), *plain = NULL;
	scoped_free char *dir = NULL, *part = NULL, *seen = NULL, *etag = NULL;
	struct stat st = { 0 };
	struct error err;
	pid_t pid;

	make_blob("left", 4);
	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	part = xasprintf("%s/data.part", dir);
	pid = fork();
	if (pid == 0) {
		struct download d;

		download_fetch(url, NULL, "x", NULL, &d, &err);
		_exit(0);
	}
	for (uint64_t end = clock_mono_ms() + 10000; clock_mono_ms() < end; usleep(10000))
		if (stat(part, &st) == 0 && st.st_size == BLOB_BYTES / 2)
			break;
	assert_int_equal(st.st_size, BLOB_BYTES / 2);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	/* the same entry under a URL that behaves */
	plain = url_of("plain/left");
	scoped_free char *dir2 = NULL;
	assert_int_equal(download_entry_dir(plain, &dir2, &err), 0);
	assert_int_equal(rename(dir, dir2), 0);
	etag = read_entry(plain, "data.part.etag");
	assert_non_null(etag);
	fetch_ok(plain, NULL, false, "left");
	seen = requests_for("/plain/left");
	assert_string_equal(seen, "206 bytes=150000-");
}

/* Leaves @text as what came so far. */
static void leave_part(const char *url, const char *text, const char *validator)
{
	scoped_free char *dir = NULL, *part = NULL, *etag = NULL;
	struct error err;

	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	part = xasprintf("%s/data.part", dir);
	etag = xasprintf("%s/data.part.etag", dir);
	assert_int_equal(path_mkdir_all(dir, 0700, &err), 0);
	assert_int_equal(path_write_file(part, text, strlen(text), 0600, &err), 0);
	if (validator)
		assert_int_equal(path_write_file(etag, validator, strlen(validator), 0600, &err),
				 0);
}

static void test_download_part_of_another_version_is_dropped(void **state)
{
	scoped_free char *url = url_of("plain/blob"), *seen = NULL;
	char digest[DIGEST_TEXT_SIZE];

	blob_digest("blob", digest);
	leave_part(url, "rubbish", "\"old\""); /* If-Range fails: 200 */
	fetch_ok(url, NULL, false, "blob");
	fresh_cache(state);
	leave_part(url, "rubbish", NULL); /* the digest fails: all again */
	fetch_ok(url, digest, false, "blob");
	fresh_cache(state);
	leave_part(url, "rubbish", NULL); /* nothing to tell by */
	fetch_ok(url, NULL, false, "blob");
	seen = requests_for("/plain/blob");
	assert_non_null(strstr(seen, "200 bytes=7-|206 bytes=7-|200 -|200 -"));
}

static void test_download_range_that_lies_is_dropped(void **state)
{
	scoped_free char *url = url_of("lie/blob");
	char digest[DIGEST_TEXT_SIZE];

	blob_digest("blob", digest);
	leave_part(url, "rubbish", NULL);
	fetch_ok(url, digest, false, "blob");
}

static void test_download_part_beyond_the_end_is_dropped(void **state)
{
	scoped_free char *url = url_of("plain/short"), *path = xasprintf("%s/short", root);
	struct error err;
	char digest[DIGEST_TEXT_SIZE];

	assert_int_equal(path_write_file(path, "abc", 3, 0644, &err), 0);
	blob_digest("short", digest);
	leave_part(url, "rubbish", NULL); /* 416 */
	fetch_ok(url, digest, false, "short");
}

static void test_download_busy_server_is_tried_again(void **state)
{
	scoped_free char *url = url_of("busy/blob");

	fetch_ok(url, NULL, false, "blob");
}

static void test_download_server_without_ranges(void **state)
{
	scoped_free char *url = url_of("norange/blob");

	fetch_ok(url, NULL, false, "blob");
	fetch_ok(url, NULL, false, "blob"); /* nothing to ask with: fetched again */
}

static void test_download_follows_http_redirects_only(void **state)
{
	scoped_free char *moved = url_of("moved/blob"), *evil = url_of("evil/blob");

	fetch_ok(moved, NULL, false, "blob");
	fetch_fails(evil, NULL, "rotocol");
}

static void test_download_404_fails_at_once(void **state)
{
	scoped_free char *url = url_of("plain/nope"), *tea = url_of("teapot/blob");
	uint64_t begin = clock_mono_ms();

	assert_int_equal(fetch_fails(url, NULL, "HTTP status 404"), -ENOENT);
	assert_int_equal(fetch_fails(tea, NULL, "HTTP status 418"), -EIO);
	assert_in_range(clock_mono_ms() - begin, 0, 2000);
	assert_no_part(url);
}

static void test_download_digest_mismatch_leaves_nothing(void **state)
{
	scoped_free char *url = url_of("plain/blob"), *data = NULL;
	char digest[DIGEST_TEXT_SIZE];

	blob_digest("blob", digest);
	digest[10] = digest[10] == 'a' ? 'b' : 'a';
	assert_int_equal(fetch_fails(url, digest, "digest mismatch: expected sha512:"), -EBADMSG);
	assert_no_part(url);
	data = read_entry(url, "data");
	assert_null(data);
	fetch_fails(url, "md5:abc", "sha256:, sha384: or sha512:");
	fetch_fails(url, "sha256:ABC", "64 hex digits");
}

static void test_download_cached_with_other_digest_is_replaced(void **state)
{
	scoped_free char *url = url_of("plain/moving");
	char first[DIGEST_TEXT_SIZE], second[DIGEST_TEXT_SIZE];

	make_blob("moving", 5);
	blob_digest("moving", first);
	fetch_ok(url, first, false, "moving");
	make_blob("moving", 6);
	blob_digest("moving", second);
	fetch_ok(url, second, false, "moving");
	fetch_ok(url, second, true, "moving");
}

static void test_download_cached_without_digest_is_hashed(void **state)
{
	scoped_free char *url = url_of("plain/blob"), *seen = NULL, *file = NULL, *before = NULL;
	char digest[DIGEST_TEXT_SIZE];

	blob_digest("blob", digest);
	fetch_ok(url, NULL, false, "blob");
	before = requests_for("/plain/blob");
	fetch_ok(url, digest, true, "blob");
	seen = requests_for("/plain/blob");
	assert_string_equal(seen, before);
	file = read_entry(url, "sha512.digest");
	assert_string_equal(file, digest);
}

/* In a child: RLIMIT_FSIZE stands in for a full file system (-EFBIG). */
static void test_download_no_space_is_one_line_and_leaves_nothing(void **state)
{
	scoped_free char *url = url_of("plain/blob"), *data = NULL;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		struct rlimit lim = { 100000, 100000 };
		struct download d;
		struct error err = ERROR_NONE;

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &lim);
		_exit(download_fetch(url, NULL, "x", NULL, &d, &err) == -EFBIG &&
				      strstr(err.msg, "write ") && !strchr(err.msg, '\n')
			      ? 0
			      : 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	assert_no_part(url);
	data = read_entry(url, "data");
	assert_null(data);
}

static void test_download_two_at_once_fetch_once(void **state)
{
	scoped_free char *url = url_of("plain/twice"), *seen = NULL;
	char digest[DIGEST_TEXT_SIZE];
	pid_t pids[3];

	make_blob("twice", 7);
	blob_digest("twice", digest);
	for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			struct download d;
			struct error err;

			_exit(download_fetch(url, digest, "x", NULL, &d, &err) != 0);
		}
	}
	for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
		int status;

		waitpid(pids[i], &status, 0);
		assert_int_equal(status, 0);
	}
	seen = requests_for("/plain/twice");
	assert_string_equal(seen, "200 -");
}

static void test_download_ctrl_c_ends_it_and_keeps_the_part(void **state)
{
	scoped_free char *url = url_of("slow/blob"), *dir = NULL, *part = NULL;
	struct stat st = { 0 };
	struct error err;
	uint64_t begin;
	int status;
	pid_t pid;

	assert_int_equal(download_entry_dir(url, &dir, &err), 0);
	part = xasprintf("%s/data.part", dir);
	pid = fork();
	if (pid == 0) {
		struct download d;

		_exit(download_fetch(url, NULL, "x", NULL, &d, &err) == -ECANCELED ? 0 : 1);
	}
	for (uint64_t end = clock_mono_ms() + 10000; clock_mono_ms() < end; usleep(10000))
		if (stat(part, &st) == 0 && st.st_size > 0)
			break;
	begin = clock_mono_ms();
	kill(pid, SIGINT);
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	assert_in_range(clock_mono_ms() - begin, 0, 2500);
	assert_int_equal(stat(part, &st), 0);
	assert_int_equal(st.st_size, BLOB_BYTES / 2);
}

#define TEST(fn) cmocka_unit_test_setup(fn, fresh_cache)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_download_keeps_the_cache_layout),
		TEST(test_download_without_digest_asks_if_modified),
		TEST(test_download_uses_the_cache_when_offline),
		TEST(test_download_unknown_host_fails_at_once),
		TEST(test_download_resumes_after_cuts),
		TEST(test_download_resumes_what_a_killed_process_left),
		TEST(test_download_part_of_another_version_is_dropped),
		TEST(test_download_range_that_lies_is_dropped),
		TEST(test_download_part_beyond_the_end_is_dropped),
		TEST(test_download_busy_server_is_tried_again),
		TEST(test_download_server_without_ranges),
		TEST(test_download_follows_http_redirects_only),
		TEST(test_download_404_fails_at_once),
		TEST(test_download_digest_mismatch_leaves_nothing),
		TEST(test_download_cached_with_other_digest_is_replaced),
		TEST(test_download_cached_without_digest_is_hashed),
		TEST(test_download_no_space_is_one_line_and_leaves_nothing),
		TEST(test_download_two_at_once_fetch_once),
		TEST(test_download_ctrl_c_ends_it_and_keeps_the_part),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
