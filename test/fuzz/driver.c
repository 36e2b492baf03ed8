/* A small fuzzer for compilers without libFuzzer, called with the same arguments
 * (run). Keeps in memory every input that took a new pair of branches; builds the
 * next one out of those by random changes and by putting in constants that the
 * code under test compared something with. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "test/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
/* ASan's: called before it ends the process. Not there without ASan. */
void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));
/* What gcc -fsanitize-coverage=trace-pc,trace-cmp calls. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_const_cmp1(uint8_t constant, uint8_t value);
void __sanitizer_cov_trace_const_cmp2(uint16_t constant, uint16_t value);
void __sanitizer_cov_trace_const_cmp4(uint32_t constant, uint32_t value);
void __sanitizer_cov_trace_const_cmp8(uint64_t constant, uint64_t value);
void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b);
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b);
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b);
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b);
void __sanitizer_cov_trace_cmpf(float a, float b);
void __sanitizer_cov_trace_cmpd(double a, double b);
void __sanitizer_cov_trace_switch(uint64_t value, const uint64_t *cases);

enum {
	INPUT_MAX = 65536,
	KEPT_MAX = 16384,
	PAIRS = 1 << 18,
	CONSTANTS = 256,
	CHANGES_MAX = 8,
};

struct input {
	uint8_t *data;
	size_t len;
};

static struct input kept[KEPT_MAX];
static size_t kept_len;
static uint8_t taken[PAIRS];		/* pairs of branches seen, by hash */
static uintptr_t last_branch;
static bool new_pair;
static uint64_t constants[CONSTANTS];
static unsigned constants_next;
static uint8_t now[INPUT_MAX];		/* the input being run */
static size_t now_len;
static const char *artifact_prefix = "./";
static const char *corpus;
static uint64_t rng_state;
static unsigned timeout_s = 10;

/* --- what the compiler calls ---------------------------------------------- */

void __sanitizer_cov_trace_pc(void)
{
	uintptr_t here = (uintptr_t)__builtin_return_address(0);
	uintptr_t pair = (here ^ last_branch) * 0x9e3779b97f4a7c15u >> 20 & (PAIRS - 1);

	last_branch = here << 1;
	if (!taken[pair])
		taken[pair] = 1, new_pair = true;
}

static void remember(uint64_t constant)
{
	constants[constants_next++ % CONSTANTS] = constant;
}

#define CONST_CMP(bits, bytes)                                                                  \
	void __sanitizer_cov_trace_const_cmp##bytes(uint##bits##_t constant, uint##bits##_t value) \
	{                                                                                          \
		if (constant != value)                                                                 \
			remember(constant);                                                                \
	}                                                                                          \
	void __sanitizer_cov_trace_cmp##bytes(uint##bits##_t a, uint##bits##_t b)                   \
	{                                                                                          \
	}
CONST_CMP(8, 1)
CONST_CMP(16, 2)
CONST_CMP(32, 4)
CONST_CMP(64, 8)

void __sanitizer_cov_trace_cmpf(float a, float b)
{
}

void __sanitizer_cov_trace_cmpd(double a, double b)
{
}

/* cases[0]: how many, cases[1]: bits, then the values. */
void __sanitizer_cov_trace_switch(uint64_t value, const uint64_t *cases)
{
	if (cases[0])
		remember(cases[2 + value % cases[0]]);
}

/* --- inputs --------------------------------------------------------------- */

static uint64_t rng(void)	/* xorshift64*, Vigna 2016 */
{
	rng_state ^= rng_state >> 12;
	rng_state ^= rng_state << 25;
	rng_state ^= rng_state >> 27;
	return rng_state * 0x2545f4914f6cdd1du;
}

static size_t below(size_t n)
{
	return n ? rng() % n : 0;
}

static void write_file(const char *path, const uint8_t *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len)
		perror(path);
	if (fd >= 0)
		close(fd);
}

static void keep(bool store)
{
	struct input *k = &kept[kept_len];
	char path[4096];

	if (kept_len == KEPT_MAX)
		return;
	k->data = malloc(now_len + 1);
	memcpy(k->data, now, now_len);
	k->len = now_len;
	kept_len++;
	if (!store || !corpus)
		return;
	snprintf(path, sizeof(path), "%s/%016llx", corpus, (unsigned long long)rng());
	write_file(path, now, now_len);
}

/* Makes room for @n bytes at @at, or takes them away. */
static void insert(size_t at, size_t n)
{
	if (now_len + n > INPUT_MAX)
		return;
	memmove(now + at + n, now + at, now_len - at);
	now_len += n;
}

static void cut(size_t at, size_t n)
{
	memmove(now + at, now + at + n, now_len - at - n);
	now_len -= n;
}

static void put_constant(void)
{
	static const uint8_t widths[] = { 1, 2, 4, 8 };
	uint64_t v = constants[below(CONSTANTS)] + below(3) - 1;
	size_t width = widths[below(4)], at = below(now_len + 1);
	bool big = rng() & 1;

	if (at + width > INPUT_MAX)
		return;
	if (at + width > now_len)
		now_len = at + width;
	for (size_t i = 0; i < width; i++)
		now[at + i] = (uint8_t)(v >> 8 * (big ? width - 1 - i : i));
}

static void graft(void)
{
	const struct input *other = &kept[below(kept_len)];
	size_t from = below(other->len), n = below(other->len - from + 1), at = below(now_len + 1);

	if (now_len + n > INPUT_MAX)
		return;
	insert(at, n);
	memcpy(now + at, other->data + from, n);
}

static void change(void)
{
	size_t at = below(now_len), n;

	switch (now_len ? below(8) : 3) {
	case 0:
		now[at] ^= (uint8_t)(1 << below(8));
		break;
	case 1:
		now[at] = (uint8_t)rng();
		break;
	case 2:
		now[at] = (uint8_t)(now[at] + below(9) - 4);
		break;
	case 3:
		n = 1 + below(8);
		insert(at, now_len + n <= INPUT_MAX ? n : 0);
		break;
	case 4:
		cut(at, 1 + below(now_len - at));
		break;
	case 5:
		graft();
		break;
	default:
		put_constant();
	}
}

static void run_now(void)
{
	/* An allocation of its own: reading past its end is seen. */
	uint8_t *data = malloc(now_len ? now_len : 1);

	memcpy(data, now, now_len);
	last_branch = 0;
	new_pair = false;
	alarm(timeout_s);
	LLVMFuzzerTestOneInput(data, now_len);
	alarm(0);
	free(data);
}

static bool load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, now, sizeof(now));
	close(fd);
	now_len = n > 0 ? (size_t)n : 0;
	return n >= 0;
}

static void load_dir(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char file[4096];

	while (d && (e = readdir(d))) {
		snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
		if (e->d_name[0] == '.' || !load(file))
			continue;
		run_now();
		if (new_pair)
			keep(false);
	}
	if (d)
		closedir(d);
}

/* --- the end -------------------------------------------------------------- */

static void save_finding(void)
{
	static bool once;
	char path[4096];

	if (once)
		return;
	once = true;
	snprintf(path, sizeof(path), "%scrash-%016llx", artifact_prefix, (unsigned long long)rng());
	write_file(path, now, now_len);
	fprintf(stderr, "fuzz: the input is in %s\n", path);
}

static void on_signal(int sig)
{
	if (sig == SIGALRM)
		fprintf(stderr, "fuzz: an input took more than %u s\n", timeout_s);
	save_finding();
	signal(sig == SIGALRM ? SIGABRT : sig, SIG_DFL);
	abort();
}

static time_t mono_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);	/* a target may have others of its own */
	return t.tv_sec;
}

static void fuzz(time_t seconds)
{
	time_t end = mono_s() + seconds;
	unsigned long runs = 0;

	while ((++runs & 63) || mono_s() < end) {
		const struct input *from = &kept[below(kept_len)];

		memcpy(now, from->data, from->len);
		now_len = from->len;
		for (size_t n = 1 + below(CHANGES_MAX); n > 0; n--)
			change();
		run_now();
		if (new_pair)
			keep(true);
	}
	printf("fuzz: %lu runs in %ld s, %zu inputs kept\n", runs, (long)seconds, kept_len);
}

int main(int argc, char **argv)
{
	time_t seconds = 60;
	const char *prefix = "-artifact_prefix=";

	signal(SIGALRM, on_signal);
	signal(SIGABRT, on_signal);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(save_finding);
	else
		signal(SIGSEGV, on_signal);
	LLVMFuzzerInitialize(&argc, &argv);
	rng_state = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid() ^ 1;
	for (int i = 1; i < argc; i++) {
		struct stat st;

		if (strncmp(argv[i], prefix, strlen(prefix)) == 0)
			artifact_prefix = argv[i] + strlen(prefix);
		if (sscanf(argv[i], "-max_total_time=%ld", &seconds) == 1 || argv[i][0] == '-')
			continue;
		if (stat(argv[i], &st) < 0) {
			perror(argv[i]);
			return EXIT_FAILURE;
		}
		if (S_ISDIR(st.st_mode)) {
			corpus = corpus ? corpus : argv[i];
			load_dir(argv[i]);
		} else if (load(argv[i])) {
			run_now();
			seconds = 0;
		}
	}
	if (kept_len == 0) {
		now_len = 0;
		keep(false);
	}
	if (seconds > 0)
		fuzz(seconds);
	for (size_t i = 0; i < kept_len; i++)
		free(kept[i].data);
	return 0;
}
