/* watch.h - says when something in a directory changed that may not exist yet
 *
 * Early in boot directories appear late (/run/…, /dev/virtio-ports). A watch
 * sits on the directory, or on the nearest parent that exists until the
 * directory does, by inotify: nothing is polled. Changes within a few
 * milliseconds come as one call; what changed is for the caller to look up.
 */
#pragma once

#include "lib/base/loop.h"

struct watch;

/* @dir: absolute. @changed is also called once soon after, for what is there. */
struct watch *watch_new(struct loop *loop, const char *dir, void (*changed)(void *arg), void *arg);
void watch_close(struct watch *w, void (*closed)(void *arg), void *arg);
