// shape: self
// Many threads look names up at once, children of a fork do while they go on, and signals interrupt them: every answer is right.
#include "names.h"
#include <pthread.h>

enum { THREADS = 12, ROUNDS = 25 };

static int good_one(void) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    if (getaddrinfo("localhost", "80", &hints, &found) != 0) return 0;
    struct sockaddr_in *a = (struct sockaddr_in *)found->ai_addr;
    int good = a->sin_family == AF_INET && a->sin_port == htons(80) && a->sin_addr.s_addr == htonl(INADDR_LOOPBACK);
    freeaddrinfo(found);
    return good;
}

static void *thread(void *unused) {
    (void)unused;
    long good = 0;
    for (int i = 0; i < ROUNDS; i++) good += good_one();
    return (void *)good;
}

static void on_alarm(int number) { (void)number; }

int main(void) {
    case_start();
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, thread, NULL);
    long children = 0;
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0) _exit(good_one() && good_one() ? 0 : 1);
        int status;
        // Without SA_RESTART: a lookup goes on after a handler all the same.
        for (int k = 0; k < THREADS; k++) pthread_kill(threads[k], SIGUSR1);
        while (waitpid(child, &status, 0) < 0) {}
        children += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    long good = 0;
    for (int i = 0; i < THREADS; i++) {
        void *of;
        pthread_join(threads[i], &of);
        good += (long)of;
    }
    T("good %ld of %d, children %ld", good, THREADS * ROUNDS, children);
    // With every descriptor closed, and the numbers all free.
    for (int fd = 3; fd < 1024; fd++) close(fd);
    T("after closing all: %d", good_one());
    return 0;
}
