/* Says `before`, closes all three of its standard descriptors, sleeps MS milliseconds, exits 7. close_stdio [MS] */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (write(1, "before\n", 7) != 7) return 3;
    close(0);
    close(1);
    close(2);
    usleep((useconds_t)(argc > 1 ? atoi(argv[1]) : 200) * 1000);
    return 7;
}
