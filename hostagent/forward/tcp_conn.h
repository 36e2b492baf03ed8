/* tcp_conn.h - how a listener hands over a client, see tcp.h */
#pragma once

#include "hostagent/forward/hub.h"
#include "hostagent/forward/target.h"

/* Takes @fd: a fresh, non-blocking client. Refers to @target for its life. */
void tcp_conn_start(struct hub *hub, int fd, struct target *target);
