// shape: self
// sendfile out of a socket is refused natively, copy_file_range too; read and write do the work.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], file = MUST(memfd_create("file", 0));
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "bytes");
    wait_bytes(ends[1], 5);
    R("copy_file_range", copy_file_range(ends[1], NULL, file, NULL, 5, 0));
    R("copy_file_range into it", copy_file_range(file, NULL, ends[1], NULL, 5, 0));
    char text[8] = {0};
    R("read", read(ends[1], text, 5));
    R("write", write(file, text, 5));
    T("%s", text);
    return 0;
}
