// shape: self
// Two streams on one descriptor: each keeps its number, also after the other is closed.
#include "case.h"

int main(void) {
    case_start();
    for (int first = 0; first < 2; first++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        FILE *f[2] = {fdopen(ends[0], "r"), fdopen(ends[0], "w")};
        T("numbers: %d %d", fileno(f[0]) == ends[0], fileno(f[1]) == ends[0]);
        R("fclose of one", fclose(f[first]));
        T("the other's number: %d", fileno(f[!first]) == ends[0]);
        R("the descriptor", fcntl(ends[0], F_GETFD));
        R("fclose of the other", fclose(f[!first]));
        // A stream on another socket that gets the same number.
        int again = tcp_socket(AF_INET);
        T("the number again: %d", again == ends[0]);
        FILE *g = fdopen(again, "r+");
        T("its number: %d", fileno(g) == again);
        fclose(g);
        close(ends[1]);
    }
    return 0;
}
