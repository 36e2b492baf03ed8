#include "drivers/qemu/change.h"

#include <errno.h>
#include <stdio.h>

#include "drivers/qemu/args.h"
#include "drivers/qemu/talk.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	CALL_MS = 10 * 1000,
	GUEST_MS = 30 * 1000,	/* PCIe's own hot-plug takes 5 s in a guest that is idle */
	CHARDEV_MAX = 1000000,	/* a number above is nobody's we made */
};

struct change {
	struct talk talk;	/* its timer is the guest's deadline */
	struct change_options o;
	enum change_kind kind;
	driver_done_fn done;
	void *arg;
	bool waiting, device_gone;	/* "out": asked for; DEVICE_DELETED came */
	unsigned chardev;		/* "in": number of ours */
	json_t *stale;			/* labels still to be removed */
	struct error err;		/* why the device is not in */
};

static void end(struct change *c, const struct error *err)
{
	talk_end(&c->talk, err);
}

static void call(struct change *c, const char *command, json_t *args, talk_reply_fn replied)
{
	talk_call(&c->talk, command, args, CALL_MS, replied);
}

/* --- chardevs of devices that are gone ----------------------------------------------- */

/* The number in "vsockN"; -1: not ours. */
static int chardev_number(const char *label)
{
	const size_t len = strlen(QEMU_VSOCK_CHARDEV);
	char *rest;
	long n;

	if (!label || strncmp(label, QEMU_VSOCK_CHARDEV, len) != 0 || label[len] < '0' ||
	    label[len] > '9')
		return -1;
	n = strtol(label + len, &rest, 10);
	return *rest || n > CHARDEV_MAX ? -1 : (int)n;
}

static void chardevs_are_gone(struct change *c);
static void remove_next(struct change *c);

/* One that is still in use says so ("busy"), and stays. */
static void on_removed(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;

	if (err->code)
		log_debug("driver: %s", err->msg);
	remove_next(c);
}

static void remove_next(struct change *c)
{
	json_t *label = json_incref(json_array_get(c->stale, 0));

	if (!label) {
		chardevs_are_gone(c);
		return;
	}
	json_array_remove(c->stale, 0);
	call(c, "chardev-remove", json_pack("{s:o}", "id", label), on_removed);
}

/* The number after the highest: QEMU keeps the name of one from its command line
 * taken even when the chardev itself is removed. */
static void on_chardevs(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;
	json_t *chardev;
	size_t i;

	if (err->code) {
		end(c, err);
		return;
	}
	c->stale = json_array();
	c->chardev = 1;
	json_array_foreach(ret, i, chardev) {
		json_t *label = json_object_get(chardev, "label");
		int n = chardev_number(json_string_value(label));

		if (n < 0)
			continue;
		json_array_append(c->stale, label);
		c->chardev = MAX(c->chardev, (unsigned)n + 1);
	}
	remove_next(c);
}

/* --- the vsock device in ---------------------------------------------------------- */

static void on_plug_undone(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;

	end(c, &c->err);
}

static char *chardev_id(const struct change *c)
{
	return xasprintf(QEMU_VSOCK_CHARDEV "%u", c->chardev);
}

static void on_device_added(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;
	scoped_free char *id = chardev_id(c);

	if (!err->code) {
		end(c, &ERROR_NONE);
		return;
	}
	c->err = *err;
	call(c, "chardev-remove", json_pack("{s:s}", "id", id), on_plug_undone);
}

static void on_chardev_added(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;
	scoped_free char *id = chardev_id(c);

	if (err->code)
		end(c, err);
	else
		call(c, "device_add",
		     json_pack("{s:s, s:s, s:s, s:s}", "driver", QEMU_VSOCK_DRIVER, "id",
			       QEMU_VSOCK_DEVICE, "bus", QEMU_VSOCK_PORT, "chardev", id),
		     on_device_added);
}

static void chardevs_are_gone(struct change *c)
{
	scoped_free char *id = chardev_id(c);

	if (c->kind == CHANGE_VSOCK_OUT)
		end(c, &ERROR_NONE);
	else
		call(c, "chardev-add",
		     json_pack("{s:s, s:{s:s, s:{s:{s:s, s:{s:s}}, s:b}}}", "id", id, "backend",
			       "type", "socket", "data", "addr", "type", "unix", "data", "path",
			       c->o.vsock_socket, "server", 0),
		     on_chardev_added);
}

/* --- the vsock device out ----------------------------------------------------------- */

static void device_is_out(struct change *c)
{
	c->waiting = false;
	talk_not_later(&c->talk);
	call(c, "query-chardev", NULL, on_chardevs);
}

static void on_guest_silent(void *arg)
{
	struct change *c = arg;
	struct error err = ERROR_NONE;

	error_set(&err, -ETIMEDOUT, "the guest did not let go of its vsock device in %u s",
		  (c->o.guest_ms + 999) / 1000);
	end(c, &err);
}

/* A guest may be asked only once for the same device; one that was asked by an
 * earlier host agent may still be about to obey. */
static void on_device_del(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;

	if (err->code && !strstr(err->msg, "already in the process of unplug") &&
	    !strstr(err->msg, "not found"))
		end(c, err);
	else if (c->device_gone || (err->code && strstr(err->msg, "not found")))
		device_is_out(c);
}

static void on_guest_refuses(struct change *c)
{
	struct error err = ERROR_NONE;

	error_set(&err, -EREMOTEIO, "the guest refused to let go of its vsock device");
	end(c, &err);
}

void change_event(struct change *c, const char *name, json_t *data)
{
	const char *device = json_string_value(json_object_get(data, "device"));

	if (c->talk.ended || !c->waiting || !device || !streq(device, QEMU_VSOCK_DEVICE))
		return;
	if (streq(name, "DEVICE_UNPLUG_GUEST_ERROR")) {
		on_guest_refuses(c);
	} else if (streq(name, "DEVICE_DELETED")) {
		c->device_gone = true;
		if (!c->talk.asking)	/* else device_del's reply is next */
			device_is_out(c);
	}
}

/* --- what is plugged in now --------------------------------------------------------- */

static void on_devices_out(struct change *c, bool plugged)
{
	if (!plugged) {
		device_is_out(c);
		return;
	}
	c->waiting = true;
	talk_later(&c->talk, c->o.guest_ms, on_guest_silent);
	call(c, "device_del", json_pack("{s:s}", "id", QEMU_VSOCK_DEVICE), on_device_del);
}

static void on_devices_in(struct change *c, bool plugged, bool has_port)
{
	struct error err = ERROR_NONE;

	if (plugged)
		error_set(&err, -EEXIST, "there is a vsock device in this QEMU already");
	else if (!has_port)
		error_set(&err, -ENOTSUP, "this QEMU was started without a place for a vsock device");
	if (err.code)
		end(c, &err);
	else
		call(c, "query-chardev", NULL, on_chardevs);
}

static void on_devices(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;
	bool plugged = talk_find(ret, "name", QEMU_VSOCK_DEVICE);

	if (err->code)
		end(c, err);
	else if (c->kind == CHANGE_VSOCK_OUT)
		on_devices_out(c, plugged);
	else
		on_devices_in(c, plugged, talk_find(ret, "name", QEMU_VSOCK_PORT));
}

static void begin_vsock(struct change *c)
{
	/* what has an id= is there (QEMU docs/devel/qom) */
	call(c, "qom-list", json_pack("{s:s}", "path", "/machine/peripheral"), on_devices);
}

/* --- the forward of ssh ---------------------------------------------------------------- */

/* The human monitor has no error codes: no text is done; "removed" and "not
 * found" are as it was wanted (QEMU net/slirp.c). */
static void on_forward(void *arg, json_t *ret, const struct error *err)
{
	struct change *c = arg;
	const char *text = json_string_value(ret);
	struct error failed = *err;

	if (!err->code && text && *text && c->kind == CHANGE_SSH_ON) {
		scoped_free char *shown = log_escape(text, 200);

		error_set(&failed, -EADDRINUSE, "QEMU's user network: %s", shown);
	}
	end(c, &failed);
}

static void begin_forward(struct change *c)
{
	scoped_free char *add = xasprintf("hostfwd_add " QEMU_NETDEV " tcp:127.0.0.1:%u-:22",
					  c->o.ssh_port);
	scoped_free char *remove = xasprintf("hostfwd_remove " QEMU_NETDEV " tcp:127.0.0.1:%u",
					     c->o.ssh_port);

	/* there is no QMP command for it (QEMU 10) */
	call(c, "human-monitor-command",
	     json_pack("{s:s}", "command-line", c->kind == CHANGE_SSH_ON ? add : remove), on_forward);
}

/* --- life --------------------------------------------------------------------------- */

static void begin(void *arg)
{
	static void (*const first[])(struct change *c) = {
		[CHANGE_VSOCK_IN] = begin_vsock,
		[CHANGE_VSOCK_OUT] = begin_vsock,
		[CHANGE_SSH_ON] = begin_forward,
		[CHANGE_SSH_OFF] = begin_forward,
	};
	struct change *c = arg;

	first[c->kind](c);
}

static void tell(void *arg)
{
	struct change *c = arg;

	c->done(c->arg, &c->talk.err);
}

static void release(void *arg)
{
	struct change *c = arg;

	json_decref(c->stale);
	free(c);
}

struct change *change_begin(const struct change_options *o, enum change_kind kind,
			    driver_done_fn done, void *arg)
{
	static const struct talk_owner owner_is = { begin, tell, release };
	struct change *c = xnew(struct change);

	c->o = *o;
	c->o.guest_ms = o->guest_ms ? o->guest_ms : GUEST_MS;
	c->kind = kind;
	c->done = done;
	c->arg = arg;
	talk_begin(&c->talk, o->loop, o->qmp, &owner_is, c);
	return c;
}

void change_qmp_lost(struct change *c)
{
	talk_qmp_lost(&c->talk, "");
}

void change_free(struct change *c)
{
	if (c)
		talk_free(&c->talk);
}
