/* Says who it is: real, effective and saved user, the same of the group, and with a path whether it may
   read that file. who [PATH] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    uid_t user[3];
    gid_t group[3];
    if (getresuid(&user[0], &user[1], &user[2]) != 0 || getresgid(&group[0], &group[1], &group[2]) != 0) return 2;
    printf("%u %u %u %u %u %u", user[0], user[1], user[2], group[0], group[1], group[2]);
    if (argc > 1) printf(" %s", open(argv[1], O_RDONLY) < 0 ? strerror(errno) : "read it");
    printf("\n");
    return 0;
}
