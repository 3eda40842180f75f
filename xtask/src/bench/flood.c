/* An operation on a socket after the other, none of which carries a byte: for a guest, an element each, and a doorbell where
   the engine sleeps. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int main(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  for (int on = 0; fd >= 0; on = !on)
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
      return 1;
  return 1;
}
