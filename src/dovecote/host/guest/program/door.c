/* The socket that we listen on: inherited, or bound at a path, where a hibernation wants it away for a while. */
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "guest.h"

enum { TRY_AGAIN = 5, HELPERS_WITHIN = 2000 };

static struct sockaddr_un at = {.sun_family = AF_UNIX};
static struct connection *shutting;
static uint64_t kill_at;

/* -1 while the host does not let us: its directory is the host's to open and to shut. */
static int bound(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    mode_t before = umask(0077);
    int failed = bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 128);
    umask(before);
    if (!failed)
        return fd;
    close(fd);
    return -1;
}

static void try_to_open(void) {
    int fd = bound();
    if (fd < 0)
        due(now + TRY_AGAIN);
    else
        connections_listen(fd);
}

bool door_open(const char *path) {
    if (strlen(path) >= sizeof at.sun_path)
        return false;
    strcpy(at.sun_path, path);
    try_to_open();
    return true;
}

/* Nothing that leads out of the sandbox may be open when its memory is saved: not here, and in no helper. */
void door_shut(struct connection *c) {
    if (!at.sun_path[0] || shutting) {
        connection_fail(c, BAD_REQUEST, 0);
        return;
    }
    shutting = c;
    kill_at = now + HELPERS_WITHIN;
    c->mode = HOLDING;
    connections_shut(c);
    due(now);
}

void door_tick(void) {
    if (!shutting) {
        if (at.sun_path[0] && !connections_are_taken())
            try_to_open();
        return;
    }
    if (helpers_running() || commands_beginning()) {
        kill_helpers(WATCHING); /* they would never end by themselves */
        if (now >= kill_at)
            kill_helpers(BRIEF);
        due(now + 1);
        return;
    }
    struct connection *c = shutting;
    shutting = NULL;
    if (connection_is_there(c))
        connection_reply(c, DONE, NULL, 0);
    due(now + TRY_AGAIN);
}
