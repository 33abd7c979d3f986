/* Stops itself and every child that it makes: nobody continues them. */
#include <signal.h>
#include <unistd.h>

int main(void) {
    if (write(1, "stopping\n", 9) != 9) return 3;
    if (fork() == 0) {
        raise(SIGSTOP);
        _exit(0);
    }
    raise(SIGSTOP);
    return 4;
}
