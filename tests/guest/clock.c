/* Writes what time it is, again and again: whoever reads it can tell how long it took to come.
 * Usage: clock TIMES PAUSE_MS */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    int times = argc > 1 ? atoi(argv[1]) : 10;
    struct timespec pause = {0, (argc > 2 ? atoi(argv[2]) : 10) * 1000000L};
    for (int i = 0; i < times; i++) {
        struct timespec now;
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_REALTIME, &now);
        printf("%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
        fflush(stdout);
    }
    return 0;
}
