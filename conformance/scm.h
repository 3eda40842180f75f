// Passing descriptors over a Unix socket, for the cases that do.
#ifndef SCM_H
#define SCM_H
#include "case.h"

static void scm_send_n(int channel, const int *fds, int count) {
    union {
        char space[CMSG_SPACE(sizeof(int) * 16)];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof control);
    struct iovec one = {"f", 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
    MUST(sendmsg(channel, &message, 0));
}
static void scm_send(int channel, int fd) { scm_send_n(channel, &fd, 1); }

// Gives how many came; flags are recvmsg's.
static int scm_receive_n(int channel, int *fds, int max, int flags) {
    union {
        char space[CMSG_SPACE(sizeof(int) * 16)];
        struct cmsghdr align;
    } control;
    char byte;
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    MUST(recvmsg(channel, &message, flags));
    int count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        int here = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (int i = 0; i < here && count < max; i++) memcpy(&fds[count++], CMSG_DATA(h) + i * sizeof(int), sizeof(int));
    }
    return count;
}
static int scm_receive(int channel) {
    int fd = -1;
    if (scm_receive_n(channel, &fd, 1, 0) != 1) errno = EBADMSG, MUST(-1);
    return fd;
}
#endif
