/* Forks until it is refused, every child doing the same; never ends by itself. With the word `once`,
   one process forks sleeping children until it is refused, says how many it got, and exits 0. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "once") == 0) {
        int children = 0;
        for (;;) {
            pid_t pid = fork();
            if (pid < 0) break;
            if (pid == 0) {
                pause();
                _exit(0);
            }
            children++;
        }
        printf("%d\n", children);
        return 0;
    }
    for (;;)
        if (fork() < 0) usleep(1000);
}
