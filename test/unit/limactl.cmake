lima_unit(args lima_limactl)
lima_unit(shell_line lima_limactl)
