#!/bin/sh
# The home was called NAME.linux before it was called NAME.guest; scripts that
# know one name find the other.
. /mnt/lima-cidata/lib.sh
case $LIMA_CIDATA_HOME in
*.guest) other=${LIMA_CIDATA_HOME%.guest}.linux ;;
*.linux) other=${LIMA_CIDATA_HOME%.linux}.guest ;;
*) exit 0 ;;
esac
[ -e "$other" ] || [ -L "$other" ] || ln -s "$LIMA_CIDATA_HOME" "$other"
