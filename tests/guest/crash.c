/* Crashes in earnest: crash segv | bus | fpe | ill | abort | trap */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "abort";
    if (strcmp(how, "segv") == 0) *(volatile char *)mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) = 1;
    if (strcmp(how, "fpe") == 0) {
        volatile int one = 1, zero = 0, result = one / zero;
        (void)result;
        raise(SIGFPE); /* Some processors divide by zero without a word. */
    }
    if (strcmp(how, "ill") == 0) __builtin_trap();
    if (strcmp(how, "trap") == 0) raise(SIGTRAP);
    if (strcmp(how, "bus") == 0) {
        char name[] = "/tmp/busXXXXXX";
        int fd = mkstemp(name);
        char *place = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        /* The file is empty: there is nothing behind the page. */
        return *(volatile char *)place;
    }
    abort();
}
