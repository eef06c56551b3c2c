/* PID 1 of a sandbox: takes requests of the host on the socket in argv[1], an inherited listener's number or a path. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

enum { REAPED_AT_ONCE = 256 };

static char identity[33];
static uint64_t stop_at, stopped_at;

bool is_stopping(void) { return stop_at; }

static void say_hello(struct connection *c) {
    struct output out = {0};
    put(&out, PROTOCOL_VERSION, 2);
    put(&out, now, 8);
    put(&out, commands_running(), 4);
    put_text(&out, identity);
    connection_reply(c, IS_HELLO, out.bytes, out.length);
    free(out.bytes);
}

static void say_ports(struct connection *c) {
    const struct ports *ports = ports_listening();
    struct output out = {0};
    put(&out, ports->count, 4);
    for (uint32_t i = 0; i < ports->count; i++) {
        put(&out, ports->each[i].port, 2);
        put(&out, ports->each[i].loopback, 1);
    }
    connection_reply(c, IS_PORTS, out.bytes, out.length);
    free(out.bytes);
}

static void hand_to_helper(struct connection *c, uint8_t kind, struct input *in) {
    pid_t pid = fork_helper(kind == WATCH ? WATCHING : BRIEF, c->watch.fd);
    if (pid == 0)
        files_serve(3, kind, in);
    if (pid < 0)
        connection_fail(c, errno == EUSERS ? TOO_MANY : NO_PROCESS, errno);
    else
        connection_close(c); /* the helper has it */
}

void request(struct connection *c, uint8_t kind, struct input *in) {
    uint32_t number = 0, first = 0, second = 0;
    uint64_t offset = 0;
    if (kind == START) {
        command_start(c, in);
        return;
    }
    if ((kind >= READ && kind <= RENAME) || kind == WATCH || kind == LINK || kind == ALTER) {
        hand_to_helper(c, kind, in);
        return;
    }
    switch (kind) {
        case ATTACH: number = take(in, 4), offset = take(in, 8); break;
        case SIGNAL: number = take(in, 4), first = take(in, 4); break;
        case STDIN: case RELEASE: number = take(in, 4); break;
        case RESIZE: number = take(in, 4), first = take(in, 2), second = take(in, 2); break;
        case WAIT_PORT: first = take(in, 2), second = take(in, 4); break;
        case SHUTDOWN: first = take(in, 4); break;
        case HELLO: case LIST: case PORTS: case SYNC: case SUSPEND: break;
        default: in->bad = true;
    }
    if (in->bad || in->at != in->end) {
        connection_fail(c, BAD_REQUEST, 0);
        return;
    }
    switch (kind) {
        case HELLO: say_hello(c); break;
        case ATTACH: command_attach(c, number, offset); break;
        case LIST: commands_list(c); break;
        case SIGNAL: command_signal(c, number, first); break;
        case STDIN: command_open_input(c, number); break;
        case RESIZE: command_resize(c, number, first, second); break;
        case RELEASE: command_release(c, number); break;
        case PORTS: say_ports(c); break;
        case WAIT_PORT: connection_wait_port(c, first, second); break;
        case SYNC: hand_to_helper(c, kind, in); break;
        case SUSPEND: door_shut(c); break;
        case SHUTDOWN:
            c->mode = HOLDING; /* its end tells the client that we are gone */
            if (connection_send(c, DONE, NULL, 0))
                stop(first);
            break;
        default: break;
    }
}

void reap(void) {
    for (int i = 0; i < REAPED_AT_ONCE; i++) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid <= 0)
            return;
        if (!command_exited(pid, status))
            helper_exited(pid);
    }
    reap_again(); /* a storm of orphans must not keep us from the rest */
}

void stop(uint64_t grace) {
    if (stop_at)
        return;
    stop_at = now + grace;
    if (getpid() == 1)
        kill(-1, SIGTERM);
    else
        commands_signal_all(SIGTERM);
    due(now + 5);
}

void stop_tick(void) {
    if (!stop_at)
        return;
    bool all_gone = getpid() == 1 ? kill(-1, 0) && errno == ESRCH : commands_running() == 0;
    if (!stopped_at && (all_gone || now >= stop_at)) {
        stopped_at = now;
        if (getpid() == 1)
            kill(-1, SIGKILL);
        else
            commands_signal_all(SIGKILL);
    }
    /* A moment for the last exits to be told. */
    if (stopped_at && (all_gone || now - stopped_at >= 500))
        _exit(0);
    due(now + 5);
}

static void choose_identity(void) {
    uint8_t bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        _exit(72);
    for (int i = 0; i < 32; i++)
        identity[i] = "0123456789abcdef"[i % 2 ? bytes[i / 2] & 15 : bytes[i / 2] >> 4];
}

/* A pipe that became descriptor 0 would be lost in children. */
static void fill_stdio(void) {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd < 3)
        ;
    if (fd >= 0)
        close(fd);
}

static bool take_over(int fd) {
    int listens = 0;
    socklen_t length = sizeof listens;
    if (fd < 3 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) || !listens)
        return false;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return true;
}

int main(int argc, char **argv) {
    const char *door = argc > 1 ? argv[1] : "3";
    bool inherited = door[0] != '/';
    prctl(PR_SET_DUMPABLE, 0);
    if (inherited && !take_over(atoi(door)))
        return 64;
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    fill_stdio();
    choose_identity();
    loop_open();
    if (inherited)
        connections_listen(atoi(door));
    else if (!door_open(door))
        return 64;
    loop_run();
}
