/* Tells of changes below a directory, by inotify: in a forked helper, as the user. */
#include <poll.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "changes.h"

enum change { WATCHED, CREATED, WRITTEN, REMOVED, RENAMED, MODE_CHANGED, OVERFLOWED };
enum { MOST_QUEUED = 256 << 10, PAIRED_WITHIN = 20 /* ms */ };

static int socket_fd;
static struct output queue;
static size_t queue_sent, queue_last; /* where the last frame begins */
static bool overflowed;
static enum coverage coverage; /* it ends when that is no longer WHOLE */

static struct { bool is_there, is_dir; uint32_t cookie; char path[PATH_MAX]; } moving; /* away; perhaps to a new name */

/* -- to the client; what it does not take in time is dropped, and it is told that something was */

static void flush(void) {
    while (queue_sent < queue.length) {
        ssize_t sent = send(socket_fd, queue.bytes + queue_sent, queue.length - queue_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0)
            leave(1);
        queue_sent += sent;
    }
    queue.length = queue_sent = queue_last = 0;
}

static bool repeats(const struct output *frame) {
    return queue_last >= queue_sent && queue.length - queue_last == frame->length &&
           !memcmp(queue.bytes + queue_last, frame->bytes, frame->length);
}

static void enqueue(enum change what, bool is_dir, const char *path, const char *target) {
    static struct output frame;
    uint8_t head[5];
    frame.length = 0;
    put(&frame, 0, sizeof head);
    put(&frame, what, 1);
    put(&frame, is_dir, 1);
    put_text(&frame, path);
    put_text(&frame, target);
    frame_head(head, CHANGED, frame.length - sizeof head);
    memcpy(frame.bytes, head, sizeof head);
    if (repeats(&frame))
        return;
    if (queue.length + frame.length > MOST_QUEUED) {
        overflowed = true;
        return;
    }
    queue_last = queue.length;
    memcpy(queue.bytes + queue.length, frame.bytes, frame.length);
    queue.length += frame.length;
}

static void tell(enum change what, bool is_dir, const char *path, const char *target) {
    if (!overflowed)
        enqueue(what, is_dir, path, target);
}

static void tell_overflow(void) {
    if (!overflowed || queue.length)
        return;
    overflowed = false;
    enqueue(OVERFLOWED, false, "", "");
    flush();
}

void change_missed(void) { overflowed = true; }

void change_found(const char *path, bool is_dir, bool has_content) {
    tell(CREATED, is_dir, path, "");
    if (has_content)
        tell(WRITTEN, false, path, "");
}

/* -- what inotify says */

/* It went out of sight, or to where its new name was not told of in time. */
static void give_up_pair(void) {
    if (!moving.is_there)
        return;
    moving.is_there = false;
    if (moving.is_dir)
        places_drop(moving.path);
    tell(RENAMED, moving.is_dir, moving.path, "");
}

static bool has_content(const char *path) {
    struct stat st;
    return !lstat(place_absolute(path), &st) && S_ISREG(st.st_mode) && st.st_size;
}

static void arrived(const char *path, bool is_dir, uint32_t cookie) {
    if (moving.is_there && moving.cookie == cookie) {
        moving.is_there = false;
        if (is_dir)
            places_rename(moving.path, path);
        tell(RENAMED, is_dir, moving.path, path);
        return;
    }
    give_up_pair();
    change_found(path, is_dir, has_content(path));
    if (is_dir)
        places_enter(path);
}

static void left(const char *path, bool is_dir, uint32_t cookie) {
    moving.is_there = true;
    moving.is_dir = is_dir;
    moving.cookie = cookie;
    strcpy(moving.path, path);
}

/* Files of ours that are not finished have no name yet: their end is the beginning of the file, or a write to it. */
static bool of_temporary(const struct inotify_event *event, const char *path, bool was_seen) {
    static struct { uint32_t cookie; bool replaces; } finished;
    if (is_temporary(event->name)) {
        if (event->mask & IN_MOVED_FROM) {
            finished.cookie = event->cookie;
            finished.replaces = strchr(event->name, '~');
        }
        return true;
    }
    if (!(event->mask & IN_MOVED_TO) || event->cookie != finished.cookie || !event->cookie)
        return false;
    bool is_dir = event->mask & IN_ISDIR;
    if (finished.replaces && !is_dir)
        tell(WRITTEN, false, path, "");
    else if (!was_seen)
        arrived(path, is_dir, 0);
    return true;
}

static void of_root(const struct inotify_event *event) {
    if (event->mask & IN_ATTRIB)
        tell(MODE_CHANGED, true, "", "");
    if (event->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT))
        coverage = GONE;
}

static void of_name(const struct inotify_event *event, const char *path) {
    bool is_dir = event->mask & IN_ISDIR, was_seen = place_was_seen(event->wd, event->name);
    if (of_temporary(event, path, was_seen))
        return;
    if (event->mask & IN_MOVED_FROM)
        left(path, is_dir, event->cookie);
    else if (event->mask & (IN_MOVED_TO | IN_CREATE) && !was_seen)
        arrived(path, is_dir, event->mask & IN_CREATE ? 0 : event->cookie);
    else if (event->mask & IN_DELETE)
        tell(REMOVED, is_dir, path, "");
    else if (event->mask & IN_MODIFY)
        tell(WRITTEN, is_dir, path, "");
    else if (event->mask & IN_ATTRIB)
        tell(MODE_CHANGED, is_dir, path, "");
}

static void handle(const struct inotify_event *event) {
    static char path[PATH_MAX];
    if (!(event->mask & IN_MOVED_TO) || event->cookie != moving.cookie)
        give_up_pair();
    const char *place = place_of(event->wd);
    if (!place)
        return;
    if (!event->len && !*place)
        of_root(event);
    if (event->len && strlen(place) + strlen(event->name) + 2 <= sizeof path) {
        stpcpy(stpcpy(stpcpy(path, place), *place ? "/" : ""), event->name);
        of_name(event, path);
    }
    if (event->mask & IN_IGNORED)
        place_forget(event->wd);
}

static void read_events(void) {
    static char events[16 << 10] __attribute__((aligned(8)));
    ssize_t got = read(places_fd(), events, sizeof events);
    for (char *at = events; at < events + got && coverage == WHOLE;) {
        const struct inotify_event *event = (const struct inotify_event *)at;
        size_t length = sizeof *event + event->len;
        if (event->mask & IN_Q_OVERFLOW) { /* also of directories that we do not watch yet */
            give_up_pair();
            overflowed = true;
            coverage = places_again();
            return;
        }
        place_passed(length);
        handle(event);
        at += length;
    }
}

static void flush_all(void) {
    for (struct pollfd each = {socket_fd, POLLOUT, 0}; queue.length; flush())
        if (poll(&each, 1, STALLED_AFTER) <= 0)
            leave(1);
}

/* Why it ends is told to a client that is behind too. */
static noreturn void end(void) {
    flush_all();
    tell_overflow();
    if (coverage == GONE)
        tell(REMOVED, true, "", "");
    flush_all();
    if (coverage == PART)
        fail(TOO_MANY_WATCHES, 0);
    finish(CONTENT_END, NULL, 0);
}

noreturn void watch_changes(int peer, const char *path, bool recursive) {
    socket_fd = peer;
    queue = (struct output){must(malloc(MOST_QUEUED)), 0, MOST_QUEUED};
    places_open(path, recursive);
    tell(WATCHED, true, "", "");
    while (coverage == WHOLE) {
        flush();
        tell_overflow();
        struct pollfd each[2] = {{places_fd(), POLLIN, 0}, {socket_fd, POLLIN | (queue.length ? POLLOUT : 0), 0}};
        if (poll(each, 2, moving.is_there ? PAIRED_WITHIN : -1) < 0)
            leave(1);
        if (each[1].revents & (POLLIN | POLLHUP | POLLERR)) /* it has nothing more to say, so this is its end */
            leave(0);
        if (each[0].revents & POLLIN)
            read_events();
        else if (!each[0].revents)
            give_up_pair();
    }
    end();
}
