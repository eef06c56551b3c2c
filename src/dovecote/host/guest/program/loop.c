/* The event loop, its clock, and the ways to fork. */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif
#define NEVER UINT64_MAX

uint64_t now = 1;
static struct { int count, most; pid_t pids[MAX_HELPERS]; } helpers[HELPER_KINDS] = {
    [BRIEF] = {.most = MAX_HELPERS}, [WATCHING] = {.most = MAX_WATCHERS},
};
static uint64_t next_due = NEVER, last_seen;
static int epoll_fd = -1;
static struct dead *graves;
static struct watch signals = {.fd = -1};
static bool must_reap;
static struct rlimit files_before;

noreturn void *out_of_memory(void) { _exit(70); }

/* Every buffer is bounded, so this happens only when the sandbox as a whole has no memory left. */
void *must(void *memory) { return memory ? memory : out_of_memory(); }

static uint64_t clock_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

uint64_t wall_ms(void) { return clock_ms(CLOCK_REALTIME); }

void due(uint64_t at) {
    if (at < next_due)
        next_due = at;
}

void bury(struct dead *dead) {
    dead->next = graves;
    graves = dead;
}

bool watch_for(struct watch *watch, uint32_t events) {
    if (watch->fd < 0 || watch->events == events)
        return true;
    int what = !events ? EPOLL_CTL_DEL : watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(epoll_fd, what, watch->fd, &event))
        return false;
    watch->events = events;
    return true;
}

/* Adding fails when code inside has used up the kernel's bound on watches of its user. */
void watch_or_retry(struct watch *watch, uint32_t events) {
    if (!watch_for(watch, events))
        due(now + 100);
}

void watch_close(struct watch *watch) {
    if (watch->fd < 0)
        return;
    watch_for(watch, 0); /* a child may still hold the file, which would keep it in the epoll set */
    close(watch->fd);
    watch->fd = -1;
}

static void signals_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct signalfd_siginfo each;
    while (read(watch->fd, &each, sizeof each) == sizeof each) {
        if (each.ssi_signo == SIGCHLD)
            must_reap = true;
        else if (getpid() != 1 || each.ssi_pid == 0) /* as PID 1 only the host may end us, not a process inside */
            stop(2000);
    }
}

void loop_open(void) {
    last_seen = clock_ms(CLOCK_MONOTONIC);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    sigset_t all, ours;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    signal(SIGCHLD, SIG_DFL); /* ignored, as a parent may have left it, children would not wait for us */
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGTERM);
    signals = (struct watch){signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK), 0, signals_ready};
    getrlimit(RLIMIT_NOFILE, &files_before);
    struct rlimit most = {files_before.rlim_max, files_before.rlim_max};
    setrlimit(RLIMIT_NOFILE, &most);
    if (epoll_fd < 0 || signals.fd < 0 || !watch_for(&signals, EPOLLIN))
        _exit(71);
}

/* Time that passed while we were frozen is not counted, or every timeout would be over at the thaw. */
static void see_time(int waited_at_most) {
    uint64_t seen = clock_ms(CLOCK_MONOTONIC), passed = seen - last_seen;
    last_seen = seen;
    now += waited_at_most >= 0 && passed > (uint64_t)waited_at_most + 1000 ? (uint64_t)waited_at_most : passed;
}

noreturn void loop_run(void) {
    struct epoll_event events[64];
    for (;;) {
        int wait = must_reap ? 0 : -1;
        if (wait && next_due != NEVER)
            wait = next_due <= now ? 0 : next_due - now > 60000 ? 60000 : (int)(next_due - now);
        int count = epoll_wait(epoll_fd, events, 64, wait);
        see_time(wait);
        for (int i = 0; i < count; i++) {
            struct watch *watch = events[i].data.ptr;
            if (watch->fd >= 0 && watch->events)
                watch->ready(watch, events[i].events);
        }
        if (must_reap) {
            must_reap = false;
            reap();
        }
        if (now >= next_due) {
            next_due = NEVER;
            connections_tick();
            commands_tick();
            stop_tick();
            door_tick();
        }
        while (graves) {
            struct dead *dead = graves;
            graves = dead->next;
            free(dead);
        }
    }
}

void reap_again(void) { must_reap = true; }

pid_t fork_child(void) {
    pid_t pid = fork();
    if (pid)
        return pid;
    /* By the kernel's own calls: a C library keeps some signals for itself and would pass on what a parent ignored. */
    const uint64_t nothing[4] = {0};
    for (int i = 1; i <= 64; i++)
        syscall(SYS_rt_sigaction, i, nothing, NULL, sizeof nothing[0]);
    setrlimit(RLIMIT_NOFILE, &files_before);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, nothing, NULL, sizeof nothing[0]);
    syscall(SYS_close_range, 3, UINT_MAX, CLOSE_RANGE_CLOEXEC); /* all are already: a second lock */
    return 0;
}

void helper_exited(pid_t pid) {
    for (int kind = 0; kind < HELPER_KINDS; kind++)
        for (int i = 0; i < helpers[kind].count; i++)
            if (helpers[kind].pids[i] == pid)
                helpers[kind].pids[i] = helpers[kind].pids[--helpers[kind].count];
}

int helpers_running(void) {
    int count = 0;
    for (int kind = 0; kind < HELPER_KINDS; kind++)
        count += helpers[kind].count;
    return count;
}

void kill_helpers(enum helper kind) {
    for (int i = 0; i < helpers[kind].count; i++)
        kill(helpers[kind].pids[i], SIGKILL);
}

/* Keeps our blocked signals: only SIGKILL ends a helper. One that watches ends also by SIGTERM, as at a shutdown. */
pid_t fork_helper(enum helper kind, int keep_fd) {
    if (helpers[kind].count >= helpers[kind].most) {
        errno = EUSERS;
        return -1;
    }
    pid_t pid = fork();
    if (pid > 0)
        helpers[kind].pids[helpers[kind].count++] = pid;
    if (pid)
        return pid;
    if (keep_fd >= 0 && keep_fd != 3)
        dup3(keep_fd, 3, O_CLOEXEC);
    int first = keep_fd >= 0 ? 4 : 3;
    if (syscall(SYS_close_range, first, UINT_MAX, 0))
        for (int fd = first; fd < 4096; fd++)
            close(fd);
    if (kind == WATCHING) {
        sigset_t term;
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        sigprocmask(SIG_UNBLOCK, &term, NULL);
    }
    return 0;
}
