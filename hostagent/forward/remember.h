/* remember.h - which host port a guest port was given, kept over restarts
 *
 * For host ports that we choose (hostPort: auto, conflict: remap): the same one is
 * tried first the next time. A small text file of the instance's, one line each:
 * "tcp 127.0.0.1 8080 8081", guest port before host port. A guest that opens ports
 * without end pushes out the oldest. Written in libuv's pool, some time after.
 */
#pragma once

#include <stdint.h>

#include "hostagent/forward/hub.h"

struct remember;

/* @path: NULL, nothing is kept. Reads it, which is short. */
struct remember *remember_new(struct hub *hub, const char *path);
/* Writes what is not written yet; frees itself, the hub is held until then. */
void remember_close(struct remember *r);

/* 0: none. */
uint16_t remember_get(const struct remember *r, int proto, const struct in6_addr *host_ip,
		      uint16_t guest_port);
void remember_set(struct remember *r, int proto, const struct in6_addr *host_ip,
		  uint16_t guest_port, uint16_t host_port);
