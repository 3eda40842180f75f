// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * An ordinary echo server for one connection, which knows nothing of NetKernel.
 *   serve ADDRESS    binds any port, says "NK-PORT n" on standard error, accepts once, echoes until EOF
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TIMEOUT_MS 20000

static void expect(int ok, const char *what)
{
	if (!ok) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static unsigned char buffer[65536];
	struct sockaddr_in name = { .sin_family = AF_INET }, peer;
	socklen_t len = sizeof(name);
	struct pollfd p = { .events = POLLIN };
	size_t total = 0;
	ssize_t n;
	int one = 1, fd;

	if (argc != 2 || inet_pton(AF_INET, argv[1], &name.sin_addr) != 1)
		return 2;
	p.fd = socket(AF_INET, SOCK_STREAM, 0);
	expect(p.fd >= 0, "socket");
	expect(!setsockopt(p.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "SO_REUSEADDR");
	expect(!bind(p.fd, (void *)&name, sizeof(name)), "bind");
	expect(!listen(p.fd, 5), "listen");
	expect(!getsockname(p.fd, (void *)&name, &len) && name.sin_port, "getsockname");
	fprintf(stderr, "NK-PORT %d\n", ntohs(name.sin_port));
	expect(poll(&p, 1, TIMEOUT_MS) == 1 && p.revents == POLLIN, "poll for a connection");
	len = sizeof(peer);
	fd = accept4(p.fd, (void *)&peer, &len, 0);
	expect(fd >= 0, "accept");
	expect(peer.sin_family == AF_INET && peer.sin_port, "the peer's name");
	expect(!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
		ssize_t done = 0;

		while (done < n) {
			ssize_t w = write(fd, buffer + done, n - done);

			expect(w > 0, "write");
			done += w;
		}
		total += n;
	}
	expect(n == 0, "read");
	expect(!close(fd) && !close(p.fd), "close");
	printf("%zu bytes served\n", total);
	return 0;
}
