/* endpoint.h - one host address and whether clients can reach it
 *
 * Several guest listeners may want the same host address (0.0.0.0:80 and
 * [::]:80 both mean 127.0.0.1:80): they are its users, and it lives as long as
 * it has any. It dials for the one of the lowest rank, the first of these.
 *
 *	CLOSED ──open──▶ OPEN
 *	   └──────────▶ OPENING (taken; finding out by whom) ──▶ WAITING
 *	   └──────────▶ DENIED (EACCES: not ours to have, no retry)
 *	OPENING, WAITING ──tried again, 100 ms … 1 s, after a minute … 5 s──▶ OPEN
 *	WAITING ──fails in another way──▶ OPENING, WAITING, DENIED
 *	any ──close──▶ CLOSING (descriptors are closed already; handles follow)
 *
 * Who has it is asked again every 30 s: the error is about now, not about the first try.
 *
 * 127.0.0.1 brings a companion on ::1 (localhost is ::1 first for many
 * clients), 0.0.0.0 one on [::]; where that is missing, silently not, and where it
 * is taken, as soon as it is free: tried every 5 s. A companion yields to an
 * endpoint that was asked for by a rule, and is back when that is closed.
 */
#pragma once

#include "hostagent/forward/hub.h"
#include "hostagent/forward/rule.h"
#include "hostagent/forward/table.h"
#include "hostagent/forward/target.h"

#include <sys/queue.h>

enum endpoint_state {
	ENDPOINT_CLOSED,
	ENDPOINT_OPENING,
	ENDPOINT_OPEN,
	ENDPOINT_WAITING,
	ENDPOINT_DENIED,
	ENDPOINT_CLOSING,
};

struct endpoint_user { /* embedded in who wants the address */
	TAILQ_ENTRY(endpoint_user) next;
	struct target *target;
	unsigned rank; /* which one to dial: ENDPOINT_RANK_… */
};
enum { ENDPOINT_RANK_V4, ENDPOINT_RANK_V6 };
TAILQ_HEAD(endpoint_users, endpoint_user);

struct endpoint;

struct endpoint_ops {
	/* Where it stands, after a change that was not asked for in the moment. */
	void (*changed)(void *arg, struct endpoint *ep);
	/* Is there an endpoint in the way of a companion on @ip, which is [::1] or [::]? One
	 * that waits counts. Then none goes there. */
	bool (*is_asked_for)(void *arg, int proto, const struct in6_addr *ip, uint16_t port);
};

/* @proto: IPPROTO_TCP or IPPROTO_UDP. @host: copied. @ops: borrowed. */
struct endpoint *endpoint_new(struct hub *hub, int proto, const struct rule_host *host,
			      const struct endpoint_ops *ops, void *arg);
/* CLOSED to one of the next states; changed() is not called. */
void endpoint_open(struct endpoint *ep);
/* CLOSED to OPEN, or it stays CLOSED and says why not. */
int endpoint_try(struct endpoint *ep, struct error *err);
/* The address is free when this returns; @ep frees itself later. No users left. */
void endpoint_close(struct endpoint *ep);

void endpoint_add_user(struct endpoint *ep, struct endpoint_user *user);
void endpoint_remove_user(struct endpoint *ep, struct endpoint_user *user);
struct endpoint_users *endpoint_users(struct endpoint *ep);

enum endpoint_state endpoint_state(const struct endpoint *ep);
const char *endpoint_address(const struct endpoint *ep); /* "127.0.0.1:80" or a path */
const char *endpoint_error(const struct endpoint *ep);   /* "" unless WAITING, DENIED */
bool endpoint_is(const struct endpoint *ep, int proto, const struct rule_host *host);
int endpoint_proto(const struct endpoint *ep);
const struct rule_host *endpoint_host(const struct endpoint *ep);
/* Gives up its companion if that is in the way of @host, same protocol. */
void endpoint_yield(struct endpoint *ep, const struct rule_host *host);
/* @host is free: it may have its companion, if it is without one. */
void endpoint_regain(struct endpoint *ep, const struct rule_host *host);
