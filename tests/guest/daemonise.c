/* Leaves a daemon behind, twice forked and in a session of its own, that holds both outputs open
   for ever; exits 0 (or CODE) at once. daemonise [CODE] */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int ready[2];
    char byte = 0;
    if (pipe(ready) != 0) return 2;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork() == 0) {
            if (write(ready[1], "x", 1) != 1) _exit(3);
            for (;;) pause();
        }
        _exit(0);
    }
    waitpid(child, NULL, 0);
    /* The daemon is there before we go. */
    if (read(ready[0], &byte, 1) != 1) return 3;
    if (write(1, "daemon started\n", 15) != 15) return 4;
    return argc > 1 ? atoi(argv[1]) : 0;
}
