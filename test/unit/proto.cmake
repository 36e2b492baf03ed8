# proto: gRPC between host and guest agent, both in one process
add_library(mock_proto STATIC ${PROJECT_SOURCE_DIR}/test/mock/proto_world.c
	${PROJECT_SOURCE_DIR}/test/mock/byte_port.c)
target_link_libraries(mock_proto PUBLIC lima_proto PkgConfig::CMOCKA PRIVATE lima_host_flags)
lima_unit(proto_tunnel mock_proto lima_proto)
lima_unit(proto_wire lima_proto)
lima_unit(proto_client mock_proto lima_proto)
lima_unit(proto_link mock_proto lima_proto)
