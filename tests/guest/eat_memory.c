/* Touches MIB mebibytes (default: without end), 1 MiB at a time, then exits 0 and says so.
   eat_memory [MIB] [child CODE]: with `child`, a child does it and the parent then exits with CODE,
   whatever became of the child. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void eat(long mib) {
    for (long i = 0; mib <= 0 || i < mib; i++) {
        char *place = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) {
            perror("mmap");
            exit(3);
        }
        memset(place, (int)(i & 0x7f) + 1, 1 << 20);
    }
}

int main(int argc, char **argv) {
    long mib = argc > 1 ? atol(argv[1]) : 0;
    if (argc > 3 && strcmp(argv[2], "child") == 0) {
        pid_t pid = fork();
        if (pid < 0) return 4;
        if (pid == 0) {
            eat(mib);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
        return atoi(argv[3]);
    }
    eat(mib);
    puts("done");
    return 0;
}
