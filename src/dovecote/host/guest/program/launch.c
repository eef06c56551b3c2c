/* How a command is launched: the pipes of PID 1 and it, and the forked child until it is the command. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "guest.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

/* -- in PID 1 */

static int open_pipe(int *ours, int *theirs, bool we_read) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return errno;
    *ours = ends[!we_read];
    *theirs = ends[we_read];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    return 0;
}

/* A kernel that does not hand it out (gVisor's) has it by name. What is there may be anything, and opening does not wait. */
static int open_peer(int master) {
    int fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    unsigned number;
    if (fd >= 0 || (errno != ENOTTY && errno != EINVAL) || ioctl(master, TIOCGPTN, &number))
        return fd;
    char digits[24], name[40] = "/dev/pts/";
    strcat(name, decimal(digits + sizeof digits - 1, number));
    fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd >= 0 && (!isatty(fd) || fcntl(fd, F_SETFL, O_RDWR))) {
        close(fd);
        fd = -1;
        errno = ENOTTY;
    }
    return fd;
}

static int open_terminal(int *ours, int *again, int *theirs, uint16_t rows, uint16_t cols) {
    int unlock = 0;
    *ours = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (*ours < 0 || ioctl(*ours, TIOCSPTLCK, &unlock))
        return errno;
    *theirs = open_peer(*ours);
    *again = *theirs < 0 ? -1 : fcntl(*ours, F_DUPFD_CLOEXEC, 0);
    if (*again < 0)
        return errno;
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    ioctl(*ours, TIOCSWINSZ, &size);
    return 0;
}

static void close_all(const int *fds, int number) {
    for (int i = 0; i < number; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* `ours` are input, output, errors and verdict. Returns 0 or an errno; `launch_close` is due in any case. */
int launch_open(struct launch *what, bool with_input, uint16_t rows, uint16_t cols, int ours[4]) {
    what->in = what->out = what->err = what->verdict = ours[0] = ours[1] = ours[2] = ours[3] = -1;
    int error = 0;
    if (what->is_terminal) {
        error = open_terminal(&ours[1], &ours[0], &what->in, rows, cols);
        what->out = what->err = what->in;
    } else {
        if (with_input)
            error = open_pipe(&ours[0], &what->in, false);
        if (!error)
            error = open_pipe(&ours[1], &what->out, true);
        if (!error)
            error = open_pipe(&ours[2], &what->err, true);
    }
    return error ? error : open_pipe(&ours[3], &what->verdict, true);
}

void launch_close(const struct launch *what, const int ours[4]) {
    int theirs[4] = {what->in, what->is_terminal ? -1 : what->out, what->is_terminal ? -1 : what->err, what->verdict};
    close_all(theirs, 4);
    if (ours)
        close_all(ours, 4);
}

/* -- in the child */

static int verdict_fd;

static noreturn void give_up(int problem, int error) {
    struct verdict verdict = {problem, error};
    ssize_t ignored = write(verdict_fd, &verdict, sizeof verdict);
    (void)ignored;
    _exit(127);
}

static const char **list(const uint8_t *at, int count, int spare) {
    const char **all = must(calloc(count + spare + 1, sizeof *all));
    for (int i = 0; i < count; i++) {
        all[i] = (const char *)at + 4;
        at += 4 + strlen(all[i]) + 1;
    }
    return all;
}

static const char *value_of(const char **env, const char *name) {
    size_t length = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, length) && (*env)[length] == '=')
            return *env + length + 1;
    return NULL;
}

static void set_default(const char **env, const char *name, const char *value) {
    if (value_of(env, name))
        return;
    char *text = must(malloc(strlen(name) + strlen(value) + 2));
    strcat(strcat(strcpy(text, name), "="), value);
    while (*env)
        env++;
    *env = text;
}

static void run(const char **argv, const char **env) {
    if (strchr(argv[0], '/') || !*argv[0]) {
        execve(argv[0], (char **)argv, (char **)env);
        return;
    }
    char path[4096];
    int error = ENOENT;
    size_t name = strlen(argv[0]);
    for (const char *at = value_of(env, "PATH"), *end; at; at = *end ? end + 1 : NULL) {
        end = strchrnul(at, ':');
        size_t length = end - at;
        if (!length || length + name + 2 > sizeof path)
            continue;
        memcpy(path, at, length);
        path[length] = '/';
        memcpy(path + length + 1, argv[0], name + 1);
        execve(path, (char **)argv, (char **)env);
        if (errno != ENOENT && errno != ENOTDIR)
            error = errno;
    }
    errno = error;
}

noreturn void launch(const struct launch *what) {
    struct account account;
    verdict_fd = what->verdict;
    if (setsid() < 0)
        give_up(NO_PROCESS, errno);
    int problem = account_find(what->user, &account), input = what->in;
    if (problem)
        give_up(problem, 0);
    if (what->is_terminal) {
        ioctl(what->in, TIOCSCTTY, 0);
        if (fchown(what->in, account.uid, -1)) /* so that it can open its terminal by name */
            (void)0;
    }
    int error = account_become(&account);
    if (error)
        give_up(IO, error);
    umask(022);
    if (input < 0)
        input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (input >= 0)
        dup2(input, 0);
    else
        close(0);
    if (dup2(what->out, 1) < 0 || dup2(what->err, 2) < 0)
        give_up(IO, errno);
    if (*what->cwd ? chdir(what->cwd) : chdir(account.home) && chdir("/"))
        give_up(BAD_CWD, errno);
    const char **argv = list(what->argv, what->argc, 0), **env = list(what->env, what->envc, 7);
    set_default(env, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    set_default(env, "HOME", account.home);
    set_default(env, "USER", account.name);
    set_default(env, "LOGNAME", account.name);
    set_default(env, "SHELL", account.shell);
    set_default(env, "LANG", "C.UTF-8");
    if (what->is_terminal)
        set_default(env, "TERM", "xterm-256color");
    run(argv, env);
    give_up(BAD_EXECUTABLE, errno);
}
