#include "proto/status.h"

#include <errno.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

/* What a socket call in the guest can end with. @wire is the generic Linux
 * number (asm-generic/errno.h); @go is how Go's syscall package words it.
 * The first row of a status is what that status alone is taken for. */
static const struct row {
	int code;
	int wire;
	grpc_status_code status;
	const char *go;
} rows[] = {
	{ -ECONNREFUSED, 111, GRPC_STATUS_UNAVAILABLE, "connection refused" },
	{ -EHOSTUNREACH, 113, GRPC_STATUS_UNAVAILABLE, "no route to host" },
	{ -ENETUNREACH, 101, GRPC_STATUS_UNAVAILABLE, "network is unreachable" },
	{ -ENETDOWN, 100, GRPC_STATUS_UNAVAILABLE, "network is down" },
	{ -EHOSTDOWN, 112, GRPC_STATUS_UNAVAILABLE, "host is down" },
	{ -EADDRNOTAVAIL, 99, GRPC_STATUS_UNAVAILABLE, "cannot assign requested address" },
	{ -ETIMEDOUT, 110, GRPC_STATUS_DEADLINE_EXCEEDED, "connection timed out" },
	{ -ECONNRESET, 104, GRPC_STATUS_ABORTED, "connection reset by peer" },
	{ -ECONNABORTED, 103, GRPC_STATUS_ABORTED, "software caused connection abort" },
	{ -EPIPE, 32, GRPC_STATUS_ABORTED, "broken pipe" },
	{ -ECANCELED, 125, GRPC_STATUS_CANCELLED, "operation canceled" },
	{ -EINVAL, 22, GRPC_STATUS_INVALID_ARGUMENT, "invalid argument" },
	{ -EAFNOSUPPORT, 97, GRPC_STATUS_INVALID_ARGUMENT, "address family not supported" },
	{ -EPROTONOSUPPORT, 93, GRPC_STATUS_INVALID_ARGUMENT, "protocol not supported" },
	{ -EMSGSIZE, 90, GRPC_STATUS_OUT_OF_RANGE, "message too long" },
	{ -ENOBUFS, 105, GRPC_STATUS_RESOURCE_EXHAUSTED, "no buffer space available" },
	{ -ENFILE, 23, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many open files in system" },
	{ -EMFILE, 24, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many open files" },
	{ -ENOMEM, 12, GRPC_STATUS_RESOURCE_EXHAUSTED, "cannot allocate memory" },
	{ -EAGAIN, 11, GRPC_STATUS_RESOURCE_EXHAUSTED, "resource temporarily unavailable" },
	{ -EACCES, 13, GRPC_STATUS_PERMISSION_DENIED, "permission denied" },
	{ -EPERM, 1, GRPC_STATUS_PERMISSION_DENIED, "operation not permitted" },
	{ -ENOENT, 2, GRPC_STATUS_NOT_FOUND, "no such file or directory" },
	{ -EOPNOTSUPP, 95, GRPC_STATUS_UNIMPLEMENTED, "operation not supported" },
	{ -EPROTO, 71, GRPC_STATUS_INTERNAL, "protocol error" },
	{ -EIO, 5, GRPC_STATUS_UNKNOWN, "input/output error" },
};

/* Statuses gRPC core makes up itself when the connection goes. */
static const char broken_link[] = "the connection to the peer broke";

grpc_status_code status_from_errno(int code)
{
	if (code == 0)
		return GRPC_STATUS_OK;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].code == code)
			return rows[i].status;
	}
	return GRPC_STATUS_UNKNOWN;
}

int status_to_errno(grpc_status_code status, const char *text)
{
	if (status == GRPC_STATUS_OK)
		return 0;
	/* Go's "dial tcp: i/o timeout" is the one wording without an errno */
	if (text && strstr(text, "i/o timeout"))
		return -ETIMEDOUT;
	for (size_t i = 0; text && i < ARRAY_SIZE(rows); i++) {
		if (strstr(text, rows[i].go))
			return rows[i].code;
	}
	/* without such a text UNAVAILABLE is gRPC's word for a dead transport */
	if (status == GRPC_STATUS_UNAVAILABLE)
		return -ENOTCONN;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].status == status)
			return rows[i].code;
	}
	return -EIO;
}

int status_errno_from_wire(int number)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].wire == number)
			return rows[i].code;
	}
	return -EIO;
}

int status_errno_to_wire(int code)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].code == code)
			return rows[i].wire;
	}
	return 5;
}

int status_set_error(struct error *err, grpc_status_code status, const char *text)
{
	int code = status_to_errno(status, text);
	scoped_free char *shown = text && *text ? log_escape(text, STATUS_TEXT_MAX) : NULL;

	if (code == 0) {
		*err = ERROR_NONE;
		return 0;
	}
	if (code == -ENOTCONN)
		return shown ? error_set(err, code, "%s (%s)", broken_link, shown) :
			       error_set(err, code, "%s", broken_link);
	if (!shown)
		return error_sys(err, code, "gRPC status %d", (int)status);
	if (strstr(shown, error_text(code)))	/* Go's texts end with it */
		return error_set(err, code, "%s", shown);
	return error_sys(err, code, "%s", shown);
}
