/*
 * A clock that can be turned: preloaded into a server, it adds the seconds in the file $WRONG_CLOCK (a signed 64-bit number,
 * mapped, so that a change is seen at once) to every look at the time of day. The monotonic clock stays as it is, as it does
 * when somebody sets a real clock.
 *
 *     cc -shared -fPIC -O2 -o wrong_clock.so wrong_clock.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t right = 0;
static const volatile int64_t *wrong_by = &right;

__attribute__((constructor)) static void find_clock(void)
{
    const char *path = getenv("WRONG_CLOCK");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd == -1)
        return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        wrong_by = mapped;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time_of_day)
{
    int status = (int)syscall(SYS_clock_gettime, clock, time_of_day);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time_of_day->tv_sec += *wrong_by;
    return status;
}

int gettimeofday(struct timeval *restrict time_of_day, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    time_of_day->tv_sec = now.tv_sec;
    time_of_day->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    if (seconds != NULL)
        *seconds = now.tv_sec;
    return now.tv_sec;
}
