/* The directories that are watched. What appears in a new one before it is watched is found by looking. */
#include <dirent.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "changes.h"

enum { MOST_PLACES = 16384, MOST_PATH_BYTES = 4 << 20, MOST_DEPTH = 64, MOST_SEEN = 4096 };

static const uint32_t WANTED = IN_CREATE | IN_DELETE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO |
                               IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK;

static int inotify = -1;
static bool recursive;
static char root[PATH_MAX];
static struct { int wd; char *path; } places[MOST_PLACES]; /* by wd */
static int count;
static size_t path_bytes;

static struct { int wd; uint64_t hash; } seen[MOST_SEEN];
static int seen_count;
static uint64_t passed, seen_until; /* bytes of events; those that were made while we looked end there */

int places_fd(void) { return inotify; }

const char *place_absolute(const char *path) {
    static char whole[2 * PATH_MAX];
    return stpcpy(stpcpy(stpcpy(whole, root), *path || !*root ? "/" : ""), path), whole;
}

/* -- the table */

static int position(int wd) {
    int low = 0, high = count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (places[middle].wd < wd)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_known(int at, int wd) { return at < count && places[at].wd == wd; }

const char *place_of(int wd) {
    int at = position(wd);
    return is_known(at, wd) ? places[at].path : NULL;
}

static void set_path(int at, const char *path) {
    path_bytes += strlen(path) + 1;
    if (places[at].path)
        path_bytes -= strlen(places[at].path) + 1;
    char *copy = must(strdup(path));
    free(places[at].path);
    places[at].path = copy;
}

static void drop(int at) {
    path_bytes -= strlen(places[at].path) + 1;
    free(places[at].path);
    memmove(places + at, places + at + 1, (--count - at) * sizeof *places);
}

void place_forget(int wd) {
    int at = position(wd);
    if (is_known(at, wd))
        drop(at);
}

/* What follows `path` in `of`: "" is itself, "/x" below it, NULL elsewhere. */
static const char *below(const char *of, const char *path) {
    size_t length = strlen(path);
    return !strncmp(of, path, length) && (!of[length] || of[length] == '/') ? of + length : NULL;
}

void places_rename(const char *from, const char *to) {
    static char path[2 * PATH_MAX];
    for (int at = 0; at < count; at++) {
        const char *rest = below(places[at].path, from);
        if (!rest)
            continue;
        stpcpy(stpcpy(path, to), rest);
        if (strlen(path) < PATH_MAX)
            set_path(at, path);
        else
            change_missed();
    }
}

void places_drop(const char *path) {
    for (int at = count - 1; at >= 0; at--)
        if (*places[at].path && below(places[at].path, path)) {
            inotify_rm_watch(inotify, places[at].wd);
            drop(at);
        }
}

/* -- what was seen by looking, of which inotify may tell once more */

static uint64_t hash_of(const char *name) {
    uint64_t hash = 14695981039346656037u;
    for (; *name; name++)
        hash = (hash ^ (uint8_t)*name) * 1099511628211u;
    return hash;
}

static void note_seen(int wd, const char *name) {
    if (seen_count == MOST_SEEN) /* then it is told twice */
        return;
    seen[seen_count].wd = wd;
    seen[seen_count++].hash = hash_of(name);
}

void place_passed(size_t bytes) {
    if (passed >= seen_until)
        seen_count = 0;
    passed += bytes;
}

bool place_was_seen(int wd, const char *name) {
    uint64_t hash = seen_count ? hash_of(name) : 0;
    for (int i = 0; i < seen_count; i++)
        if (seen[i].wd == wd && seen[i].hash == hash) {
            seen[i] = seen[--seen_count];
            return true;
        }
    return false;
}

/* -- watching */

/* Its wd; 0 if there is nothing to watch for this user, -1 if there is and we cannot. */
static int add(const char *path) {
    if (count == MOST_PLACES || path_bytes > MOST_PATH_BYTES)
        return -1;
    int wd = inotify_add_watch(inotify, place_absolute(path), WANTED);
    if (wd < 0)
        return errno == ENOSPC || errno == ENOMEM ? -1 : 0;
    int at = position(wd);
    if (!is_known(at, wd)) {
        memmove(places + at + 1, places + at, (count++ - at) * sizeof *places);
        places[at].wd = wd;
        places[at].path = NULL;
    }
    set_path(at, path);
    return wd;
}

static bool is_directory(const char *path, const struct dirent *entry, bool *has_content) {
    struct stat st;
    *has_content = false;
    if (entry->d_type != DT_UNKNOWN && entry->d_type != DT_REG)
        return entry->d_type == DT_DIR;
    if (lstat(place_absolute(path), &st))
        return false;
    *has_content = S_ISREG(st.st_mode) && st.st_size;
    return S_ISDIR(st.st_mode);
}

/* Watches `path`, which has room for more, and what is below; with `is_new` it tells what it finds there. */
static bool enter(char path[PATH_MAX], bool is_new, int depth) {
    int wd = depth ? add(path) : -1;
    if (wd <= 0 || !recursive)
        return wd >= 0;
    DIR *dir = opendir(place_absolute(path));
    size_t length = strlen(path);
    bool all = true;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        bool has_content, is_dir;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || is_temporary(entry->d_name) ||
            strlen(root) + length + strlen(entry->d_name) + 3 > PATH_MAX)
            continue;
        stpcpy(stpcpy(path + length, length ? "/" : ""), entry->d_name);
        if (is_new || entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN) {
            is_dir = is_directory(path, entry, &has_content);
            if (is_new) {
                note_seen(wd, entry->d_name);
                change_found(path, is_dir, has_content);
            }
            all = (!is_dir || enter(path, is_new, depth - 1)) && all;
        }
        path[length] = 0;
    }
    if (dir)
        closedir(dir);
    return all;
}

void places_enter(const char *path) {
    static char name[PATH_MAX];
    int waiting = 0;
    if (!recursive)
        return;
    if (!enter(strcpy(name, path), true, MOST_DEPTH))
        change_missed();
    ioctl(inotify, FIONREAD, &waiting);
    seen_until = passed + waiting;
}

static enum coverage open_inotify(void) {
    static char path[PATH_MAX];
    if (inotify >= 0)
        close(inotify);
    while (count)
        drop(count - 1);
    *path = 0;
    seen_count = 0;
    inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (inotify < 0 || !enter(path, false, MOST_DEPTH))
        return PART;
    return count ? WHOLE : GONE;
}

/* Of a directory that it watches already inotify says the number that it has, so another one of that name is found. */
static bool root_is_there(void) {
    for (int at = 0; at < count; at++)
        if (!*places[at].path)
            return inotify_add_watch(inotify, place_absolute(""), WANTED) == places[at].wd;
    return false;
}

enum coverage places_again(void) { return root_is_there() ? open_inotify() : GONE; }

void places_open(const char *path, bool with_below) {
    struct stat st;
    if (!realpath(path, root) || stat(root, &st))
        fail(IO, errno);
    if (!S_ISDIR(st.st_mode))
        fail(IO, ENOTDIR);
    must_work(access(root, R_OK));
    if (!strcmp(root, "/"))
        *root = 0;
    recursive = with_below;
    enum coverage coverage = open_inotify();
    if (coverage != WHOLE)
        fail(coverage == GONE ? IO : TOO_MANY_WATCHES, coverage == GONE ? ENOENT : 0);
}
