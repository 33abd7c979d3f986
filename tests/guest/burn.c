/* Uses processor time in N threads (default 1) for SECONDS (default: for ever). burn [N] [SECONDS] */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double limit = -1;

static void *spin(void *unused) {
    volatile unsigned long count = 0;
    struct timespec now, start;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    for (;;) {
        for (int i = 0; i < 1000000; i++) count++;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        double used = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
        if (limit >= 0 && used >= limit) return unused;
    }
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    pthread_t others[64];
    if (argc > 2) limit = atof(argv[2]);
    if (threads < 1 || threads > 64) return 2;
    for (int i = 1; i < threads; i++)
        if (pthread_create(&others[i], NULL, spin, NULL) != 0) return 3;
    spin(NULL);
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    return 0;
}
