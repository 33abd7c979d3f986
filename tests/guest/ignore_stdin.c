/* Never reads its standard input; sleeps MS milliseconds and exits 0. ignore_stdin [MS] */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    usleep((useconds_t)(argc > 1 ? atoi(argv[1]) : 100) * 1000);
    return write(1, "never looked\n", 13) == 13 ? 0 : 3;
}
