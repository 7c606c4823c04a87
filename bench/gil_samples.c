/* Of a Python process: how much of its processor time was spent with the interpreter's lock (GIL) held, and how much without.
 *
 * Loaded by LD_PRELOAD (bench/gil_samples.py makes and reads it). Each thread has a timer that counts its own processor
 * time; whenever it rings, the thread itself looks whether it holds the lock. So a process that waits, for a core or for
 * anything else, counts nothing, and other work on the machine changes nothing. What is counted is in milliseconds, in a
 * file that has the process's number as its name, in the directory that GIL_SAMPLES names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { MAIN_HELD, MAIN_FREE, OTHERS_HELD, OTHERS_FREE, COUNTS };

static volatile uint64_t *counts;
static int (*holds_lock)(void); /* PyGILState_Check: it takes no lock and changes nothing */
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

static void rings(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    int main_thread = syscall(SYS_gettid) == getpid();
    int at = (main_thread ? MAIN_HELD : OTHERS_HELD) + !holds_lock();
    __atomic_fetch_add(&counts[at], 1 + info->si_overrun, __ATOMIC_RELAXED);
}

static int begin(timer_t *timer)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
    struct itimerspec each = {.it_interval = {0, 1000000}, .it_value = {0, 1000000}};
    event.sigev_notify_thread_id = syscall(SYS_gettid);
    return !timer_create(CLOCK_THREAD_CPUTIME_ID, &event, timer) && !timer_settime(*timer, 0, &each, NULL);
}

struct started {
    void *(*function)(void *);
    void *argument;
};

static void *timed(void *given)
{
    struct started own = *(struct started *)given;
    timer_t timer;
    free(given);
    int begun = begin(&timer);
    void *result = own.function(own.argument);
    if (begun)
        timer_delete(timer);
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument)
{
    struct started *own = counts ? malloc(sizeof *own) : NULL;
    if (!real_create)
        real_create = dlsym(RTLD_NEXT, "pthread_create");
    if (!own)
        return real_create(thread, attributes, function, argument);
    *own = (struct started){function, argument};
    int refused = real_create(thread, attributes, timed, own);
    if (refused)
        free(own);
    return refused;
}

__attribute__((constructor)) static void load(void)
{
    const char *directory = getenv("GIL_SAMPLES");
    char path[4096];
    timer_t timer;
    holds_lock = dlsym(RTLD_DEFAULT, "PyGILState_Check");
    if (!directory || !holds_lock)
        return; /* no Python */
    snprintf(path, sizeof path, "%s/%d", directory, (int)getpid());
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, COUNTS * sizeof *counts))
        return;
    void *mapped = mmap(NULL, COUNTS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED)
        return;
    struct sigaction action = {.sa_sigaction = rings, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGPROF, &action, NULL);
    counts = mapped;
    begin(&timer);
}
