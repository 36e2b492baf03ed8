/* udp_refused.h - "port unreachable", in both directions
 *
 * A client whose datagram meets no socket is told by the kernel (RFC 792, ICMP type
 * 3 code 3), and gets ECONNREFUSED if its socket is connected. Making such a message
 * by oneself takes a raw socket, so a privilege. What needs none: a socket that is
 * connected to somebody else matches no client, so the kernel answers for it, while
 * the port stays ours. So when the guest's server turns a client down, the datagram
 * that found out is lost, and the ones after it are refused as on a closed port.
 *
 * The other way round the kernel tells us which client is gone when a reply meets
 * no socket, if asked to (IP_RECVERR, ip(7)).
 */
#pragma once

#include <stdbool.h>
#include <sys/socket.h>

/* Asks to be told about clients that are gone. A socket with news is in error for
 * poll(), and the next call on it may fail with that error once. */
void udp_refused_enable(int fd);
/* A client that replies do not reach any more; false: no more news. */
bool udp_refused_next(int fd, struct sockaddr_storage *ret_client);

/* The socket, bound to a port of our choice, matches nobody from now on. */
int udp_refused_begin(int fd);
/* … and everybody again. */
int udp_refused_end(int fd);
