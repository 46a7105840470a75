/*
 * For LD_PRELOAD of ovs-vswitchd: room for what Pods send while ovs-vswitchd does something else.
 *
 * Open vSwitch reads an ordinary port (veth) from a socket of AF_PACKET, whose buffer is the kernel's default,
 * 208 KiB: three packets of userspace TSO. A Pod's TCP sender loses a packet in six by that (docs/adr/0043). Open
 * vSwitch has no setting for it, and the kernel's own (net.core.rmem_default) is every socket's of the machine.
 *
 * DUNLIN_OVS_PACKET_BUFFER_KIB   of each such socket; 0: the kernel's default. The kernel counts double of it, for
 *                                its own overhead.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DEFAULT_KIB = 4096, LARGEST_KIB = 1 << 20 };

static int buffer_bytes(void)
{
    const char *text = getenv("DUNLIN_OVS_PACKET_BUFFER_KIB");
    if (text == NULL || *text == '\0')
        return DEFAULT_KIB * 1024;
    char *end;
    errno = 0;
    long kib = strtol(text, &end, 10);
    if (errno == 0 && *end == '\0' && kib >= 0 && kib < LARGEST_KIB)
        return (int)kib * 1024;
    fprintf(stderr, "DUNLIN_OVS_PACKET_BUFFER_KIB=%s: use a number from 0 to %d; %d it is\n", text, LARGEST_KIB - 1,
            DEFAULT_KIB);
    return DEFAULT_KIB * 1024;
}

/* In place of libc's: the same, and a buffer for sockets of AF_PACKET. */
int socket(int domain, int type, int protocol)
{
    int fd = (int)syscall(SYS_socket, domain, type, protocol);
    if (fd < 0 || domain != AF_PACKET)
        return fd;
    int bytes = buffer_bytes();
    /* Forced past net.core.rmem_max: needs CAP_NET_ADMIN, as does all that ovs-vswitchd does with ports. */
    if (bytes > 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        perror("packet-buffers: SO_RCVBUFFORCE");
    errno = 0;
    return fd;
}
