/* Uses BYTES bytes of stack, page by page; exits 0 if the stack was deep enough. deep_stack BYTES */
#include <stdio.h>
#include <stdlib.h>

static int go_down(long left) {
    volatile char page[4096];
    page[0] = 1;
    if (left <= 0) return page[0];
    return go_down(left - (long)sizeof page) + page[0];
}

int main(int argc, char **argv) {
    int pages = go_down(argc > 1 ? atol(argv[1]) : 1 << 20);
    printf("%d pages\n", pages);
    return 0;
}
