// Tries every option and ioctl of list.h on sockets in several states and prints one line for each: what getting it, setting it
// and getting it again gave. `cargo xtask options` runs this natively and as a guest and writes docs/socket-options.md from
// the difference. Not a case: most of what differs is meant to.
//
// It gives its rights over the network up first: what only an administrator may set is no reference for a guest.
#define _GNU_SOURCE
#include <asm/ioctls.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define ROOM 256 // more than any option has

struct value {
    unsigned char bytes[ROOM];
    socklen_t length;
};

// ---- the sockets -----------------------------------------------------------------------------------------

static const struct state {
    const char *name;
    int family, type;
    enum { FRESH, CONNECTED, LISTENING } how;
} STATES[] = {
    {"tcp4", AF_INET, SOCK_STREAM, FRESH},
    {"tcp4-connected", AF_INET, SOCK_STREAM, CONNECTED},
    {"tcp4-listening", AF_INET, SOCK_STREAM, LISTENING},
    {"tcp6", AF_INET6, SOCK_STREAM, FRESH},
    {"tcp6-connected", AF_INET6, SOCK_STREAM, CONNECTED},
    {"udp4", AF_INET, SOCK_DGRAM, FRESH},
    {"udp4-connected", AF_INET, SOCK_DGRAM, CONNECTED},
    {"udp6", AF_INET6, SOCK_DGRAM, FRESH},
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static socklen_t loopback(int family, struct sockaddr_storage *to) {
    memset(to, 0, sizeof *to);
    to->ss_family = family;
    if (family == AF_INET) {
        ((struct sockaddr_in *)to)->sin_addr.s_addr = __constant_htonl(INADDR_LOOPBACK);
        return sizeof(struct sockaddr_in);
    }
    ((struct sockaddr_in6 *)to)->sin6_addr.s6_addr[15] = 1;
    return sizeof(struct sockaddr_in6);
}

struct made {
    int fd, other, third;
};

// A socket in that state; fd is -1 where there is none of the kind.
static struct made make(const struct state *s) {
    struct made m = {socket(s->family, s->type, 0), -1, -1};
    struct sockaddr_storage a;
    socklen_t length = loopback(s->family, &a);
    if (m.fd < 0 || s->how == FRESH) return m;
    if (s->how == LISTENING) {
        if (bind(m.fd, (void *)&a, length) || listen(m.fd, 8)) die("listen");
        return m;
    }
    m.other = socket(s->family, s->type, 0);
    if (bind(m.other, (void *)&a, length)) die("bind");
    if (s->type == SOCK_STREAM && listen(m.other, 8)) die("listen");
    if (getsockname(m.other, (void *)&a, &length) || connect(m.fd, (void *)&a, length)) die("connect");
    if (s->type == SOCK_STREAM && (m.third = accept(m.other, NULL, NULL)) < 0) die("accept");
    return m;
}

static void end(struct made m) {
    close(m.fd);
    if (m.other >= 0) close(m.other);
    if (m.third >= 0) close(m.third);
}

// ---- what is set -----------------------------------------------------------------------------------------

enum kind { K_INT, K_LINGER, K_TIME, K_NAME, K_FILTER, K_MEMBER, K_MEMBER6 };
struct given {
    enum kind kind;
    int number;
    const char *name;
};
#define INT(n) {K_INT, n, 0}
#define LINGER {K_LINGER, 0, 0}
#define TIME {K_TIME, 0, 0}
#define NAME(s) {K_NAME, 0, s}
#define FILTER {K_FILTER, 0, 0}
#define MEMBER {K_MEMBER, 0, 0}
#define MEMBER6 {K_MEMBER6, 0, 0}

static struct value value_of(const struct given *g) {
    static struct sock_filter take_all[] = {{BPF_RET | BPF_K, 0, 0, 0xffffffff}};
    struct value v = {{0}, 0};
    struct linger linger = {1, 5};
    struct timeval time = {3, 500000};
    struct sock_fprog filter = {1, take_all};
    struct ip_mreq member = {{__constant_htonl(0xe0000001)}, {__constant_htonl(INADDR_LOOPBACK)}};
    struct ipv6_mreq member6 = {{{{0xff, 0x02, [15] = 1}}}, 1};
    const void *from = &g->number;
    v.length = sizeof g->number;
    switch (g->kind) {
    case K_INT: break;
    case K_LINGER: from = &linger, v.length = sizeof linger; break;
    case K_TIME: from = &time, v.length = sizeof time; break;
    case K_NAME: from = g->name, v.length = strlen(g->name); break;
    case K_FILTER: from = &filter, v.length = sizeof filter; break;
    case K_MEMBER: from = &member, v.length = sizeof member; break;
    case K_MEMBER6: from = &member6, v.length = sizeof member6; break;
    }
    memcpy(v.bytes, from, v.length);
    return v;
}

// ---- one option ------------------------------------------------------------------------------------------

static const char *result(int r) {
    if (r == 0) return "0";
    const char *name = strerrorname_np(errno);
    return name ? name : "?";
}

// "4 bytes 0x1" or an errno, into `text`.
static const char *got(int fd, int level, int name, socklen_t room, int varying, char *text) {
    struct value v = {{0}, room};
    if (getsockopt(fd, level, name, v.bytes, &v.length)) return strcpy(text, result(-1));
    int n = sprintf(text, "%u:", v.length);
    if (varying) return strcpy(text + n, "*"), text;
    for (socklen_t i = 0; i < v.length && i < 24; i++) n += sprintf(text + n, "%02x", v.bytes[i]);
    return text;
}

static void option(const char *label, int level, const char *level_name, int name, const struct given *g, int varying) {
    char a[128], b[128], c[128], d[128];
    struct value v = value_of(g);
    for (unsigned i = 0; i < sizeof STATES / sizeof STATES[0]; i++) {
        struct made m = make(&STATES[i]);
        printf("option\t%s\t%s\t%d\t%d\t%s\t", label, level_name, level, name, STATES[i].name);
        if (m.fd < 0) {
            printf("no socket: %s\n", result(-1));
            continue;
        }
        got(m.fd, level, name, ROOM, varying, a);
        strcpy(b, result(setsockopt(m.fd, level, name, v.bytes, v.length)));
        got(m.fd, level, name, ROOM, varying, c);
        printf("get %s\tset %s\tback %s\t", a, b, c);
        // The edges: little room, a short value, none at all, a null pointer.
        got(m.fd, level, name, 1, varying, d);
        printf("get1 %s\t", d);
        got(m.fd, level, name, 0, varying, d);
        printf("get0 %s\t", d);
        printf("set1 %s\t", result(setsockopt(m.fd, level, name, v.bytes, 1)));
        printf("set0 %s\t", result(setsockopt(m.fd, level, name, v.bytes, 0)));
        printf("setnull %s\n", result(setsockopt(m.fd, level, name, NULL, 4)));
        end(m);
    }
}

// ---- one ioctl -------------------------------------------------------------------------------------------

enum argument { NUMBER, NOTHING, BYTES, INTERFACE, INTERFACES };

static void control(const char *label, unsigned long request, enum argument kind) {
    for (unsigned i = 0; i < sizeof STATES / sizeof STATES[0]; i++) {
        struct made m = make(&STATES[i]);
        printf("ioctl\t%s\tioctl\t0\t%lu\t%s\t", label, request, STATES[i].name);
        if (m.fd < 0) {
            printf("no socket: %s\n", result(-1));
            continue;
        }
        int number = 0;
        unsigned char bytes[ROOM] = {0};
        struct ifreq one;
        memset(&one, 0, sizeof one);
        strcpy(one.ifr_name, "lo");
        if (request == SIOCGIFNAME) one.ifr_ifindex = 1;
        struct ifconf all = {.ifc_len = sizeof bytes, .ifc_buf = (char *)bytes};
        void *arguments[] = {[NUMBER] = &number, [NOTHING] = NULL, [BYTES] = bytes, [INTERFACE] = &one, [INTERFACES] = &all};
        int r = ioctl(m.fd, request, arguments[kind]);
        printf("get %s", result(r));
        if (r == 0 && kind == NUMBER) printf(":%d", number);
        if (r == 0 && kind == INTERFACES) printf(":%s", all.ifc_len ? "some" : "none");
        printf("\n");
        end(m);
    }
}

// ---- all of them -----------------------------------------------------------------------------------------

static void give_rights_up(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    if (syscall(SYS_capset, &header, none)) die("capset");
}

int main(void) {
    alarm(60);
    signal(SIGIO, SIG_IGN);
    give_rights_up();
#define OPTION(level, name, ...)                                                                           \
    {                                                                                                      \
        static const struct given given = __VA_ARGS__;                                                     \
        option(#name, level, #level, name, &given, 0);                                                     \
    }
#define VARYING(level, name, ...)                                                                          \
    {                                                                                                      \
        static const struct given given = __VA_ARGS__;                                                     \
        option(#name, level, #level, name, &given, 1);                                                     \
    }
#define IOCTL(name, kind) control(#name, name, kind);
#include "list.h"
    return 0;
}
