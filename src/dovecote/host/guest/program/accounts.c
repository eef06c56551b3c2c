/* Users and groups of the sandbox's own /etc, parsed by hand: any libc, any content. */
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { MOST_BYTES = 1 << 20 };

static char *slurp(const char *path) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    struct stat st;
    char *text = NULL;
    if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size <= MOST_BYTES) {
        text = must(malloc(st.st_size + 1));
        ssize_t got = read(fd, text, st.st_size);
        text[got > 0 ? got : 0] = 0;
    }
    if (fd >= 0)
        close(fd);
    return text;
}

/* The next line's fields, cut in place. */
static int fields(char **rest, char *field[], int most) {
    char *at = *rest;
    if (!at || !*at)
        return 0;
    char *end = strchr(at, '\n');
    *rest = end ? end + 1 : NULL;
    if (end)
        *end = 0;
    int count = 0;
    for (; count < most; count++) {
        field[count] = at;
        char *colon = count + 1 < most ? strchr(at, ':') : NULL;
        if (!colon)
            return count + 1;
        *colon = 0;
        at = colon + 1;
    }
    return count;
}

static bool number(const char *text, uint32_t *value) {
    uint64_t so_far = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || so_far > UINT32_MAX)
            return false;
        so_far = so_far * 10 + (*text - '0');
    }
    *value = so_far;
    return so_far < UINT32_MAX; /* -1 means "leave it" to setuid */
}

static void copy(char *to, size_t room, const char *from) {
    size_t length = strlen(from);
    if (length < room)
        memcpy(to, from, length + 1);
}

static bool passwd(const char *name, bool is_number, uint32_t uid, struct account *account) {
    char *field[7], *text = slurp("/etc/passwd");
    bool found = false;
    for (char *rest = text; !found && rest && *rest;) {
        uint32_t its_uid, its_gid;
        int count = fields(&rest, field, 7);
        if (count < 6 || !number(field[2], &its_uid) || !number(field[3], &its_gid))
            continue;
        if (is_number ? its_uid != uid : strcmp(field[0], name))
            continue;
        found = true;
        account->uid = its_uid;
        account->gid = its_gid;
        copy(account->name, sizeof account->name, field[0]);
        if (field[5][0] == '/')
            copy(account->home, sizeof account->home, field[5]);
        if (count == 7 && field[6][0] == '/')
            copy(account->shell, sizeof account->shell, field[6]);
    }
    free(text);
    return found;
}

static bool is_member(char *members, const char *name) {
    for (char *next; members; members = next) {
        next = strchr(members, ',');
        if (next)
            *next++ = 0;
        if (!strcmp(members, name))
            return true;
    }
    return false;
}

/* Supplementary groups; with `wanted`, only that group's number. */
static bool groups(struct account *account, const char *wanted) {
    char *field[4], *text = slurp("/etc/group");
    bool found = false;
    for (char *rest = text; rest && *rest;) {
        uint32_t gid;
        int count = fields(&rest, field, 4);
        if (count < 3 || !number(field[2], &gid))
            continue;
        if (wanted) {
            if (!found && !strcmp(field[0], wanted)) {
                account->gid = gid;
                found = true;
            }
        } else if (count == 4 && account->name[0] && account->group_count < 64 && is_member(field[3], account->name)) {
            account->groups[account->group_count++] = gid;
        }
    }
    free(text);
    return found;
}

/* -- names for numbers, each looked up once a call */

enum { REMEMBERED = 64, MOST_NAME = 64 };
static struct { uint32_t id; bool of_group; char name[MOST_NAME]; } remembered[REMEMBERED];
static int remembered_count;

static void look_up(uint32_t id, bool of_group, char name[MOST_NAME]) {
    char *field[4], *text = slurp(of_group ? "/etc/group" : "/etc/passwd");
    uint32_t its_id;
    for (char *rest = text; rest && *rest && !*name;)
        if (fields(&rest, field, 4) >= 3 && number(field[2], &its_id) && its_id == id)
            copy(name, MOST_NAME, field[0]);
    free(text);
}

const char *account_name(uint32_t id, bool of_group) {
    for (int i = 0; i < remembered_count && i < REMEMBERED; i++)
        if (remembered[i].id == id && remembered[i].of_group == of_group)
            return remembered[i].name;
    int at = remembered_count++ % REMEMBERED;
    remembered[at].id = id;
    remembered[at].of_group = of_group;
    *remembered[at].name = 0;
    look_up(id, of_group, remembered[at].name);
    return remembered[at].name;
}

int account_find(const char *user, struct account *account) {
    *account = (struct account){.home = "/", .shell = "/bin/sh"};
    char name[128];
    const char *colon = strchr(user, ':');
    size_t length = colon ? (size_t)(colon - user) : strlen(user);
    if (!length || length >= sizeof name)
        return NO_SUCH_USER;
    memcpy(name, user, length);
    name[length] = 0;
    uint32_t value = 0;
    bool is_number = number(name, &value);
    if (!passwd(name, is_number, value, account)) {
        if (!is_number)
            return NO_SUCH_USER;
        account->uid = account->gid = value; /* a number needs no entry */
    }
    if (!account->name[0])
        copy(account->name, sizeof account->name, name);
    groups(account, NULL);
    if (colon && number(colon + 1, &value))
        account->gid = value;
    else if (colon && !groups(account, colon + 1))
        return NO_SUCH_USER;
    return 0;
}

int account_become(const struct account *account) {
    if (geteuid() != 0) /* as in a test: only itself */
        return account->uid == geteuid() ? 0 : EPERM;
    if (setgroups(account->group_count, account->groups) || setresgid(account->gid, account->gid, account->gid) ||
        setresuid(account->uid, account->uid, account->uid))
        return errno;
    return getuid() == account->uid && getgid() == account->gid ? 0 : EPERM;
}
