// shape: self
// system() and popen() while sockets are open: they run, the sockets are unharmed, and the shell inherits them by number.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    MUST(dup2(ends[1], 9)); // a number that sh can redirect to
    T("system: %s", status_name(system("exit 3")));
    T("system: %s", status_name(system("echo hello >&9")));
    expect_text("from the shell", ends[0], 6);
    send_text(ends[0], "to the shell\n");
    FILE *f = popen("read line <&9; echo \"$line\"", "r");
    char line[64] = {0};
    T("popen: %s", fgets(line, sizeof line, f) ? strtok(line, "\n") : "(null)");
    T("pclose: %s", status_name(pclose(f)));
    f = popen("cat >&9", "w");
    fputs("through cat", f);
    T("pclose: %s", status_name(pclose(f)));
    expect_text("from cat", ends[0], 11);
    close(9);
    send_text(ends[1], "whole");
    expect_text("client", ends[0], 5);
    return 0;
}
