// PID 1 of the boxes in these tests: one line in, an answer out, each connection in a process of its own.
#define _GNU_SOURCE
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long attack(const char *name) {
    char buffer[8] = {0};
    int fd;
    if (!strcmp(name, "mount")) return mount("none", "/new", "tmpfs", 0, 0);
    if (!strcmp(name, "bind")) return mount("/proc", "/new", 0, MS_BIND, 0);
    if (!strcmp(name, "umount")) return umount2("/proc", MNT_DETACH);
    if (!strcmp(name, "umount_mask")) return umount2("/proc/kcore", MNT_DETACH);
    if (!strcmp(name, "remount")) return mount("none", "/sys", 0, MS_REMOUNT | MS_BIND, 0);
    if (!strcmp(name, "open_tree")) return syscall(SYS_open_tree, AT_FDCWD, "/", 1);
    if (!strcmp(name, "pivot_root")) return syscall(SYS_pivot_root, "/new", "/new");
    if (!strcmp(name, "unshare_user")) return unshare(CLONE_NEWUSER);
    if (!strcmp(name, "unshare_mount")) return unshare(CLONE_NEWNS);
    if (!strcmp(name, "clone_user")) return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (!strcmp(name, "clone_net")) return syscall(SYS_clone, CLONE_NEWNET | CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (!strcmp(name, "clone3")) return syscall(SYS_clone3, 0, 0);
    if (!strcmp(name, "setns")) return setns(open("/proc/self/ns/mnt", O_RDONLY), 0);
    if (!strcmp(name, "ptrace_init")) return ptrace(PTRACE_ATTACH, 1, 0, 0);
    if (!strcmp(name, "init_descriptors")) return open("/proc/1/fd/3", O_RDWR);
    if (!strcmp(name, "init_memory")) return open("/proc/1/mem", O_RDWR);
    if (!strcmp(name, "steal_descriptor")) return syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, 1, 0), 3, 0);
    if (!strcmp(name, "sysctl")) return (fd = open("/proc/sys/kernel/hostname", O_WRONLY)) < 0 ? fd : write(fd, "x", 1);
    if (!strcmp(name, "sysrq")) return open("/proc/sysrq-trigger", O_WRONLY);
    if (!strcmp(name, "kcore")) return (fd = open("/proc/kcore", O_RDONLY)) < 0 ? fd : read(fd, buffer, 1) - 1;
    if (!strcmp(name, "kmsg")) return (fd = open("/proc/kmsg", O_RDONLY)) < 0 ? fd : read(fd, buffer, 1) - 1;
    if (!strcmp(name, "mknod")) return mknod("/dev/shm/sda", S_IFBLK | 0600, makedev(8, 0));
    if (!strcmp(name, "keyctl")) return syscall(SYS_keyctl, 0, -3, 1);
    if (!strcmp(name, "add_key")) return syscall(SYS_add_key, "user", "x", "x", 1, -3);
    if (!strcmp(name, "bpf")) return syscall(SYS_bpf, 0, 0, 0);
    if (!strcmp(name, "perf")) return syscall(SYS_perf_event_open, 0, 0, -1, -1, 0);
    if (!strcmp(name, "userfaultfd")) return syscall(SYS_userfaultfd, 1);
    if (!strcmp(name, "io_uring")) return syscall(SYS_io_uring_setup, 1, buffer);
    if (!strcmp(name, "open_by_handle")) return syscall(SYS_open_by_handle_at, AT_FDCWD, buffer, 0);
    if (!strcmp(name, "kexec")) return syscall(SYS_kexec_load, 0, 0, 0, 0);
    if (!strcmp(name, "module")) return syscall(SYS_init_module, 0, 0, "");
    if (!strcmp(name, "personality")) return syscall(SYS_personality, 0x0400000);
    if (!strcmp(name, "vsock")) return socket(40, SOCK_STREAM, 0);
    if (!strcmp(name, "alg")) return socket(38, SOCK_SEQPACKET, 0);
    if (!strcmp(name, "raw")) return socket(AF_INET, SOCK_RAW, 1);
    if (!strcmp(name, "hostname")) return sethostname("x", 1);
    if (!strcmp(name, "more_files")) return setrlimit(RLIMIT_NOFILE, &(struct rlimit){1 << 20, 1 << 20});
    if (!strcmp(name, "nice")) return setpriority(PRIO_PROCESS, 0, -10);
    if (!strcmp(name, "write_root")) return open("/new/file", O_CREAT | O_WRONLY, 0600);
    if (!strcmp(name, "write_sys")) return open("/sys/file", O_CREAT | O_WRONLY, 0600);
    // What must work, for a sandbox to be of use:
    if (!strcmp(name, "setuid_bit")) {
        close(open("/dev/shm/tool", O_CREAT | O_WRONLY, 0700));
        return chmod("/dev/shm/tool", 04755);
    }
    if (!strcmp(name, "become_user")) return setgid(1000) || setuid(1000);
    if (!strcmp(name, "personality_same")) return syscall(SYS_personality, 0xffffffff) < 0 ? -1 : 0;
    if (!strcmp(name, "trace_own")) {
        int status;
        pid_t child = fork();
        if (!child) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(0); }
        waitpid(child, &status, WUNTRACED);
        return ptrace(PTRACE_KILL, child, 0, 0);
    }
    if (!strcmp(name, "null")) return write(open("/dev/null", O_WRONLY), "x", 1) - 1;
    if (!strcmp(name, "random")) return read(open("/dev/urandom", O_RDONLY), buffer, 1) - 1;
    if (!strcmp(name, "terminal")) return open("/dev/ptmx", O_RDWR | O_NOCTTY) < 0 ? -1 : 0;
    errno = 9999;
    return -1;
}

static void copy_file(const char *path) {
    char buffer[65536];
    ssize_t n;
    int fd = open(path, O_RDONLY);
    if (fd < 0) printf("errno %d", errno);
    while (fd >= 0 && (n = read(fd, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, n, stdout);
}

static void hog(long mebibytes) {
    int status;
    pid_t child = fork();
    if (!child) {
        for (long i = 0; i < mebibytes; i++) memset(malloc(1 << 20), 1, 1 << 20);
        _exit(0);
    }
    waitpid(child, &status, 0);
    printf(WIFSIGNALED(status) ? "signal %d" : "exit %d", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void bomb(void) {
    static pid_t children[100000];
    int n = 0;
    while (n < 100000 && (children[n] = fork()) >= 0) {
        if (!children[n]) for (;;) pause();
        n++;
    }
    printf("%d %d", n, errno);
    while (n--) kill(children[n], SIGKILL);
}

static int *counter; // of this box, in memory that all of its processes share

static void serve(char *line) {
    char *argument = strchr(line, ' ');
    if (argument) *argument++ = 0;
    if (!strcmp(line, "attack")) printf("%d", attack(argument) < 0 ? errno : 0);
    if (!strcmp(line, "read")) copy_file(argument);
    if (!strcmp(line, "hog")) hog(atol(argument));
    if (!strcmp(line, "bomb")) bomb();
    if (!strcmp(line, "count")) printf("%d", ++*counter);
    if (!strcmp(line, "shut")) kill(1, SIGUSR1);
    if (!strcmp(line, "unlink")) printf("%d", unlink(argument) ? errno : 0);
    if (!strcmp(line, "create")) printf("%d", open(argument, O_CREAT | O_WRONLY, 0600) < 0 ? errno : 0);
    if (!strcmp(line, "spin") && !fork()) {
        close(1);
        close(2);
        for (;;) ;
    }
    if (!strcmp(line, "list")) {
        DIR *directory = opendir(argument);
        for (struct dirent *entry; directory && (entry = readdir(directory));) printf("%s\n", entry->d_name);
    }
    if (!strcmp(line, "sh")) execl("/bin/sh", "sh", "-c", argument, (char *)0);
    fflush(stdout);
}

static const char *door;
static volatile int is_asked;

static void asked_to_shut(int number) { is_asked = number; }

// Tries until it may, as the guest does.
static void open_door(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, door, sizeof at.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    while (bind(fd, (struct sockaddr *)&at, sizeof at)) usleep(5000);
    if (fd != 3 && (dup2(fd, 3) < 0 || close(fd))) _exit(8);
    if (listen(3, 64)) _exit(8);
}

int main(int count, char **arguments) {
    if (count > 1) {
        door = arguments[1];
        open_door();
    }
    counter = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigset_t asking, none;
    sigemptyset(&none);
    sigemptyset(&asking);
    sigaddset(&asking, SIGUSR1);
    sigprocmask(SIG_BLOCK, &asking, 0);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = asked_to_shut}, 0);
    for (;;) {
        ppoll(&(struct pollfd){.fd = 3, .events = POLLIN}, 1, 0, &none);
        if (is_asked) {
            // Nobody may hold a connection while memory is saved, not even one that was only looking.
            is_asked = 0;
            close(3);
            kill(-1, SIGKILL);
            while (waitpid(-1, 0, 0) > 0) {}
            open_door();
            continue;
        }
        while (waitpid(-1, 0, WNOHANG) > 0) {}
        int connection = accept4(3, 0, 0, SOCK_CLOEXEC);
        if (connection < 0) continue;
        if (!fork()) {
            char line[65536];
            size_t n = 0;
            while (n < sizeof line - 1 && read(connection, line + n, 1) == 1 && line[n] != '\n') n++;
            line[n] = 0;
            dup2(connection, 1);
            dup2(connection, 2);
            close(connection);
            close(3);
            serve(line);
            _exit(0);
        }
        close(connection);
    }
}
