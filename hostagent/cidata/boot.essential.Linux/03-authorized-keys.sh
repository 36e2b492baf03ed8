#!/bin/sh
# cloud-init puts keys in place once per instance; keys that come later arrive by
# this. What the user added by hand stays.
. /mnt/lima-cidata/lib.sh
group=$(id -g "$LIMA_CIDATA_USER") || exit 1
mkdir -p "$LIMA_CIDATA_HOME/.ssh"
put_between "$LIMA_CIDATA_HOME/.ssh/authorized_keys" <$seed/authorized_keys || exit 1
chmod 0700 "$LIMA_CIDATA_HOME/.ssh"
chmod 0600 "$LIMA_CIDATA_HOME/.ssh/authorized_keys"
chown "$LIMA_CIDATA_UID:$group" "$LIMA_CIDATA_HOME/.ssh" "$LIMA_CIDATA_HOME/.ssh/authorized_keys"
