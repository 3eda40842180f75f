// shape: self
// gethostbyname and its relatives: results, h_errno, buffers that are too small, and that the _r forms leave the static result alone.
#include "names.h"

static const char *h_name(int e) {
    switch (e) {
    case NETDB_INTERNAL: return "NETDB_INTERNAL";
    case 0: return "NETDB_SUCCESS";
    case HOST_NOT_FOUND: return "HOST_NOT_FOUND";
    case TRY_AGAIN: return "TRY_AGAIN";
    case NO_RECOVERY: return "NO_RECOVERY";
    case NO_DATA: return "NO_DATA";
    default: return "?";
    }
}

static void host(const char *what, const struct hostent *h) {
    if (!h) {
        T("%s: none, %s", what, h_name(h_errno));
        return;
    }
    T("%s: %s, family %d, length %d", what, h->h_name, h->h_addrtype, h->h_length);
    for (char **a = h->h_aliases; *a; a++) T("  alias %s", *a);
    for (char **a = h->h_addr_list; *a; a++) {
        char text[64];
        T("  %s", inet_ntop(h->h_addrtype, *a, text, sizeof text));
    }
}

int main(void) {
    case_start();
    host("localhost", gethostbyname("localhost"));
    host("LOCALHOST", gethostbyname("LOCALHOST"));
    host("127.0.0.1", gethostbyname("127.0.0.1"));
    host("1.2", gethostbyname("1.2"));
    host("256.1.1.1", gethostbyname("256.1.1.1"));
    host("localhost v4", gethostbyname2("localhost", AF_INET));
    host("localhost v6", gethostbyname2("localhost", AF_INET6));
    host("::1 v6", gethostbyname2("::1", AF_INET6));
    host("family 77", gethostbyname2("localhost", 77));
    struct in_addr v4 = {htonl(INADDR_LOOPBACK)};
    host("address", gethostbyaddr(&v4, sizeof v4, AF_INET));
    host("address of 3 bytes", gethostbyaddr(&v4, 3, AF_INET));
    struct hostent place, *found = NULL;
    char buffer[8192];
    int e = 0;
    struct hostent *kept = gethostbyname("localhost");
    T("r %d", gethostbyname_r("localhost", &place, buffer, sizeof buffer, &found, &e));
    host("r", found);
    T("own %d, in the buffer %d", found == &place, found && found->h_name >= buffer && found->h_name < buffer + sizeof buffer);
    T("static %d", kept && strcmp(kept->h_name, "localhost") == 0);
    int sizes[] = {0, 1, 8, 24};
    for (int i = 0; i < 4; i++) {
        e = 0;
        int r = gethostbyname_r("localhost", &place, buffer, sizes[i], &found, &e);
        T("%d bytes: %s, found %d, %s", sizes[i], r == ERANGE ? "ERANGE" : r == 0 ? "0" : "?", found != NULL, h_name(e));
    }
    T("2 r %d", gethostbyname2_r("localhost", AF_INET, &place, buffer, sizeof buffer, &found, &e));
    host("2 r", found);
    e = 0;
    T("number r %d", gethostbyname_r("300.1.1.1", &place, buffer, sizeof buffer, &found, &e));
    T("number r found %d %s", found != NULL, h_name(e));
    T("addr r %d", gethostbyaddr_r(&v4, sizeof v4, AF_INET, &place, buffer, sizeof buffer, &found, &e));
    host("addr r", found);
    T("addr r small %d", gethostbyaddr_r(&v4, sizeof v4, AF_INET, &place, buffer, 8, &found, &e) == ERANGE);
    return 0;
}
