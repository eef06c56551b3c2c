/* What is done with files: by a forked helper, as the user, with a socket of its own that may block. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

char buffer[CHUNK];
void (*at_leave)(void);
static int peer;

noreturn void leave(int code) {
    void (*last)(void) = at_leave;
    at_leave = NULL;
    if (last)
        last();
    _exit(code);
}

/* A wait that has a limit in time does not go on after its process was stopped or frozen for a moment. */
static bool was_halted(ssize_t result) { return result < 0 && errno == EINTR; }

static void send_all(const void *data, size_t length, int flags) {
    for (const char *at = data; length;) {
        ssize_t sent = send(peer, at, length, MSG_NOSIGNAL | flags);
        if (was_halted(sent))
            continue;
        if (sent <= 0)
            leave(1);
        at += sent;
        length -= sent;
    }
}

void reply(uint8_t kind, const void *payload, size_t length) {
    uint8_t head[5];
    frame_head(head, kind, length);
    send_all(head, sizeof head, length ? MSG_MORE : 0);
    send_all(payload, length, 0);
}

/* What the client still sends is read first: a socket closed over unread bytes would reset, and hide our answer. */
noreturn void finish(uint8_t kind, const void *payload, size_t length) {
    reply(kind, payload, length);
    shutdown(peer, SHUT_WR);
    ssize_t rest;
    do
        rest = recv(peer, buffer, sizeof buffer, 0);
    while (rest > 0 || was_halted(rest));
    leave(0);
}

noreturn void fail(int problem, int error) {
    uint8_t payload[64];
    finish(FAILED, payload, failure(payload, sizeof payload, problem, error));
}

void must_work(int result) {
    if (result < 0)
        fail(IO, errno);
}

void receive_all(void *data, size_t length) {
    for (char *at = data; length;) {
        ssize_t got = recv(peer, at, length, 0);
        if (was_halted(got))
            continue;
        if (got < 0 && errno == EAGAIN)
            fail(STALLED, 0);
        if (got <= 0)
            leave(1);
        at += got;
        length -= got;
    }
}

void check_client(void) {
    char byte;
    if (recv(peer, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        leave(1);
}

static noreturn void sync_root(void) {
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must_work(fd);
    must_work(syncfs(fd)); /* sync() would wait for the disks of everybody on the host */
    finish(DONE, NULL, 0);
}

static void become(const char *user) {
    struct account account;
    int problem = account_find(user, &account);
    if (problem)
        fail(problem, 0);
    int error = account_become(&account);
    if (error)
        fail(IO, error);
    if (chdir("/"))
        fail(IO, errno);
}

static noreturn void make_dir(const char *path, mode_t mode) {
    static char name[PATH_MAX];
    if (strlen(path) >= sizeof name)
        fail(IO, ENAMETOOLONG);
    uint8_t made = make_dirs(strcpy(name, path), mode);
    finish(DONE, &made, 1);
}

static noreturn void make_link(const char *path, const char *target) {
    must_work(symlink(target, path));
    finish(DONE, NULL, 0);
}

noreturn void files_serve(int fd, uint8_t kind, struct input *in) {
    static struct metadata metadata;
    struct timeval patience = {STALLED_AFTER / 1000, 0};
    peer = fd;
    fcntl(peer, F_SETFL, 0);
    setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    umask(0);
    if (kind == SYNC)
        sync_root();
    const char *user = take_text(in), *path = take_text(in), *other = "/";
    uint64_t first = 0, second = 0, third = 0;
    switch (kind) {
        case READ: first = take(in, 8), second = take(in, 8); break;
        case WRITE: first = take(in, 4), second = take(in, 1), metadata_take(in, &metadata); break;
        case STAT: case REMOVE: case WATCH: first = take(in, 1); break;
        case LIST_DIR: first = take(in, 2), second = take(in, 4), third = take(in, 1); break;
        case MAKE_DIR: first = take(in, 4); break;
        case RENAME: other = take_text(in); break;
        case LINK: other = take_text(in); break;
        case ALTER: first = take(in, 1), second = take(in, 4), metadata_take(in, &metadata); break;
        default: break;
    }
    if (in->bad || in->at != in->end || *path != '/' || (*other != '/' && kind != LINK))
        fail(BAD_REQUEST, 0);
    become(user);
    switch (kind) {
        case READ: read_file(path, first, second);
        case WRITE: write_file(path, first, second, &metadata);
        case STAT: stat_file(path, first);
        case LIST_DIR: list_dir(path, first, second, third);
        case REMOVE: remove_file(path, first);
        case MAKE_DIR: make_dir(path, first & 07777);
        case RENAME: move_file(path, other);
        case LINK: make_link(path, other);
        case ALTER: alter(path, first, second & 07777, &metadata);
        case WATCH: watch_changes(peer, path, first);
        default: fail(BAD_REQUEST, 0);
    }
}
