add_library(mock_vsock STATIC ../mock/vsock_guest.c)
target_link_libraries(mock_vsock PUBLIC lima_virtio lima_base PRIVATE lima_host_flags)

lima_unit(vsock lima_virtio mock_vsock)

# The device alone, at memory speed: build/…/test/unit/vsock-device-bench
add_executable(vsock-device-bench EXCLUDE_FROM_ALL ../bench/vsock_device.c)
target_link_libraries(vsock-device-bench PRIVATE lima_host_flags mock_vsock lima_virtio lima_base)
