/* The streams of commands: from pipes and terminals to rings, from rings to readers, from connections to input. */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

enum { DRAIN_WITHIN = 500 };

/* -- output */

static uint64_t least_unread(const struct command *command) {
    uint64_t least = command->ring.end;
    for (struct connection *c = connections; c; c = c->next)
        if (c->command == command && (c->mode == STREAMING || c->mode == STARTING) && c->offset < least)
            least = c->offset;
    return least;
}

static void tell_exit(struct connection *c) {
    struct command *command = c->command;
    int status = command->status;
    struct output out = {0};
    put(&out, WIFSIGNALED(status), 1);
    put(&out, WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), 1);
    put(&out, command->timed_out, 1);
    put(&out, command->ring.end, 8);
    bool may_forget = c->forget;
    c->command = NULL;
    connection_reply(c, EXITED, out.bytes, out.length);
    free(out.bytes);
    if (may_forget && command->state == FINISHED)
        command_forget(command);
}

/* Sends until the socket is full or there is no more. */
void command_tell(struct connection *c) {
    struct command *command = c->command;
    struct ring *ring = &command->ring;
    while (c->mode == STREAMING && !c->out.length && connection_open(c)) {
        struct iovec parts[3];
        uint8_t head[16];
        struct output out = {head, 0, sizeof head};
        if (c->offset < ring->start) {
            put(&out, ring->start - c->offset, 8);
            parts[0] = (struct iovec){head, out.length};
            c->offset = ring->start;
            connection_send(c, DROPPED, parts, 1);
        } else if (c->offset < ring->end) {
            uint8_t stream;
            size_t length = ring_at(ring, c->offset, OUTPUT_CHUNK, parts + 1, &stream);
            put(&out, stream, 1);
            put(&out, c->offset, 8);
            parts[0] = (struct iovec){head, out.length};
            c->offset += length;
            connection_send(c, OUTPUT, parts, 3);
        } else if (command->state == FINISHED) {
            tell_exit(c);
            return;
        } else {
            return;
        }
    }
}

static void tell_all(struct command *command) {
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->command == command)
            command_tell(c);
    }
}

static bool is_drained(const struct source *source) { return source->watch.fd < 0 || source->drained; }

void command_finish_if_drained(struct command *command) {
    if (command->state != DRAINING)
        return;
    bool drained = is_drained(&command->outputs[0]) && is_drained(&command->outputs[1]);
    if (!drained && (!command->state_deadline || now < command->state_deadline))
        return;
    command->state = FINISHED;
    command_end_input(command);
    command_go_on(command); /* from now on it is read and thrown away */
    commands_note_finished();
    tell_all(command);
}

static void throw_away(struct source *source) {
    static char scrap[32 << 10];
    struct command *command = source->command;
    ssize_t got = read(source->watch.fd, scrap, sizeof scrap);
    if (got > 0 || (got < 0 && errno == EAGAIN))
        return;
    watch_close(&source->watch);
    if (command->state == FORGOTTEN)
        command_let_go(command);
}

/* Reads once. True if there may be more and there is room for it. */
static bool take_output(struct source *source) {
    struct command *command = source->command;
    struct iovec parts[2];
    int count = ring_room(&command->ring, least_unread(command), parts);
    if (!count) { /* a reader is behind: the command waits for it, and commands_tick waits no longer than that */
        watch_for(&source->watch, 0);
        if (command->state_deadline)
            command->state_deadline = now + DRAIN_WITHIN;
        due(now + 1000);
        return false;
    }
    ssize_t got = readv(source->watch.fd, parts, count);
    if (got > 0) {
        if (!ring_add(&command->ring, source->stream, got))
            out_of_memory();
        if (command->state == DRAINING && !command->is_terminal)
            source->left -= (size_t)got < source->left ? (size_t)got : source->left;
        source->drained = command->state == DRAINING && !command->is_terminal && !source->left;
    } else if (got < 0 && errno == EAGAIN) { /* a terminal passes its last words on a moment later */
        source->drained = command->state == DRAINING && !command->is_terminal;
    } else if (got == 0 || errno != EINTR) {
        watch_close(&source->watch);
    }
    if (source->drained)
        watch_for(&source->watch, 0);
    return got > 0 && !source->drained;
}

void command_output_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct source *source = source_of(watch);
    struct command *command = source->command;
    if (command->state == FINISHED || command->state == FORGOTTEN) {
        throw_away(source);
        return;
    }
    if (source->drained)
        return;
    take_output(source);
    if (command->state != BEGINNING) {
        tell_all(command);
        command_finish_if_drained(command);
    }
}

/* After there may be room again. What is blocked looks once more whether there is. */
void command_go_on(struct command *command) {
    for (int i = 0; i < 2; i++) {
        struct source *source = &command->outputs[i];
        if (!source->drained || command->state >= FINISHED)
            watch_or_retry(&source->watch, EPOLLIN);
    }
}

void command_read_on(struct command *command, struct connection *c) {
    command_tell(c);
    command_go_on(command);
}

void command_left(struct connection *c) {
    struct command *command = c->command;
    if (!command)
        return;
    c->command = NULL;
    if (command->starter == c) {
        command->starter = NULL;
        if (c->forget && command->state == BEGINNING) /* nobody will ever know of it */
            kill_tree(command->pid);
    }
    if (command->writer == c) {
        command->writer = NULL;
        command_feed(command);
    }
    command_go_on(command);
}

void command_drain(struct command *command) {
    command->state = DRAINING;
    command->state_deadline = 0;
    for (int i = 0; i < 2; i++) {
        struct source *source = &command->outputs[i];
        int left = 0;
        if (source->watch.fd < 0)
            continue;
        if (!command->is_terminal && ioctl(source->watch.fd, FIONREAD, &left) == 0)
            source->left = left;
        for (int rounds = 0; rounds < 64 && source->watch.fd >= 0 && take_output(source); rounds++)
            ;
    }
    if (command->is_terminal)
        due(command->state_deadline = now + DRAIN_WITHIN);
    tell_all(command);
    command_finish_if_drained(command);
}

bool command_is_blocked(const struct command *command) {
    for (int i = 0; i < 2; i++)
        if (command->outputs[i].watch.fd >= 0 && !command->outputs[i].watch.events && !command->outputs[i].drained)
            return true;
    return false;
}

/* -- input */

void command_end_input(struct command *command) {
    watch_close(&command->input.watch);
    command->writer = NULL;
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->command != command || !c->pending)
            continue;
        if (c->mode == FEEDING)
            connection_fail(c, STDIN_CLOSED, 0);
        else
            connection_fed(c);
    }
}

/* One frame is written whole before another connection's. */
void command_feed(struct command *command) {
    for (;;) {
        struct connection *c = command->writer;
        for (struct connection *each = connections; !c && each; each = each->next)
            if (each->command == command && each->pending)
                c = each;
        if (!c || command->input.watch.fd < 0) {
            watch_for(&command->input.watch, 0);
            if (c)
                command_end_input(command);
            return;
        }
        size_t rest = c->pending_length - c->pending_sent;
        ssize_t sent = write(command->input.watch.fd, c->pending + c->pending_sent, rest);
        if (sent < 0 && errno != EAGAIN) {
            command_end_input(command);
            return;
        }
        c->pending_sent += sent < 0 ? 0 : sent;
        if (c->pending_sent < c->pending_length) {
            command->writer = c;
            watch_or_retry(&command->input.watch, EPOLLOUT);
            return;
        }
        command->writer = NULL;
        connection_fed(c);
    }
}

void command_press_end(struct command *command) {
    if (!command->is_terminal) {
        command_end_input(command);
    } else if (command->input.watch.fd >= 0) {
        static const char end = 4; /* a terminal has no end of input, but a key for it */
        if (write(command->input.watch.fd, &end, 1) < 0 && errno != EAGAIN)
            command_end_input(command);
    }
}

void command_input_ready(struct watch *watch, uint32_t events) {
    (void)events;
    command_feed(source_of(watch)->command);
}
