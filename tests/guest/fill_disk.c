/* Writes one file of BYTES bytes (0: until it is refused) to PATH and says how much went in; exits 0.
   fill_disk PATH [BYTES]
   With `inodes`, makes empty files below PATH until it is refused and says how many. fill_disk inodes PATH */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[65536];

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "inodes") == 0) {
        long made = 0;
        char name[4200];
        for (;; made++) {
            snprintf(name, sizeof name, "%.4096s/%ld", argv[2], made);
            int fd = open(name, O_CREAT | O_WRONLY, 0600);
            if (fd < 0) break;
            close(fd);
        }
        printf("%ld %s\n", made, strerror(errno));
        return 0;
    }
    if (argc < 2) return 2;
    long long want = argc > 2 ? atoll(argv[2]) : 0, written = 0;
    int fd = open(argv[1], O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (fd < 0) {
        perror(argv[1]);
        return 3;
    }
    errno = 0;
    while (want == 0 || written < want) {
        size_t piece = want == 0 || want - written > (long long)sizeof block ? sizeof block : (size_t)(want - written);
        ssize_t done = write(fd, block, piece);
        if (done < 0) break;
        written += done;
    }
    printf("%lld %s\n", written, strerror(errno));
    return 0;
}
