/* One connection per operation: a request, then what belongs to it. Nothing here waits for a client. */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

struct connection *connections;
static struct watch listener = {.fd = -1};
static int count;
static size_t input_total;

#define OF(watch_) ((struct connection *)((char *)(watch_) - offsetof(struct connection, watch)))

static void ready(struct watch *watch, uint32_t events);

bool connection_open(const struct connection *c) { return c->watch.fd >= 0; }

static bool is_reading(const struct connection *c) {
    return c->mode != STARTING && c->mode != LEAVING && !c->pending;
}

void connection_update(struct connection *c) {
    uint32_t events = EPOLLRDHUP | (c->out.length ? EPOLLOUT : 0) | (is_reading(c) ? EPOLLIN : 0);
    if (connection_open(c) && !watch_for(&c->watch, events))
        connection_close(c);
}

static void forget_body(struct connection *c) {
    input_total -= c->body_capacity;
    free(c->body);
    c->body = NULL;
    c->body_length = c->body_capacity = c->head_length = 0;
}

static void forget_pending(struct connection *c) {
    input_total -= c->pending ? c->pending_length : 0;
    free(c->pending);
    c->pending = NULL;
}

void connection_close(struct connection *c) {
    if (!connection_open(c))
        return;
    watch_close(&c->watch);
    for (struct connection **at = &connections; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    count--;
    forget_body(c);
    forget_pending(c);
    free(c->out.bytes);
    c->out = (struct output){0};
    command_left(c);
    bury(&c->dead);
    watch_or_retry(&listener, EPOLLIN); /* it may have been without descriptors */
}

/* Sends what was kept. False if the connection is closed. */
static bool flush(struct connection *c) {
    while (c->out_sent < c->out.length) {
        ssize_t sent =
            send(c->watch.fd, c->out.bytes + c->out_sent, c->out.length - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN)
            return true;
        if (sent < 0) {
            connection_close(c);
            return false;
        }
        c->out_sent += sent;
        c->progress_at = now;
    }
    free(c->out.bytes);
    c->out = (struct output){0};
    c->out_sent = 0;
    if (c->mode == LEAVING) {
        connection_close(c);
        return false;
    }
    return true;
}

static void keep(struct connection *c, const struct iovec *parts, int number, size_t skip) {
    for (int i = 0; i < number; i++) {
        size_t passed = skip < parts[i].iov_len ? skip : parts[i].iov_len;
        const uint8_t *from = (const uint8_t *)parts[i].iov_base + passed;
        skip -= passed;
        size_t more = parts[i].iov_len - passed;
        if (!more)
            continue;
        if (c->out.length + more > c->out.capacity) {
            c->out.capacity = c->out.length + more;
            c->out.bytes = must(realloc(c->out.bytes, c->out.capacity));
        }
        memcpy(c->out.bytes + c->out.length, from, more);
        c->out.length += more;
    }
}

/* Sends a frame; what the socket does not take now is kept. False if the connection is closed. */
bool connection_send(struct connection *c, uint8_t kind, const struct iovec *parts, int number) {
    if (!connection_open(c))
        return false;
    uint8_t head[5];
    struct iovec all[5] = {{head, sizeof head}};
    size_t length = 0;
    for (int i = 0; i < number; i++) {
        all[i + 1] = parts[i];
        length += parts[i].iov_len;
    }
    frame_head(head, kind, length);
    struct msghdr message = {.msg_iov = all, .msg_iovlen = number + 1};
    ssize_t sent = c->out.length ? 0 : sendmsg(c->watch.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) {
        connection_close(c);
        return false;
    }
    if (sent > 0)
        c->progress_at = now;
    if ((size_t)(sent < 0 ? 0 : sent) < length + sizeof head) {
        keep(c, all, number + 1, sent < 0 ? 0 : sent);
        connection_update(c);
    }
    return connection_open(c);
}

void connection_reply(struct connection *c, uint8_t kind, const void *payload, size_t length) {
    struct iovec part = {(void *)payload, length};
    c->mode = LEAVING;
    c->deadline = now + STALLED_AFTER;
    due(c->deadline);
    if (!connection_send(c, kind, &part, 1))
        return;
    if (!c->out.length)
        connection_close(c);
    else
        connection_update(c);
}

void connection_fail(struct connection *c, int problem, int error) {
    uint8_t payload[64];
    connection_reply(c, FAILED, payload, failure(payload, sizeof payload, problem, error));
}

static bool ended(struct connection *c, ssize_t got) {
    if (got == 0 || errno != EAGAIN)
        connection_close(c);
    return false;
}

/* One frame of input, or less. False when there is no more to do now. */
static bool receive(struct connection *c) {
    if (c->head_length < sizeof c->head) {
        ssize_t got = recv(c->watch.fd, c->head + c->head_length, sizeof c->head - c->head_length, MSG_DONTWAIT);
        if (got <= 0)
            return ended(c, got);
        c->head_length += got;
        if (c->mode != REQUESTING) /* the rest of a frame that has begun */
            due(c->deadline = now + REQUEST_WITHIN);
        if (c->head_length < sizeof c->head)
            return true;
    }
    size_t length = 0;
    for (int i = 3; i >= 0; i--)
        length = length << 8 | c->head[i];
    if (length > MAX_FRAME) {
        connection_fail(c, BAD_REQUEST, 0);
        return false;
    }
    if (c->body_length < length) {
        if (c->body_length == c->body_capacity) { /* as bytes arrive, not as the length claims */
            size_t wanted = c->body_capacity ? c->body_capacity * 2 : 4096;
            wanted = wanted < length ? wanted : length;
            if (input_total + wanted - c->body_capacity > MAX_INPUT_TOTAL) {
                connection_fail(c, TOO_MANY, 0);
                return false;
            }
            c->body = must(realloc(c->body, wanted));
            input_total += wanted - c->body_capacity;
            c->body_capacity = wanted;
        }
        size_t room = c->body_capacity - c->body_length;
        ssize_t got = recv(c->watch.fd, c->body + c->body_length, room, MSG_DONTWAIT);
        if (got <= 0)
            return ended(c, got);
        c->body_length += got;
    }
    return true;
}

static bool is_complete(const struct connection *c) {
    if (c->head_length < sizeof c->head)
        return false;
    size_t length = 0;
    for (int i = 3; i >= 0; i--)
        length = length << 8 | c->head[i];
    return c->body_length == length;
}

/* The command took all that this connection gave it. */
void connection_fed(struct connection *c) {
    forget_pending(c);
    connection_update(c);
}

static void feed(struct connection *c) {
    if (c->head[4] == DATA && c->may_feed) {
        if (!c->body_length) {
            forget_body(c);
            return;
        }
        c->pending = c->body;
        c->pending_length = c->body_length; /* then also its capacity */
        c->pending_sent = 0;
        c->body = NULL;
        c->body_length = c->body_capacity = c->head_length = 0;
        connection_update(c);
        if (connection_open(c) && c->command)
            command_feed(c->command);
    } else if (c->head[4] == CLOSE && c->may_feed && !c->body_length) {
        c->may_feed = c->mode == FEEDING;
        forget_body(c);
        if (c->command)
            command_press_end(c->command);
        if (c->mode == FEEDING)
            connection_reply(c, DONE, NULL, 0);
    } else if (c->head[4] == END && c->mode == FEEDING && !c->body_length) {
        connection_reply(c, DONE, NULL, 0);
    } else {
        connection_fail(c, BAD_REQUEST, 0);
    }
}

static void frame(struct connection *c) {
    c->deadline = 0;
    if (c->mode != REQUESTING) {
        feed(c);
        return;
    }
    /* The body outlives the request even if the connection does not. */
    uint8_t *body = c->body;
    size_t length = c->body_length, capacity = c->body_capacity;
    c->body = NULL;
    c->body_length = c->body_capacity = c->head_length = 0;
    struct input in = {body, body + length, false};
    request(c, c->head[4], &in);
    free(body);
    input_total -= capacity;
    connection_update(c);
}

static void ready(struct watch *watch, uint32_t events) {
    struct connection *c = OF(watch);
    if (events & EPOLLOUT) {
        if (!flush(c))
            return;
        if (c->mode == STREAMING && !c->out.length && c->command)
            command_read_on(c->command, c);
        if (!connection_open(c))
            return;
        connection_update(c);
    }
    if (!is_reading(c)) {
        if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            connection_close(c);
        return;
    }
    if (!(events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        return;
    for (int i = 0; i < 16 && connection_open(c) && is_reading(c) && receive(c); i++)
        if (is_complete(c))
            frame(c);
}

static void accepting(struct watch *watch, uint32_t events) {
    (void)events;
    for (int i = 0; i < 64; i++) {
        int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
                return;
            watch_for(watch, 0); /* no descriptors: again when a connection closes, or soon */
            due(now + 100);
            return;
        }
        struct connection *c = count < MAX_CONNECTIONS ? calloc(1, sizeof *c) : NULL;
        if (!c) {
            close(fd);
            continue;
        }
        c->watch = (struct watch){fd, 0, ready};
        c->next = connections;
        connections = c;
        count++;
        c->progress_at = now;
        due(c->deadline = now + REQUEST_WITHIN);
        ready(&c->watch, EPOLLIN); /* the request is usually there */
        connection_update(c);
    }
}

void connections_listen(int fd) {
    listener = (struct watch){fd, 0, accepting};
    if (!watch_for(&listener, EPOLLIN))
        _exit(71);
}

bool connection_is_there(const struct connection *wanted) {
    for (struct connection *c = connections; c; c = c->next)
        if (c == wanted)
            return true;
    return false;
}

bool connections_are_taken(void) { return listener.fd >= 0; }

/* Nobody is taken any more, and those that are here are closed. */
void connections_shut(struct connection *but) {
    watch_close(&listener);
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c != but)
            connection_close(c);
    }
}

static void tell_port(struct connection *c, const struct ports *ports) {
    uint8_t state = port_state(ports, c->port);
    if (state != PORT_LOOPBACK)
        c->loopback_since = 0;
    else if (!c->loopback_since)
        c->loopback_since = now; /* some servers bind the outside a moment later */
    if (state == PORT_OPEN || now >= c->deadline || (c->loopback_since && now - c->loopback_since >= 500)) {
        connection_reply(c, IS_PORT, &state, 1);
        return;
    }
    uint64_t waited = now - c->progress_at, next = now + (waited < 200 ? 2 : waited < 1000 ? 5 : 20);
    due(next < c->deadline ? next : c->deadline);
}

void connection_wait_port(struct connection *c, uint16_t port, uint32_t timeout) {
    c->mode = WAITING_FOR_PORT;
    c->port = port;
    c->deadline = now + timeout;
    tell_port(c, ports_listening());
}

void connections_tick(void) {
    const struct ports *ports = NULL;
    watch_or_retry(&listener, EPOLLIN);
    for (struct connection *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->mode == WAITING_FOR_PORT) {
            if (!ports)
                ports = ports_listening();
            tell_port(c, ports);
        } else if (c->deadline && now >= c->deadline) {
            connection_close(c);
        } else if (c->deadline) {
            due(c->deadline);
        }
    }
}
