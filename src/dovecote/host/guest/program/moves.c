/* Directories made, files removed and moved. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { MOST_DEPTH = 512 };

bool make_dirs(char *path, mode_t mode) {
    struct stat st;
    if (!stat(path, &st) && !S_ISDIR(st.st_mode))
        fail(IO, ENOTDIR);
    if (!stat(path, &st))
        return false;
    for (char *at = path + 1; *at; at++) {
        if (*at != '/' || !at[1])
            continue;
        *at = 0;
        if (mkdir(path, 0755) && errno != EEXIST && stat(path, &st))
            fail(IO, errno);
        *at = '/';
    }
    if (!mkdir(path, mode))
        return true;
    if (errno != EEXIST)
        fail(IO, errno);
    must_work(stat(path, &st));
    if (!S_ISDIR(st.st_mode))
        fail(IO, ENOTDIR);
    return false;
}

/* -- removing */

/* Enters no link and goes on after an error, so that as much as possible is gone. */
int remove_below(int parent, const char *name, int depth) {
    if (!unlinkat(parent, name, 0) || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
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

static void remove_tree(const char *path) {
    int error = remove_below(AT_FDCWD, path, MOST_DEPTH);
    if (error)
        fail(IO, error);
}

noreturn void remove_file(const char *path, bool recursive) {
    struct stat st;
    must_work(lstat(path, &st));
    if (!S_ISDIR(st.st_mode))
        must_work(unlink(path));
    else if (!recursive)
        must_work(rmdir(path));
    else
        remove_tree(path);
    finish(DONE, NULL, 0);
}

/* -- moving, by a copy where it goes to another file system */

static char temporary[PATH_MAX];
static struct stat top; /* of the copy, which must not be copied into itself */

static void remove_copy(void) { remove_below(AT_FDCWD, temporary, MOST_DEPTH); }

/* Where the next data begins, or the next hole; file systems that do not know have no holes. */
static off_t next(int fd, off_t at, int whence, off_t size) {
    off_t found = lseek(fd, at, whence);
    if (found >= 0)
        return found;
    return whence == SEEK_DATA && errno != ENXIO ? at : size;
}

static void copy_content(int from, int to, off_t size) {
    must_work(ftruncate(to, size));
    for (off_t at = next(from, 0, SEEK_DATA, size); at < size; at = next(from, at, SEEK_DATA, size)) {
        off_t hole = next(from, at, SEEK_HOLE, size);
        must_work(lseek(to, at, SEEK_SET) < 0 ? -1 : 0);
        while (at < hole) {
            ssize_t got = pread(from, buffer, hole - at < CHUNK ? hole - at : CHUNK, at);
            must_work(got);
            if (!got)
                return; /* it has become shorter */
            write_all(to, buffer, got);
            at += got;
            check_client();
        }
    }
}

static int copy_file(int from_dir, const char *name, int to_dir, const char *as, const struct stat *st) {
    int from = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    must_work(from);
    int to = openat(to_dir, as, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    must_work(to);
    copy_content(from, to, st->st_size);
    attributes_copy(from, to, true);
    close(from);
    return to;
}

static void copy_entry(int from_dir, const char *name, int to_dir, const char *as, int depth);

static int copy_dir(int from_dir, const char *name, int to_dir, const char *as, int depth) {
    int from = depth ? openat(from_dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : (errno = ELOOP, -1);
    must_work(from);
    must_work(mkdirat(to_dir, as, 0700));
    int to = openat(to_dir, as, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    must_work(to);
    if (!top.st_ino)
        must_work(fstat(to, &top));
    attributes_copy(from, to, true);
    DIR *dir = fdopendir(from);
    must_work(dir ? 0 : -1);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            copy_entry(from, entry->d_name, to, entry->d_name, depth - 1);
    closedir(dir);
    return to;
}

static void copy_link(int from_dir, const char *name, int to_dir, const char *as) {
    static char target[PATH_MAX];
    ssize_t length = readlinkat(from_dir, name, target, sizeof target - 1);
    must_work(length);
    target[length] = 0;
    must_work(symlinkat(target, to_dir, as));
}

/* Owners stay where we may give files away. */
static void copy_entry(int from_dir, const char *name, int to_dir, const char *as, int depth) {
    struct stat st;
    check_client();
    must_work(fstatat(from_dir, name, &st, AT_SYMLINK_NOFOLLOW));
    if (top.st_ino && st.st_ino == top.st_ino && st.st_dev == top.st_dev)
        fail(IO, EINVAL);
    int fd = -1;
    if (S_ISREG(st.st_mode))
        fd = copy_file(from_dir, name, to_dir, as, &st);
    else if (S_ISDIR(st.st_mode))
        fd = copy_dir(from_dir, name, to_dir, as, depth);
    else if (S_ISLNK(st.st_mode))
        copy_link(from_dir, name, to_dir, as);
    else
        must_work(mknodat(to_dir, as, st.st_mode, st.st_rdev));
    bool is_same = !fchownat(to_dir, as, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW);
    if (fd >= 0) {
        must_work(fchmod(fd, st.st_mode & (is_same ? 07777 : 01777)));
        close(fd);
    }
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    (void)!utimensat(to_dir, as, times, AT_SYMLINK_NOFOLLOW);
}

/* The directory that holds what is at `path`, in place of it. */
static void must_be_removable(const char *path) {
    static char parent[PATH_MAX];
    strcpy(parent, path);
    char *end = parent + strlen(parent);
    while (end > parent + 1 && end[-1] == '/')
        *--end = 0;
    char *slash = strrchr(parent, '/');
    slash[slash == parent] = 0;
    must_work(access(parent, W_OK));
}

noreturn void move_file(const char *from, const char *to) {
    if (!rename(from, to))
        finish(DONE, NULL, 0);
    if (errno != EXDEV)
        fail(IO, errno);
    struct stat st;
    static char target[PATH_MAX];
    if (strlen(from) >= PATH_MAX || strlen(to) >= PATH_MAX)
        fail(IO, ENAMETOOLONG);
    for (size_t length = strlen(strcpy(target, to)); length > 1 && target[length - 1] == '/';)
        target[--length] = 0;
    must_be_removable(from);
    choose_temporary(target, !lstat(target, &st), temporary);
    at_leave = remove_copy;
    copy_entry(AT_FDCWD, from, AT_FDCWD, temporary, MOST_DEPTH);
    must_work(rename(temporary, target));
    at_leave = NULL;
    remove_tree(from);
    finish(DONE, NULL, 0);
}
