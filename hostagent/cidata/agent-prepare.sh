#!/bin/sh
# Before the agent starts, at each boot of a guest with cloud-init, long before
# cloud-init is done: what it needs from the seed.
"${0%/*}/mount-seed.sh" || exit 1
. /mnt/lima-cidata/lib.sh
load $seed/lima.env
prepare_run
