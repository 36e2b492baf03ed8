/* wish.h - what wants to be on the host, and where it got to
 *
 * Three things do: a listener in the guest, a port of a static rule, which is there
 * whether or not something listens, and a guest socket's rule, which is static too,
 * and ssh's to carry. Rules decide for each what it is:
 *
 *	CLOSED	  stays off the host; `error` says why, "" when no rule wants it
 *	COVERED	  a listener on the port of a static rule: that one stands for it
 *	FIXED	  wants a certain host address
 *	EARLY	  a socket that will be FIXED once ssh is there, and stays so from then on
 *	CHOSEN	  wants whatever host port is free (hostPort: auto, conflict: remap);
 *		  where none was to be had it is refused, and tried again on a timer
 *
 * FIXED and CHOSEN wishes sit in a slot, which is a host address with its
 * endpoint. Those in one slot that may be one server of the guest share it: the same
 * guest port on a wildcard or on addresses that go together. Any other stands aside
 * until they are gone. A slot is of FIXED wishes or of
 * CHOSEN ones, never both: where a FIXED one comes, the others look for another host
 * port. Nothing is opened or closed before wishes_settle(), so that what one wish frees
 * another can have; and nothing is told before it has opened and closed all: an event is
 * a line in the log and one in a file, and somebody waits for the port.
 *
 *   wish_place   decides, slots, settling
 *   wish_notice  events
 */
#pragma once

#include <sys/queue.h>

#include "hostagent/forward/endpoint.h"
#include "hostagent/forward/forward.h"
#include "hostagent/forward/hub.h"
#include "hostagent/forward/remember.h"
#include "hostagent/forward/reserved.h"
#include "hostagent/forward/rule.h"
#include "hostagent/forward/table.h"

enum wish_kind { WISH_CLOSED, WISH_COVERED, WISH_FIXED, WISH_EARLY, WISH_CHOSEN };

TAILQ_HEAD(wish_list, wish);

struct wish {
	struct table_link link; /* wishes.by_key */
	TAILQ_ENTRY(wish) in_list;
	struct guest_port key;  /* of a static rule: its guestIP; of a socket: port 0 */
	struct rule *of_static; /* or a guest socket's; NULL: a listener */
	struct rule *rule;      /* decided; NULL: none */
	enum wish_kind kind;
	char *error;		   /* CLOSED, EARLY: why, NULL: it need not be said */
	struct slot *slot;         /* NULL: none, or not yet */
	struct endpoint_user user; /* in the slot's endpoint, unless stands_aside */
	bool stands_aside;
	TAILQ_ENTRY(wish) aside;  /* slot.aside, or `covered` of its static wish */
	struct wish_list covered; /* static: listeners it stands for */
	struct wish *cover;       /* COVERED: by */
	/* CHOSEN without a slot: wishes.unplaced or .refused, else NULL */
	struct wish_list *waits_in;
	TAILQ_ENTRY(wish) in_waits;
	bool over_limit; /* would have a slot, were there not too many already */
	bool announced;
	enum forward_event_type last; /* what was announced */
	uint64_t since_ms;
	unsigned seen; /* listener: snapshot it was last in */
};

struct slot {
	struct table_link link, chosen_link;
	TAILQ_ENTRY(slot) in_dirty;
	bool dirty;
	struct endpoint *ep;
	uint16_t guest_port;      /* whose it is; 0: nobody's */
	struct wish_list aside;   /* wishes for other servers */
	const struct rule *chosen_by; /* of CHOSEN wishes of this rule; NULL: of FIXED ones */
};
TAILQ_HEAD(slot_list, slot);

struct notice; /* an event to be told */
TAILQ_HEAD(notice_list, notice);

struct wishes {
	struct hub *hub;
	const struct config *config;
	struct rule_set rules;
	uint16_t ssh_local_port;
	unsigned unprivileged_start; /* first port that anybody may bind */
	struct in6_addr loopback;    /* stands for 127.0.0.1; ::: nothing does */
	struct reserved *reserved;
	struct remember *remember;
	struct wish_list statics, listeners;
	struct wish_list unplaced; /* settling finds them a slot; empty in between */
	struct wish_list refused;  /* none was to be had: tried again, a few at a time */
	uv_timer_t again;          /* active while somebody is refused */
	unsigned again_ms;
	struct table by_key; /* both */
	struct table slots, chosen;
	struct slot_list dirty;
	unsigned n_over_limit, n_listeners;
	bool look_at_reserved; /* something was opened: once it is told */
	struct notice_list notices;
	struct {
		void (*fn)(void *arg, const struct forward_event *ev);
		void *arg;
		double tokens;
		uint64_t ms;
	} event;
};

/* --- wish_place.c ------------------------------------------------------------ */

/* The timer, which holds the hub until it is closed. */
void wishes_open(struct wishes *all);
void wishes_close(struct wishes *all);
/* A listener (@of_static NULL), a static rule's port, or a guest socket's rule (@key of
 * TCP and else 0); placed, not settled. */
struct wish *wish_new(struct wishes *all, const struct guest_port *key, struct rule *of_static);
void wish_free(struct wishes *all, struct wish *w); /* says nothing */
struct wish *wish_find(const struct wishes *all, const struct guest_port *key,
		       const struct rule *of_static);
/* Says that it stops, if it was there, and takes it off the host. */
void wish_withdraw(struct wishes *all, struct wish *w);
/* Rules or reserved ports changed: moves those for which that matters. */
void wishes_refresh(struct wishes *all);
/* Makes the host agree: first close what nobody wants, so that a port that moved
 * is free, then open, then tell. */
void wishes_settle(struct wishes *all);
/* Its standing as a row says it; error as of now, valid until the next call. */
const char *wish_state(const struct wish *w);
const char *wish_error(const struct wish *w);
/* As a row says it: "" where there is none. Of a socket's rule it is known early. */
const char *wish_host_addr(const struct wishes *all, const struct wish *w);

/* --- wish_notice.c ----------------------------------------------------------- */

/* These note; wishes_tell() tells. Its standing, if that is news. */
void wish_announce(struct wishes *all, struct wish *w);
void wish_announce_users(struct wishes *all, struct slot *s);
void wish_announce_stop(struct wishes *all, struct wish *w);
/* Whoever changed something calls it last; wishes_settle() does. */
void wishes_tell(struct wishes *all);
const char *wish_protocol(const struct wish *w);

static inline bool wish_is_socket(const struct wish *w)
{
	return w->of_static && w->of_static->c.guest_socket;
}
