/* Writes to both outputs at once and without end, or BYTES bytes to each. spam [BYTES] [stdout|stderr] */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char block[4096];
    long long left = argc > 1 ? atoll(argv[1]) : -1;
    int to_stdout = argc < 3 || strcmp(argv[2], "stdout") == 0;
    int to_stderr = argc < 3 || strcmp(argv[2], "stderr") == 0;
    memset(block, 'x', sizeof block);
    while (left != 0) {
        size_t piece = left < 0 || left > (long long)sizeof block ? sizeof block : (size_t)left;
        for (int fd = 1; fd <= 2; fd++) {
            if (fd == 1 ? !to_stdout : !to_stderr) continue;
            for (size_t done = 0; done < piece;) {
                ssize_t written = write(fd, block, piece - done);
                if (written < 0) return 3;
                done += (size_t)written;
            }
        }
        if (left > 0) left -= (long long)piece;
    }
    return 0;
}
