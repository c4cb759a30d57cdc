/* Refuses to start processes while the file FORK_SHIM_REFUSED exists, as when the limit on processes is reached. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

pid_t fork(void) {
    static pid_t (*real)(void);
    const char *path = getenv("FORK_SHIM_REFUSED");
    if (path && access(path, F_OK) == 0) {
        errno = EAGAIN;
        return -1;
    }
    if (!real) real = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");
    return real();
}

/* A function that returns cannot call vfork for its caller; fork does all that vfork promises. */
pid_t vfork(void) { return fork(); }
