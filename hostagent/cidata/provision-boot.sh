# provision-boot.sh - `provision` entries of mode boot: early, at each boot, by
# init.sh here and by bootcmd in a guest with cloud-init
for script in /mnt/lima-cidata/provision.boot/*; do
	[ -e "$script" ] || continue
	sh "$script" </dev/null || echo "lima: warning: provision.boot/${script##*/} failed" >&2
done
