/* Reading and writing what is in files. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { WRITE_PARENTS = 1, WRITE_METADATA = 2, MOST_LINKS = 40 };

noreturn void read_file(const char *path, uint64_t offset, uint64_t length) {
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

/* -- names of what is not finished yet */

static const char hidden[] = ".dovecote-";

void choose_temporary(const char *target, bool replaces, char temporary[PATH_MAX]) {
    const char *slash = strrchr(target, '/');
    uint8_t bytes[8];
    if (slash - target > PATH_MAX - 40)
        fail(IO, ENAMETOOLONG);
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        fail(IO, EIO);
    memcpy(temporary, target, slash - target + 1);
    char *at = stpcpy(temporary + (slash - target + 1), hidden);
    for (int i = 0; i < 8; i++) {
        *at++ = "0123456789abcdef"[bytes[i] >> 4];
        *at++ = "0123456789abcdef"[bytes[i] & 15];
    }
    strcpy(at, replaces ? "~" : "");
}

bool is_temporary(const char *name) {
    size_t length = strlen(name), prefix = sizeof hidden - 1, digits = strspn(name + (length > prefix ? prefix : 0),
                                                                             "0123456789abcdef");
    return !strncmp(name, hidden, prefix) && digits == 16 && (!name[prefix + 16] || !strcmp(name + prefix + 16, "~"));
}

/* -- writing */

static char temporary[PATH_MAX];

static void remove_temporary(void) { unlink(temporary); }

void write_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t written = write(fd, data, length);
        must_work(written);
        data += written;
        length -= written;
    }
}

static void write_frames(int fd) {
    for (;;) {
        uint8_t head[5];
        receive_all(head, sizeof head);
        uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
        if (head[4] == END && !length)
            return;
        if (head[4] != DATA || length > MAX_FRAME)
            fail(BAD_REQUEST, 0);
        while (length) {
            size_t part = length < sizeof buffer ? length : sizeof buffer;
            receive_all(buffer, part);
            write_all(fd, buffer, part);
            length -= part;
        }
    }
}

/* The new file gets owner, mode and attributes of the old one, as if that had been written to. */
static void resemble(int fd, const char *target, const struct stat *old, uint32_t mode, bool with_metadata) {
    int from = old ? open(target, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    bool same_owner = !old || (old->st_uid == geteuid() && old->st_gid == getegid());
    if (!same_owner)
        same_owner = !fchown(fd, old->st_uid, old->st_gid) ||
                     (old->st_uid == geteuid() && !fchown(fd, -1, old->st_gid));
    if (mode == KEEP_MODE)
        mode = !old ? 0644 : old->st_mode & (same_owner ? 07777 : 01777);
    must_work(fchmod(fd, mode & 07777));
    if (from >= 0) {
        attributes_copy(from, fd, with_metadata);
        close(from);
    }
}

/* What a link names that names nothing yet, over as many links as the kernel follows. */
static void follow_dangling(char target[PATH_MAX]) {
    static char named[PATH_MAX], whole[2 * PATH_MAX];
    for (int links = 0;; links++) {
        ssize_t length = readlink(target, named, sizeof named - 1);
        if (length < 0)
            return;
        if (links == MOST_LINKS)
            fail(IO, ELOOP);
        named[length] = 0;
        memcpy(whole, target, PATH_MAX);
        strcpy(*named == '/' ? whole : strrchr(whole, '/') + 1, named);
        if (strlen(whole) >= PATH_MAX)
            fail(IO, ENAMETOOLONG);
        strcpy(target, whole);
    }
}

/* Where it is written to, through links as any writer would. True if a file is there already. */
static bool find_target(const char *path, char target[PATH_MAX], struct stat *old) {
    if (strlen(path) >= PATH_MAX)
        fail(IO, ENAMETOOLONG);
    bool is_there = !stat(path, old); /* the kernel says which links this user may follow */
    if (!is_there && errno != ENOENT)
        fail(IO, errno);
    if (!realpath(path, target))
        follow_dangling(strcpy(target, path));
    is_there = !stat(target, old);
    if (is_there && !S_ISREG(old->st_mode))
        fail(S_ISDIR(old->st_mode) ? IO : NOT_REGULAR, S_ISDIR(old->st_mode) ? EISDIR : 0);
    if (is_there) /* replacing takes a right to its directory only, which would surprise */
        must_work(access(target, W_OK));
    if (!strrchr(target, '/')[1])
        fail(IO, EISDIR);
    return is_there;
}

noreturn void write_file(const char *path, uint32_t mode, int flags, const struct metadata *metadata) {
    static char target[PATH_MAX];
    struct stat old;
    bool replaces = find_target(path, target, &old);
    char *slash = strrchr(target, '/');
    if (flags & WRITE_PARENTS && slash != target && !replaces) {
        *slash = 0;
        make_dirs(target, 0755);
        *slash = '/';
    }
    choose_temporary(target, replaces, temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    must_work(fd);
    at_leave = remove_temporary;
    write_frames(fd);
    resemble(fd, target, replaces ? &old : NULL, mode, !(flags & WRITE_METADATA));
    int error = flags & WRITE_METADATA ? metadata_replace(fd, metadata) : 0;
    if (error)
        fail(IO, error);
    must_work(close(fd));
    must_work(rename(temporary, target));
    at_leave = NULL;
    finish(DONE, NULL, 0);
}
