#!/bin/sh
# ssh.sh - plays the ssh client: the "guest" is this machine
#
# FAKE_SSH_DIR holds its state: `refuse` there makes each login fail, `log` gets
# the arguments of each call, `master.pid` names the master. The master's socket is
# a plain file at ControlPath.
echo "$*" >>"$FAKE_SSH_DIR/log"
control= command= forward= master=
while [ $# -gt 0 ]; do
	case "$1" in
	-o)
		case "$2" in
		ControlPath=*) control=$(printf %s "${2#*=}" | tr -d '"') ;;
		esac
		shift ;;
	-O) command=$2; shift ;;
	-L) forward=$2; shift ;;
	-F | -p) shift ;;
	-N) master=1 ;;
	--) shift; break ;;
	esac
	shift
done
case "$command" in
check)
	[ -e "$control" ] && exit 0
	echo "Control socket connect($control): No such file or directory" >&2
	exit 255 ;;
exit)
	rm -f "$control"
	exit 0 ;;
cancel)
	grep -qxF -e "$forward" "$control.known" || exit 255
	rm -f "$control.known"
	exit 0 ;;
forward)
	[ -e "$control" ] || exit 255
	# what it has it grants again, and makes nothing, as OpenSSH does
	grep -qxF -e "$forward" "$control.known" && exit 0
	echo "$forward" >>"$control.known"
	# a socket's end in the guest exists when the test made it; nothing listens on a port
	case $forward in
	/*) ln -s "$FAKE_SSH_DIR/guest.sock" "${forward%%:*}" ;;
	esac
	exit 0 ;;
esac
if [ -e "$FAKE_SSH_DIR/refuse" ]; then
	echo "user@127.0.0.1: Permission denied (publickey)." >&2
	exit 255
fi
if [ -n "$master" ]; then
	trap 'rm -f "$control" "$control.known"; exit 0' TERM
	: >"$control"
	echo $$ >"$FAKE_SSH_DIR/master.pid"
	echo up
	while [ -e "$control" ] && [ ! -e "$FAKE_SSH_DIR/drop" ]; do
		sleep 0.05
	done
	rm -f "$control" "$control.known" "$FAKE_SSH_DIR/drop"
	echo "Connection to 127.0.0.1 closed by remote host." >&2
	exit 255
fi
# markers of the guest's /run are files of ours
sed "s,/run/lima-,$FAKE_SSH_DIR/lima-,g" | $@
