/* What is at a path and in a directory. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { MOST_DEPTH = 64 };

static void put_entry(struct output *out, int dir, const char *file, const char *shown, const struct stat *st,
                      bool follow) {
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
    put_text(out, account_name(st->st_uid, false));
    put_text(out, account_name(st->st_gid, true));
    bool may_have_metadata = S_ISREG(st->st_mode) || S_ISDIR(st->st_mode);
    if (may_have_metadata && (dir == AT_FDCWD || !fchdir(dir)))
        metadata_put(out, file, follow);
    else
        put(out, 0, 2);
}

noreturn void stat_file(const char *path, bool follow) {
    struct stat st;
    struct output out = {0};
    must_work(fstatat(AT_FDCWD, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW));
    put_entry(&out, AT_FDCWD, path, path, &st, follow);
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
        put_entry(&listing->out, fd, entry->d_name, listing->path, &st, false);
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

noreturn void list_dir(const char *path, int depth, uint32_t most, bool follow) {
    static struct listing listing;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW));
    must_work(fd);
    listing.left = most;
    list_into(&listing, fd, 0, depth < MOST_DEPTH ? depth : MOST_DEPTH);
    if (listing.out.length)
        reply(ENTRIES, listing.out.bytes, listing.out.length);
    uint8_t cut = listing.cut;
    finish(CONTENT_END, &cut, 1);
}
