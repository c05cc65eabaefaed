/* The wall clock of a process, moved by as many seconds as the file KVWIRE_TEST_CLOCK holds (int64), now. To be
   preloaded (LD_PRELOAD). Every other clock is left alone. */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t moved_s(void) {
    static const volatile int64_t *mapped;
    if (!mapped) {
        int file = open(getenv("KVWIRE_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
        void *memory = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
        if (memory == MAP_FAILED)
            abort();
        close(file);
        mapped = memory;
    }
    return *mapped;
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    int result = (int)syscall(SYS_clock_gettime, clock, found);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        found->tv_sec += moved_s();
    return result;
}

int gettimeofday(struct timeval *found, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
