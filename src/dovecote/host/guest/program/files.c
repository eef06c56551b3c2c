/* What is done with files: by a forked helper, as the user, with a socket of its own that may block. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { WRITE_PARENTS = 1, WRITE_FSYNC = 2, CHUNK = 64 << 10, MOST_DEPTH = 64, MOST_REMOVE_DEPTH = 512 };

static int peer;
static char buffer[CHUNK];
static char temporary[PATH_MAX];

static noreturn void leave(int code) {
    if (*temporary)
        unlink(temporary);
    _exit(code);
}

static void send_all(const void *data, size_t length, int flags) {
    for (const char *at = data; length;) {
        ssize_t sent = send(peer, at, length, MSG_NOSIGNAL | flags);
        if (sent <= 0)
            leave(1);
        at += sent;
        length -= sent;
    }
}

static void reply(uint8_t kind, const void *payload, size_t length) {
    uint8_t head[5];
    frame_head(head, kind, length);
    send_all(head, sizeof head, length ? MSG_MORE : 0);
    send_all(payload, length, 0);
}

/* What the client still sends is read first: a socket closed over unread bytes would reset, and hide our answer. */
static noreturn void finish(uint8_t kind, const void *payload, size_t length) {
    reply(kind, payload, length);
    shutdown(peer, SHUT_WR);
    while (recv(peer, buffer, sizeof buffer, 0) > 0)
        ;
    leave(0);
}

static noreturn void fail(int problem, int error) {
    uint8_t payload[64];
    finish(FAILED, payload, failure(payload, sizeof payload, problem, error));
}

static void must_work(int result) {
    if (result < 0)
        fail(IO, errno);
}

static void receive(void *data, size_t length) {
    for (char *at = data; length;) {
        ssize_t got = recv(peer, at, length, 0);
        if (got < 0 && errno == EAGAIN)
            fail(STALLED, 0);
        if (got <= 0)
            leave(1);
        at += got;
        length -= got;
    }
}

static noreturn void read_file(const char *path, uint64_t offset, uint64_t length) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat st;
    must_work(fd);
    must_work(fstat(fd, &st));
    if (!S_ISREG(st.st_mode))
        fail(S_ISDIR(st.st_mode) ? IO : NOT_REGULAR, S_ISDIR(st.st_mode) ? EISDIR : 0);
    if (offset > INT64_MAX)
        fail(IO, EINVAL);
    while (length) {
        ssize_t got = pread(fd, buffer, length < sizeof buffer ? length : sizeof buffer, offset);
        must_work(got);
        if (!got)
            break;
        reply(CONTENT, buffer, got);
        offset += got;
        length -= got;
    }
    finish(CONTENT_END, NULL, 0);
}

static int make_dirs(char *path, mode_t mode) {
    struct stat st;
    if (!stat(path, &st))
        return S_ISDIR(st.st_mode) ? 0 : (errno = ENOTDIR, -1);
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        int failed = mkdir(path, 0755) && errno != EEXIST && stat(path, &st);
        *at = '/';
        if (failed)
            return -1;
    }
    if (mkdir(path, mode) && errno != EEXIST)
        return -1;
    if (stat(path, &st))
        return -1;
    return S_ISDIR(st.st_mode) ? 0 : (errno = ENOTDIR, -1);
}

static void choose_temporary(const char *target) {
    const char *slash = strrchr(target, '/');
    uint8_t bytes[8];
    if (slash - target > PATH_MAX - 40)
        fail(IO, ENAMETOOLONG);
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        fail(IO, EIO);
    memcpy(temporary, target, slash - target + 1);
    char *at = stpcpy(temporary + (slash - target + 1), ".dovecote-");
    for (int i = 0; i < 8; i++) {
        *at++ = "0123456789abcdef"[bytes[i] >> 4];
        *at++ = "0123456789abcdef"[bytes[i] & 15];
    }
    *at = 0;
}

static void write_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t written = write(fd, data, length);
        must_work(written);
        data += written;
        length -= written;
    }
}

/* A link at `path` is followed, as any writer would; what it names is replaced. */
static noreturn void write_file(const char *path, mode_t mode, int flags) {
    static char target[PATH_MAX];
    struct stat st;
    if (strlen(path) >= PATH_MAX)
        fail(IO, ENAMETOOLONG);
    if (!realpath(path, target))
        strcpy(target, path);
    if (!stat(target, &st) && !S_ISREG(st.st_mode))
        fail(S_ISDIR(st.st_mode) ? IO : NOT_REGULAR, S_ISDIR(st.st_mode) ? EISDIR : 0);
    char *slash = strrchr(target, '/');
    if (!slash[1])
        fail(IO, EISDIR);
    if (flags & WRITE_PARENTS && slash != target) {
        *slash = 0;
        int made = make_dirs(target, 0755);
        *slash = '/';
        must_work(made);
    }
    choose_temporary(target);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        *temporary = 0;
        fail(IO, errno);
    }
    for (;;) {
        uint8_t head[5];
        receive(head, sizeof head);
        uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
        if (head[4] == END && !length)
            break;
        if (head[4] != DATA || length > MAX_FRAME)
            fail(BAD_REQUEST, 0);
        while (length) {
            size_t part = length < sizeof buffer ? length : sizeof buffer;
            receive(buffer, part);
            write_all(fd, buffer, part);
            length -= part;
        }
    }
    must_work(fchmod(fd, mode & 07777));
    if (flags & WRITE_FSYNC)
        must_work(fsync(fd));
    must_work(close(fd));
    must_work(rename(temporary, target));
    *temporary = 0;
    finish(DONE, NULL, 0);
}

static void put_entry(struct output *out, int dir, const char *file, const char *shown, const struct stat *st) {
    static char link[PATH_MAX];
    static const char kinds[] = "?pc?d?b?-?l?s???";
    ssize_t length = S_ISLNK(st->st_mode) ? readlinkat(dir, file, link, sizeof link - 1) : 0;
    link[length > 0 ? length : 0] = 0;
    put(out, kinds[(st->st_mode & S_IFMT) >> 12], 1);
    put(out, st->st_mode & 07777, 4);
    put(out, st->st_uid, 4);
    put(out, st->st_gid, 4);
    put(out, st->st_size, 8);
    put(out, (uint64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec, 8);
    put_text(out, shown);
    put_text(out, link);
}

static noreturn void stat_file(const char *path, bool follow) {
    struct stat st;
    struct output out = {0};
    must_work(fstatat(AT_FDCWD, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW));
    put_entry(&out, AT_FDCWD, path, path, &st);
    finish(ENTRIES, out.bytes, out.length);
}

struct listing { struct output out; uint32_t left; bool cut; char path[8192]; };

static void list_into(struct listing *listing, int fd, size_t at, int depth) {
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && !listing->cut;) {
        struct stat st;
        size_t length = strlen(entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || at + length + 2 > sizeof listing->path)
            continue;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW))
            continue; /* gone in the meantime */
        if (!listing->left) {
            listing->cut = true;
            break;
        }
        listing->left--;
        memcpy(listing->path + at, entry->d_name, length + 1);
        put_entry(&listing->out, fd, entry->d_name, listing->path, &st);
        if (listing->out.length > CHUNK) {
            reply(ENTRIES, listing->out.bytes, listing->out.length);
            listing->out.length = 0;
        }
        if (!S_ISDIR(st.st_mode) || depth <= 1)
            continue;
        int below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0)
            continue; /* not readable for this user: listed, not entered */
        listing->path[at + length] = '/';
        list_into(listing, below, at + length + 1, depth - 1);
    }
    closedir(dir);
}

static noreturn void list_dir(const char *path, int depth, uint32_t most) {
    static struct listing listing;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    must_work(fd);
    listing.left = most;
    list_into(&listing, fd, 0, depth < MOST_DEPTH ? depth : MOST_DEPTH);
    if (listing.out.length)
        reply(ENTRIES, listing.out.bytes, listing.out.length);
    uint8_t cut = listing.cut;
    finish(CONTENT_END, &cut, 1);
}

/* Enters no link and goes on after an error, so that as much as possible is gone. Returns the first error. */
static int remove_below(int parent, const char *name, int depth) {
    if (!unlinkat(parent, name, 0) || (errno != EISDIR && errno != EPERM))
        return errno == ENOENT ? 0 : errno;
    int fd = depth ? openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : (errno = ELOOP, -1);
    int first = fd < 0 ? errno : 0;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        int error = remove_below(fd, entry->d_name, depth - 1);
        first = first ? first : error;
    }
    if (dir)
        closedir(dir);
    return !unlinkat(parent, name, AT_REMOVEDIR) || errno == ENOENT ? 0 : first ? first : errno;
}

static noreturn void remove_file(const char *path, bool recursive) {
    struct stat st;
    must_work(lstat(path, &st));
    if (!S_ISDIR(st.st_mode))
        must_work(unlink(path));
    else if (!recursive)
        must_work(rmdir(path));
    else {
        int error = remove_below(AT_FDCWD, path, MOST_REMOVE_DEPTH);
        if (error)
            fail(IO, error);
    }
    finish(DONE, NULL, 0);
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

noreturn void files_serve(int fd, uint8_t kind, struct input *in) {
    struct timeval patience = {STALLED_AFTER / 1000, 0};
    peer = fd;
    fcntl(peer, F_SETFL, 0);
    setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    umask(0);
    if (kind == SYNC)
        sync_root();
    const char *user = take_text(in), *path = take_text(in), *other = kind == RENAME ? take_text(in) : "/";
    uint64_t first = 0, second = 0;
    switch (kind) {
        case READ: first = take(in, 8), second = take(in, 8); break;
        case WRITE: first = take(in, 4), second = take(in, 1); break;
        case STAT: case REMOVE: first = take(in, 1); break;
        case LIST_DIR: first = take(in, 2), second = take(in, 4); break;
        case MAKE_DIR: first = take(in, 4); break;
        default: break;
    }
    if (in->bad || in->at != in->end || *path != '/' || *other != '/')
        fail(BAD_REQUEST, 0);
    become(user);
    switch (kind) {
        case READ: read_file(path, first, second);
        case WRITE: write_file(path, first, second);
        case STAT: stat_file(path, first);
        case LIST_DIR: list_dir(path, first, second);
        case REMOVE: remove_file(path, first);
        case MAKE_DIR: must_work(make_dirs(strdup(path), first & 07777)); break;
        case RENAME: must_work(rename(path, other)); break;
        default: fail(BAD_REQUEST, 0);
    }
    finish(DONE, NULL, 0);
}
