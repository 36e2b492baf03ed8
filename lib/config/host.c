#include "lib/config/host.h"

#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"

static struct host_facts facts;

static void ask_user(void)
{
	const struct passwd *pw = getpwuid(geteuid());
	const char *home = getenv("HOME");

	facts.uid = geteuid();
	facts.user = xstrdup(pw ? pw->pw_name : "");
	/* passwd(5): the comment may have more fields after a comma */
	facts.comment = pw ? xstrndup(pw->pw_gecos, strcspn(pw->pw_gecos, ",")) : xstrdup("");
	facts.home = xstrdup(home && *home == '/' ? home : pw ? pw->pw_dir : "/");
}

static void ask_timezone(void)
{
	static const char zones[] = "/zoneinfo/";
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;
	char link[512];
	const char *at;
	ssize_t n;

	if (path_read_file("/etc/timezone", 256, &b, &err) == 0) {
		facts.timezone = xstrndup(buf_str(&b), strcspn(buf_str(&b), " \t\r\n"));
		return;
	}
	n = readlink("/etc/localtime", link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = 0;
	at = strstr(link, zones);
	facts.timezone = xstrdup(at ? at + strlen(zones) : "");
}

static void ask_all(void)
{
	const char *tmp = getenv("TMPDIR");
	cpu_set_t set;
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		n = CPU_COUNT(&set);
	facts.cpus = n > 0 ? (unsigned)n : 1;
	facts.memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	facts.temp_dir = xstrdup(tmp && *tmp == '/' ? tmp : "/tmp");
	ask_user();
	ask_timezone();
}

const struct host_facts *host_facts(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, ask_all);
	return &facts;
}
