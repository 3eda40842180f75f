// Names, errors and answers of the resolver functions, printed.
#ifndef NAMES_H
#define NAMES_H
#include "case.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/un.h>

static const char *eai(int code) {
    switch (code) {
    case 0: return "0";
    case EAI_BADFLAGS: return "EAI_BADFLAGS";
    case EAI_NONAME: return "EAI_NONAME";
    case EAI_AGAIN: return "EAI_AGAIN";
    case EAI_FAIL: return "EAI_FAIL";
    case EAI_FAMILY: return "EAI_FAMILY";
    case EAI_SOCKTYPE: return "EAI_SOCKTYPE";
    case EAI_SERVICE: return "EAI_SERVICE";
    case EAI_MEMORY: return "EAI_MEMORY";
    case EAI_SYSTEM: return "EAI_SYSTEM";
    case EAI_OVERFLOW: return "EAI_OVERFLOW";
    case EAI_ADDRFAMILY: return "EAI_ADDRFAMILY";
    case EAI_NODATA: return "EAI_NODATA";
    default: return "EAI_?";
    }
}

static void show(const struct addrinfo *found) {
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        char text[64] = "?";
        unsigned port = 0, scope = 0;
        if (a->ai_family == AF_INET) {
            const struct sockaddr_in *v4 = (const void *)a->ai_addr;
            inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text), port = ntohs(v4->sin_port);
        } else if (a->ai_family == AF_INET6) {
            const struct sockaddr_in6 *v6 = (const void *)a->ai_addr;
            inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text), port = ntohs(v6->sin6_port), scope = v6->sin6_scope_id;
        }
        T("  %s port %u scope %u, family %d of %d, type %d, protocol %d, flags %d, length %u, name %s", text, port, scope, a->ai_family,
          a->ai_addr->sa_family, a->ai_socktype, a->ai_protocol, a->ai_flags, (unsigned)a->ai_addrlen, a->ai_canonname ? a->ai_canonname : "-");
    }
}

static inline void look(const char *node, const char *service, int family, int type, int flags) {
    struct addrinfo hints = {.ai_family = family, .ai_socktype = type, .ai_flags = flags}, *found = NULL;
    int code = getaddrinfo(node, service, &hints, &found);
    T("%s %s family %d type %d flags %d: %s", node ? node : "-", service ? service : "-", family, type, flags, eai(code));
    if (code == 0) {
        show(found);
        freeaddrinfo(found);
    }
}
#endif
