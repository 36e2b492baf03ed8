/* owner.h - who has the host port that we cannot bind
 *
 * Reads /proc/net/{tcp,udp}{,6} (/proc/net/unix for a path) for the socket's inode,
 * and the /proc/PID/fd links of processes we may look into for who holds it. That
 * takes milliseconds and grows with the host's processes, so it runs in libuv's pool:
 * one look at a time, which answers all who asked up to then.
 */
#pragma once

#include <stdint.h>

#include "hostagent/forward/hub.h"

struct owner_request;

struct owner_finder *owner_finder_new(struct hub *hub);
void owner_finder_free(struct owner_finder *f); /* when the hub is idle */
/* @done runs once, on the loop, unless cancelled. @answer: "nginx, pid 812", "instance
 * `db`, pid 4711" for what runs for one of ours, "a process of user 112", "": unknown. */
struct owner_request *owner_ask(struct owner_finder *f, int proto, const struct in6_addr *ip,
				uint16_t port, void (*done)(void *arg, const char *answer),
				void *arg);
struct owner_request *owner_ask_path(struct owner_finder *f, const char *path,
				     void (*done)(void *arg, const char *answer), void *arg);
void owner_cancel(struct owner_request *r);
