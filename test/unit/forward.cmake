lima_unit(forward_rule lima_forward)
lima_unit(forward_tcp lima_forward)
target_sources(forward_tcp_test PRIVATE ../mock/forward.c ../mock/lane.c)
