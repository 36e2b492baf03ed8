/* status.h - errno on our side, gRPC status on the wire; translated here only
 *
 * A gRPC status has no room for an errno, so between our own agents the exact
 * number travels in TunnelMessage.error_number. The status that ends the call
 * beside it, and the text a Go peer puts there ("dial tcp …: connect: connection
 * refused"), are the fallback for a peer without kinds.
 */
#pragma once

#include <grpc/status.h>

#include "lib/base/error.h"

enum { STATUS_TEXT_MAX = 200 };		/* bytes of a peer's text that are shown */

/* @code: -errno, or 0 for OK. */
grpc_status_code status_from_errno(int code);

/* Never 0 unless @status is OK. @text: the peer's, may be NULL. */
int status_to_errno(grpc_status_code status, const char *text);

/* A Linux errno number as a peer sent it, to the -errno of this host; -EIO when
 * it is none that a socket call can give. */
int status_errno_from_wire(int number);

/* -errno to what goes into error_number: always a Linux number. */
int status_errno_to_wire(int code);

/* Fills @err from how a call ended; @text is escaped and cut. Returns the code. */
int status_set_error(struct error *err, grpc_status_code status, const char *text);
