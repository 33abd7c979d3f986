/* Opens descriptors until it is refused; says how many it has and why; exits 0. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void) {
    int count = 3;
    while (dup(1) >= 0) count++;
    printf("%d %s\n", count, strerror(errno));
    return 0;
}
