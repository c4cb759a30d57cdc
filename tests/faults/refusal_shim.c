/* Starts no process, or no thread, while the file that the environment names exists: the limit on tasks is reached. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static int refused(const char *variable) {
    const char *path = getenv(variable);
    return path && access(path, F_OK) == 0;
}

pid_t fork(void) {
    static pid_t (*real)(void);
    if (refused("REFUSAL_SHIM_PROCESSES")) {
        errno = EAGAIN;
        return -1;
    }
    if (!real) real = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");
    return real();
}

/* A function that returns cannot call vfork for its caller; fork does all that vfork promises. */
pid_t vfork(void) { return fork(); }

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (refused("REFUSAL_SHIM_THREADS")) return EAGAIN;
    if (!real)
        real = (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT,
                                                                                            "pthread_create");
    return real(thread, attributes, body, argument);
}
