lima_unit(ports_udp lima_guestagent)
lima_unit(ports lima_guestagent)
