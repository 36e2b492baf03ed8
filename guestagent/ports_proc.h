/* ports_proc.h - the same list out of /proc/net, for kernels without sock_diag
 *
 * Walks every connection there is, which is why it is only the fallback.
 * The cookie of a socket is its inode here.
 */
#pragma once

#include "guestagent/ports_list.h"
#include "lib/base/error.h"

/* Appends listening TCP or bound UDP sockets. A missing file (no IPv6) is no
 * error as long as one could be read. */
int ports_proc_dump(int proto, struct sock_list *ret, struct error *err);

/* One line of /proc/net/{tcp,tcp6,udp,udp6}; false: not a socket that counts. */
bool ports_proc_line(const char *line, int proto, int family, struct sock_list *ret);
