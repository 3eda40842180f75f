// shape: self
// Four threads send records on one socket, one receives: each record that one send took is whole.
#include "case.h"

enum { RECORD = 100, EACH = 2000 };
static int ends[2];
static void *sender(void *argument) {
    char record[RECORD];
    memset(record, 'a' + (long)argument, sizeof record);
    for (int i = 0; i < EACH; i++)
        if (send(ends[0], record, sizeof record, 0) != sizeof record) return (void *)1;
    return NULL;
}

int main(void) {
    case_start();
    tcp_pair(AF_INET, ends);
    pthread_t t[4];
    for (long i = 0; i < 4; i++) t[i] = start_thread(sender, (void *)i);
    int counts[4] = {0}, torn = 0;
    for (int i = 0; i < 4 * EACH; i++) {
        char record[RECORD];
        MUST(recv_all(ends[1], record, sizeof record));
        for (int k = 1; k < RECORD; k++) torn += record[k] != record[0];
        if (record[0] >= 'a' && record[0] <= 'd') counts[record[0] - 'a']++;
    }
    for (int i = 0; i < 4; i++) join(t[i]);
    T("%d %d %d %d, torn %d", counts[0], counts[1], counts[2], counts[3], torn);
    return 0;
}
