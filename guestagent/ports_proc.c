#include "guestagent/ports_proc.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"

static const struct {
	const char *path;
	int proto, family;
} tables[] = {
	{ "/proc/net/tcp", IPPROTO_TCP, AF_INET },
	{ "/proc/net/tcp6", IPPROTO_TCP, AF_INET6 },
	{ "/proc/net/udp", IPPROTO_UDP, AF_INET },
	{ "/proc/net/udp6", IPPROTO_UDP, AF_INET6 },
};

/* The address is printed as 32-bit words in the machine's byte order, each
 * holding four network-order bytes (Linux Documentation/networking/proc_net_tcp). */
static bool parse_addr(const char *hex, int family, uint8_t ret[16])
{
	size_t words = family == AF_INET ? 1 : 4;

	if (strlen(hex) != words * 8)
		return false;
	for (size_t i = 0; i < words; i++) {
		uint32_t word;

		if (sscanf(hex + 8 * i, "%8" SCNx32, &word) != 1)
			return false;
		memcpy(ret + 4 * i, &word, 4);
	}
	return true;
}

bool ports_proc_line(const char *line, int proto, int family, struct sock_list *ret)
{
	char hex[33];
	uint8_t addr[16];
	unsigned port, state;
	uint64_t inode;

	if (sscanf(line,
		   " %*u: %32[0-9A-Fa-f]:%4x %*[0-9A-Fa-f]:%*x %2x %*x:%*x %*x:%*x %*x %*u %*u %" SCNu64,
		   hex, &port, &state, &inode) != 4)
		return false;
	if (proto == IPPROTO_TCP ? state != TCP_LISTEN
				 : state != TCP_CLOSE && state != TCP_ESTABLISHED)
		return false;
	if (!parse_addr(hex, family, addr))
		return false;
	sock_list_add(ret, proto, family, addr, (uint16_t)port,
		      proto == IPPROTO_UDP && state == TCP_ESTABLISHED, inode);
	return true;
}

int ports_proc_dump(int proto, struct sock_list *ret, struct error *err)
{
	unsigned read = 0;
	char line[512];

	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		scoped_file FILE *f = tables[i].proto == proto ? fopen(tables[i].path, "re") : NULL;

		if (!f)
			continue;
		read++;
		while (fgets(line, sizeof(line), f))
			ports_proc_line(line, proto, tables[i].family, ret);
	}
	if (read == 0)
		return error_sys(err, -ENOENT, "ports: neither sock_diag nor /proc/net/%s",
				 proto == IPPROTO_TCP ? "tcp" : "udp");
	return 0;
}
