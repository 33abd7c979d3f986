/* Sends itself signal N, as a crash would; exits 3 if it lives on. signal_self N */
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int number = argc > 1 ? atoi(argv[1]) : SIGABRT;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_UNBLOCK, &all, NULL);
    kill(getpid(), number);
    /* A stop signal comes back here when continued. */
    return 3;
}
