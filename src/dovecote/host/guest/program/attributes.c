/* Modes, and what users note on their files: extended attributes of a name space of their own. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "guest.h"

enum { ALTER_MODE = 1, ALTER_METADATA = 2, MOST_NAMES = 64 << 10, MOST_VALUE = 64 << 10 };
static const char prefix[] = "user.dovecote.meta.";
static char names[MOST_NAMES], value[MOST_VALUE];

static bool is_name(const char *name) {
    size_t length = strlen(name);
    return length && length <= MOST_METADATA_NAME && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == length;
}

void metadata_take(struct input *in, struct metadata *metadata) {
    size_t bytes = 0;
    uint64_t count = take(in, 2);
    if (count > MOST_METADATA)
        in->bad = true;
    for (metadata->count = 0; metadata->count < count && !in->bad; metadata->count++) {
        const char *name = take_text(in), *text = take_text(in);
        metadata->each[metadata->count].name = name;
        metadata->each[metadata->count].value = text;
        bytes += strlen(name) + strlen(text);
        if (!is_name(name) || bytes > MOST_METADATA_BYTES)
            in->bad = true;
    }
}

/* The name without our prefix; NULL if it is another attribute. */
static const char *ours(const char *name) {
    return strncmp(name, prefix, sizeof prefix - 1) ? NULL : name + sizeof prefix - 1;
}

/* Code inside may have set anything: what breaks our rules is passed over. */
void metadata_put(struct output *out, const char *path, bool follow) {
    size_t room = MOST_METADATA_BYTES, count = 0, count_at = out->length;
    put(out, 0, 2);
    ssize_t length = follow ? listxattr(path, names, sizeof names) : llistxattr(path, names, sizeof names);
    for (const char *at = names; at < names + (length > 0 ? length : 0) && count < MOST_METADATA; at += strlen(at) + 1) {
        const char *name = ours(at);
        if (!name || !is_name(name))
            continue;
        ssize_t got = follow ? getxattr(path, at, value, MOST_METADATA_BYTES) : lgetxattr(path, at, value, MOST_METADATA_BYTES);
        if (got < 0 || memchr(value, 0, got) || got + strlen(name) > room)
            continue;
        value[got] = 0;
        room -= got + strlen(name);
        put_text(out, name);
        put_text(out, value);
        count++;
    }
    out->bytes[count_at] = count;
}

static bool is_wanted(const struct metadata *metadata, const char *name) {
    for (int i = 0; i < metadata->count; i++)
        if (!strcmp(metadata->each[i].name, name))
            return true;
    return false;
}

int metadata_replace(int fd, const struct metadata *metadata) {
    char name[sizeof prefix + MOST_METADATA_NAME];
    for (int i = 0; i < metadata->count; i++) {
        strcat(strcpy(name, prefix), metadata->each[i].name);
        if (fsetxattr(fd, name, metadata->each[i].value, strlen(metadata->each[i].value), 0))
            return errno;
    }
    ssize_t length = flistxattr(fd, names, sizeof names);
    for (const char *at = names; at < names + (length > 0 ? length : 0); at += strlen(at) + 1)
        if (ours(at) && !is_wanted(metadata, ours(at)) && fremovexattr(fd, at) && errno != ENODATA)
            return errno;
    return 0;
}

void attributes_copy(int from, int to, bool with_metadata) {
    ssize_t length = flistxattr(from, names, sizeof names);
    for (const char *at = names; at < names + (length > 0 ? length : 0); at += strlen(at) + 1) {
        if (strncmp(at, "user.", 5) || (ours(at) && !with_metadata))
            continue;
        ssize_t got = fgetxattr(from, at, value, sizeof value);
        if (got >= 0 && fsetxattr(to, at, value, got, 0) && (errno == ENOSPC || errno == EDQUOT))
            fail(IO, errno); /* a file system that has none is no reason to fail */
    }
}

noreturn void alter(const char *path, int what, mode_t mode, const struct metadata *metadata) {
    if (what & ALTER_METADATA) {
        struct stat st;
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        must_work(fd);
        must_work(fstat(fd, &st));
        if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
            fail(NOT_REGULAR, 0);
        int error = metadata_replace(fd, metadata);
        if (error)
            fail(IO, error);
    }
    if (what & ALTER_MODE)
        must_work(chmod(path, mode));
    finish(DONE, NULL, 0);
}
