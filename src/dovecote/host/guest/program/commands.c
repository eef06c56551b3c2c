/* Commands: their beginning, their end, what is done to them, and how many are kept. */
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

enum { STDOUT = 1, STDERR = 2, BEGIN_WITHIN = 30000 };

static struct command *commands; /* oldest first */
static uint32_t last_number, running, finished, left_open;

bool commands_beginning(void) {
    for (struct command *command = commands; command; command = command->next)
        if (command->state == BEGINNING)
            return true;
    return false;
}

uint32_t commands_running(void) { return running; }

static struct command *find(uint32_t number) {
    for (struct command *c = commands; c; c = c->next)
        if (c->number == number && c->state != FORGOTTEN && c->state != BEGINNING)
            return c;
    return NULL;
}

static void unlink_command(struct command *command) {
    for (struct command **at = &commands; *at; at = &(*at)->next)
        if (*at == command) {
            *at = command->next;
            break;
        }
    ring_free(&command->ring);
    bury(&command->dead);
}

/* Once nobody holds the pipes of a forgotten command any more. */
void command_let_go(struct command *command) {
    if (command->outputs[0].watch.fd < 0 && command->outputs[1].watch.fd < 0) {
        left_open--;
        unlink_command(command);
    }
}

/* A descendant that still holds the pipes of a forgotten command may go on writing: it is read and thrown away. */
void command_forget(struct command *command) {
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->command == command && c->mode != LEAVING)
            connection_fail(c, NO_SUCH_COMMAND, 0);
        if (c->command == command)
            c->command = NULL;
    }
    finished--;
    ring_free(&command->ring);
    command->state = FORGOTTEN;
    left_open++;
    command_let_go(command);
    for (struct command *c = commands; c && left_open > MAX_LEFT_OPEN; c = c->next)
        if (c->state == FORGOTTEN) {
            watch_close(&c->outputs[0].watch);
            watch_close(&c->outputs[1].watch);
            command_let_go(c);
            break;
        }
}

static bool has_reader(const struct command *command) {
    for (struct connection *c = connections; c; c = c->next)
        if (c->command == command && c->mode == STREAMING)
            return true;
    return false;
}

bool commands_make_memory(void) {
    for (struct command *c = commands; c; c = c->next)
        if (c->state == FINISHED && c->ring.capacity && !has_reader(c)) {
            command_forget(c);
            return true;
        }
    return false;
}

void commands_note_finished(void) {
    finished++;
    for (struct command *c = commands; c && finished > MAX_FINISHED; c = c->next)
        if (c->state == FINISHED) {
            command_forget(c);
            return;
        }
}

/* -- beginning and end */

/* It never became the program: nothing of it is kept, and its child is only to be reaped. */
static void refuse(struct command *command, struct verdict verdict) {
    struct connection *starter = command->starter;
    command->starter = NULL;
    command->state = FORGOTTEN;
    running--;
    if (starter) {
        starter->command = NULL;
        connection_fail(starter, verdict.problem, verdict.error);
    }
    watch_close(&command->verdict.watch);
    watch_close(&command->input.watch);
    watch_close(&command->outputs[0].watch);
    watch_close(&command->outputs[1].watch);
    unlink_command(command);
}

static void verdict_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct command *command = source_of(watch)->command;
    struct verdict verdict = {0, 0};
    ssize_t got = read(watch->fd, &verdict, sizeof verdict);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    watch_close(watch);
    if (got == sizeof verdict) {
        refuse(command, verdict);
        return;
    }
    struct connection *starter = command->starter;
    command->starter = NULL;
    command->state = RUNNING;
    command->state_deadline = 0;
    if (!starter)
        return;
    uint8_t payload[24];
    struct output out = {payload, 0, sizeof payload};
    put(&out, command->number, 4);
    put(&out, command->pid, 4);
    put(&out, command->started_ms, 8);
    if (!starter->detached) {
        struct iovec part = {payload, out.length};
        starter->mode = STREAMING;
        if (connection_send(starter, STARTED, &part, 1)) {
            connection_update(starter);
            command_tell(starter);
        }
    } else {
        starter->command = NULL;
        connection_reply(starter, STARTED, payload, out.length);
    }
}

bool command_exited(pid_t pid, int status) {
    for (struct command *command = commands; command; command = command->next) {
        if (command->pid != pid)
            continue;
        if (command->state == BEGINNING)
            verdict_ready(&command->verdict.watch, 0); /* it is dead, so its word is there */
        if (command->state == FORGOTTEN)
            return true;
        command->pid = -pid;
        command->status = status;
        running--;
        command_drain(command);
        return true;
    }
    return false;
}

static void tick(struct command *command) {
    if (command->state <= RUNNING && command->deadline) {
        if (now >= command->deadline) {
            command->timed_out = true;
            command->deadline = 0;
            kill_tree(command->pid);
        } else {
            due(command->deadline);
        }
    }
    if (command->state == BEGINNING && now >= command->state_deadline)
        kill(command->pid, SIGKILL); /* it hangs in a file system */
    command_go_on(command);
    if (command->writer)
        command_feed(command);
    command_finish_if_drained(command);
    if (command->state_deadline > now && (command->state == BEGINNING || command->state == DRAINING))
        due(command->state_deadline);
}

void commands_tick(void) {
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->mode != STREAMING || !c->out.length || !c->command || !command_is_blocked(c->command))
            continue;
        if (now - c->progress_at >= STALLED_AFTER)
            connection_close(c);
        else
            due(c->progress_at + STALLED_AFTER);
    }
    for (struct command *command = commands, *next; command; command = next) {
        next = command->next; /* after the readers: it unblocks, to look again */
        tick(command);
    }
}

void commands_signal_all(int signo) {
    for (struct command *c = commands; c; c = c->next)
        if (c->state == RUNNING)
            kill(-c->pid, signo);
}

/* -- starting */

static bool texts(struct input *in, uint16_t *count, const uint8_t **first) {
    *count = take(in, 2);
    *first = in->at;
    for (int i = 0; i < *count; i++)
        take_text(in);
    return !in->bad;
}

static void watch_source(struct source *source, struct command *command, int fd, uint8_t stream,
                         void (*ready)(struct watch *, uint32_t)) {
    source->watch = (struct watch){fd, 0, ready};
    source->command = command;
    source->stream = stream;
}

static void begin(struct command *command, struct connection *c, const int ours[4]) {
    command->number = ++last_number;
    command->started_ms = wall_ms();
    watch_source(&command->input, command, ours[0], 0, command_input_ready);
    watch_source(&command->outputs[0], command, ours[1], STDOUT, command_output_ready);
    watch_source(&command->outputs[1], command, ours[2], STDERR, command_output_ready);
    watch_source(&command->verdict, command, ours[3], 0, verdict_ready);
    struct command **end = &commands;
    while (*end)
        end = &(*end)->next;
    *end = command;
    running++;
    command->starter = c;
    c->mode = STARTING;
    c->command = command;
    if (watch_for(&command->verdict.watch, EPOLLIN) && watch_for(&command->outputs[0].watch, EPOLLIN) &&
        watch_for(&command->outputs[1].watch, EPOLLIN))
        return;
    int error = errno; /* the kernel's bound on watches, which code inside can reach too */
    kill(command->pid, SIGKILL);
    refuse(command, (struct verdict){NO_PROCESS, error});
}

void command_start(struct connection *c, struct input *in) {
    struct launch launch_ = {.in = -1, .out = -1, .err = -1, .verdict = -1};
    uint8_t flags = take(in, 1);
    uint16_t rows = take(in, 2), cols = take(in, 2);
    uint32_t timeout = take(in, 4), ring = take(in, 4);
    const char *tag = take_text(in);
    launch_.user = take_text(in);
    launch_.cwd = take_text(in);
    bool good = texts(in, &launch_.argc, &launch_.argv) && texts(in, &launch_.envc, &launch_.env);
    if (!good || in->at != in->end || !launch_.argc || strlen(tag) > MAX_TAG || ring > RING_MAX) {
        connection_fail(c, BAD_REQUEST, 0);
        return;
    }
    if (running >= MAX_RUNNING || is_stopping()) {
        connection_fail(c, is_stopping() ? STOPPING : TOO_MANY, 0);
        return;
    }
    launch_.is_terminal = flags & START_PTY;
    int ours[4], error = launch_open(&launch_, flags & START_STDIN, rows, cols, ours);
    struct command *command = error ? NULL : calloc(1, sizeof *command);
    pid_t pid = command ? fork_child() : -1;
    if (pid == 0)
        launch(&launch_);
    error = error ? error : errno;
    launch_close(&launch_, pid < 0 ? ours : NULL);
    if (pid < 0) {
        free(command);
        connection_fail(c, launch_.is_terminal && error != EAGAIN ? NO_TERMINAL : NO_PROCESS, error);
        return;
    }
    command->pid = pid;
    command->is_terminal = launch_.is_terminal;
    command->ring.limit = !ring ? RING_DEFAULT : ring < 4096 ? 4096 : ring;
    strcpy(command->tag, tag);
    due(command->state_deadline = now + BEGIN_WITHIN);
    if (timeout)
        due(command->deadline = now + timeout);
    c->detached = flags & START_DETACHED;
    c->forget = flags & START_FORGET;
    c->may_feed = ours[0] >= 0;
    begin(command, c, ours);
}

void command_attach(struct connection *c, uint32_t number, uint64_t offset) {
    struct command *command = find(number);
    if (!command || offset > command->ring.end) {
        connection_fail(c, command ? BAD_REQUEST : NO_SUCH_COMMAND, 0);
        return;
    }
    c->command = command;
    c->offset = offset;
    c->mode = STREAMING;
    command_tell(c);
}

/* -- what is done to a command */

void commands_list(struct connection *c) {
    struct output out = {0};
    uint32_t number = 0;
    put(&out, 0, 4);
    for (struct command *command = commands; command; command = command->next) {
        if (command->state == BEGINNING || command->state == FORGOTTEN)
            continue;
        bool is_running = command->state == RUNNING, killed = !is_running && WIFSIGNALED(command->status);
        put(&out, command->number, 4);
        put(&out, command->pid < 0 ? -command->pid : command->pid, 4);
        put(&out, is_running ? 0 : killed ? 2 : 1, 1);
        put(&out, is_running ? 0 : killed ? WTERMSIG(command->status) : WEXITSTATUS(command->status), 1);
        put(&out, command->timed_out, 1);
        put(&out, command->started_ms, 8);
        put(&out, command->ring.end, 8);
        put_text(&out, command->tag);
        number++;
    }
    for (int i = 0; i < 4; i++)
        out.bytes[i] = number >> 8 * i;
    connection_reply(c, COMMANDS, out.bytes, out.length);
    free(out.bytes);
}

void command_signal(struct connection *c, uint32_t number, uint32_t signo) {
    struct command *command = find(number);
    if (!command)
        connection_fail(c, NO_SUCH_COMMAND, 0);
    else if (signo > 64)
        connection_fail(c, BAD_REQUEST, 0);
    else if (command->state == RUNNING && signo != SIGKILL && kill(-command->pid, signo))
        connection_fail(c, IO, errno);
    else {
        if (command->state == RUNNING && signo == SIGKILL)
            kill_tree(command->pid);
        connection_reply(c, DONE, NULL, 0); /* one that has just ended needs no signal */
    }
}

void command_resize(struct connection *c, uint32_t number, uint16_t rows, uint16_t cols) {
    struct command *command = find(number);
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    if (!command)
        connection_fail(c, NO_SUCH_COMMAND, 0);
    else if (!command->is_terminal)
        connection_fail(c, NO_TERMINAL, 0);
    else if (command->outputs[0].watch.fd >= 0 && ioctl(command->outputs[0].watch.fd, TIOCSWINSZ, &size))
        connection_fail(c, IO, errno);
    else
        connection_reply(c, DONE, NULL, 0);
}

void command_release(struct connection *c, uint32_t number) {
    struct command *command = find(number);
    if (!command || command->state != FINISHED) {
        connection_fail(c, command ? STILL_RUNNING : NO_SUCH_COMMAND, 0);
        return;
    }
    command_forget(command);
    connection_reply(c, DONE, NULL, 0);
}

void command_open_input(struct connection *c, uint32_t number) {
    struct command *command = find(number);
    if (!command || command->input.watch.fd < 0) {
        connection_fail(c, command ? STDIN_CLOSED : NO_SUCH_COMMAND, 0);
        return;
    }
    c->command = command;
    c->mode = FEEDING;
    c->may_feed = true;
}

