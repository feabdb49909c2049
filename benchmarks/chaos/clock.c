/* A wall clock that jumps: preloaded, it adds an offset, kept in a file, to what a process takes for the time of day.
   Monotonic clocks stay as they are, as when an administrator or NTP sets a machine's clock. Deadlines in wall-clock
   time are taken back before they reach the kernel, whose own clock did not jump. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t nothing, *offset = &nothing;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_semaphore)(sem_t *, const struct timespec *);

__attribute__((constructor)) static void open_offset(void) {
  real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  real_wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  real_semaphore = dlsym(RTLD_NEXT, "sem_timedwait");
  const char *path = getenv("UVD_CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (page != MAP_FAILED) offset = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_gettime) open_offset();
  int status = real_gettime(clock, now);
  if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
  return status;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  (void)zone;
  int status = clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return status;
}

time_t time(time_t *seconds) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (seconds) *seconds = now.tv_sec;
  return now.tv_sec;
}

/* Seconds since the machine started are few; those of the wall clock are more than a thousand million. */
static struct timespec kernel_time(const struct timespec *until) {
  struct timespec real = *until;
  if (real.tv_sec > 200000000) real.tv_sec -= *offset;
  return real;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
  struct timespec real = kernel_time(until);
  return real_wait(condition, mutex, &real);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  struct timespec real = kernel_time(until);
  return real_semaphore(semaphore, &real);
}
