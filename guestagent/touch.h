/* touch.h - a file changed on the host: make the guest's watchers see it
 *
 * On a shared mount the guest's inotify sees nothing of the host's changes, so
 * the host tells the path and the time, and we set the file's times to it: that
 * is an event for whoever watches (as Lima's agent does). A path that does not
 * exist is left alone.
 *
 * The file system may be a network one and hang: it runs on libuv's pool, one at a
 * time, so that the pool's other thread is there for others whatever hangs; a bounded
 * number waits, the rest is dropped.
 */
#pragma once

#include "lib/base/loop.h"
#include "proto/guestservice.pb-c.h"

struct touch;

enum { TOUCH_PENDING_MAX = 256 };

struct touch *touch_new(struct loop *loop);
void touch_path(struct touch *t, const Inotify *msg);
unsigned touch_pending(const struct touch *t);
/* Frees when the one under way is done, and does not wait for it; what waits is dropped. */
void touch_close(struct touch *t);
