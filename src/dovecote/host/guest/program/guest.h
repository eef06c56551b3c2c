/* What the parts of the guest share: bounds, the wire, the event loop, and who owns what. docs/reference/guest-protocol.md */
#ifndef GUEST_H
#define GUEST_H
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    PROTOCOL_VERSION = 2,
    MAX_FRAME = 1 << 20,
    MAX_INPUT_TOTAL = 16 << 20, /* bytes of requests being received, over all connections */
    MAX_CONNECTIONS = 1024,
    MAX_RUNNING = 512,
    MAX_FINISHED = 256,
    MAX_LEFT_OPEN = 256, /* forgotten commands whose descendants still hold their pipes */
    MAX_HELPERS = 128,
    MAX_WATCHERS = 64,
    MAX_TAG = 128,
    OUTPUT_CHUNK = 32 << 10,
    RING_FIRST = 16 << 10,
    RING_DEFAULT = 1 << 20,
    RING_MAX = 16 << 20,
    RING_TOTAL = 64 << 20,
    REQUEST_WITHIN = 10000, /* ms for a request to arrive, and for the rest of any frame */
};

#ifndef STALLED_AFTER
#define STALLED_AFTER 30000 /* ms without progress after which a slow reader or writer is dropped */
#endif

/* Frames: u32 length of the payload, u8 kind, payload; little endian. Texts are u32 length, bytes, a NUL. */
enum kind {
    HELLO = 1, START, ATTACH, LIST, SIGNAL, STDIN, RESIZE, RELEASE,
    READ, WRITE, STAT, LIST_DIR, MAKE_DIR, REMOVE, RENAME,
    PORTS, WAIT_PORT, SYNC, SHUTDOWN, WATCH, LINK, ALTER,
    SUSPEND = 31,
    DATA = 32, END, CLOSE,
    IS_HELLO = 128, STARTED, OUTPUT, DROPPED, EXITED, DONE, FAILED, COMMANDS, CONTENT, CONTENT_END, ENTRIES,
    IS_PORTS, IS_PORT, CHANGED,
};

enum { START_DETACHED = 1, START_STDIN = 2, START_PTY = 4, START_FORGET = 8 };

/* What went wrong, beside an errno. Names are in wire.c. */
enum problem {
    IO = 1, BAD_REQUEST, TOO_MANY, NO_SUCH_COMMAND, NO_SUCH_USER, BAD_CWD, BAD_EXECUTABLE, STDIN_CLOSED, STILL_RUNNING,
    NOT_REGULAR, NO_PROCESS, STALLED, STOPPING, NO_TERMINAL, TOO_MANY_WATCHES,
};

/* -- wire.c */

struct input { const uint8_t *at, *end; bool bad; };
uint64_t take(struct input *in, int bytes);
const char *take_text(struct input *in);
struct output { uint8_t *bytes; size_t length, capacity; };
void put(struct output *out, uint64_t value, int bytes);
void put_text(struct output *out, const char *text);
const char *problem_name(int problem);
const char *errno_name(int error);
int failure(uint8_t *payload, size_t room, int problem, int error);
void frame_head(uint8_t head[5], uint8_t kind, uint32_t length);
char *decimal(char *end, uint64_t value); /* writes before `end`, which gets a NUL; returns the first digit */

/* -- loop.c */

struct watch {
    int fd;
    uint32_t events; /* what epoll was asked for; 0 is not registered */
    void (*ready)(struct watch *, uint32_t events);
};
struct dead { struct dead *next; };
extern uint64_t now; /* ms since the guest began; stands still while the sandbox is frozen */
void loop_open(void);
noreturn void loop_run(void);
bool watch_for(struct watch *, uint32_t events);
void watch_or_retry(struct watch *, uint32_t events); /* the owner's tick tries again */
void watch_close(struct watch *);
void bury(struct dead *); /* freed after the events at hand; must be the first member of what malloc gave */
void due(uint64_t at);    /* the ticks run at `at` or sooner */
noreturn void *out_of_memory(void);
void *must(void *memory);
void reap_again(void);
void helper_exited(pid_t pid);
pid_t fork_child(void);   /* with a clean signal state in the child */
enum helper { BRIEF, WATCHING, HELPER_KINDS };
pid_t fork_helper(enum helper, int keep_fd); /* counted (EUSERS: too many), with no descriptor but `keep_fd`, as 3 */
int helpers_running(void);
void kill_helpers(enum helper);
uint64_t wall_ms(void);

/* -- connections.c */

enum mode { REQUESTING, STARTING, STREAMING, FEEDING, WAITING_FOR_PORT, LEAVING, HOLDING };
struct command;
struct connection {
    struct dead dead;
    struct watch watch;
    struct connection *next;
    enum mode mode;
    uint8_t head[5];
    size_t head_length;
    uint8_t *body;
    size_t body_length, body_capacity;
    struct output out;
    size_t out_sent;
    struct command *command;
    uint64_t offset;      /* of the next byte of output that the client has not got */
    uint64_t progress_at; /* when its socket last took something */
    uint64_t deadline;    /* 0 is none */
    uint8_t *pending;     /* input for the command */
    size_t pending_length, pending_sent;
    bool may_feed, forget, detached;
    uint16_t port;
    uint64_t loopback_since;
};
extern struct connection *connections;
void connections_listen(int fd);
bool connections_are_taken(void);
void connections_shut(struct connection *but);
void connections_tick(void);
bool connection_send(struct connection *, uint8_t kind, const struct iovec *parts, int count);
void connection_reply(struct connection *, uint8_t kind, const void *payload, size_t length); /* then closes */
void connection_fail(struct connection *, int problem, int error);                            /* then closes */
void connection_close(struct connection *);
void connection_update(struct connection *);
bool connection_open(const struct connection *);
bool connection_is_there(const struct connection *); /* also of one that may have been freed */
void connection_fed(struct connection *);
void connection_wait_port(struct connection *, uint16_t port, uint32_t timeout_ms);

/* -- door.c */

bool door_open(const char *path);
void door_shut(struct connection *); /* it gets the answer */
void door_tick(void);

/* -- guest.c */

void request(struct connection *, uint8_t kind, struct input *in);
void reap(void);
void stop(uint64_t grace);
void stop_tick(void);
bool is_stopping(void);

/* -- ring.c */

struct ring {
    uint8_t *bytes;
    size_t capacity, limit;
    uint64_t start, end; /* offsets of the first byte kept and of the next to come */
    uint64_t *marks;     /* where a stream begins: offset << 2 | stream */
    uint32_t mark_first, mark_count, mark_capacity;
};
/* Room for new bytes. Those below `unread` may be dropped for it. Zero means that a reader must read first. */
int ring_room(struct ring *, uint64_t unread, struct iovec parts[2]);
bool ring_add(struct ring *, uint8_t stream, size_t count); /* after that many were written to the room */
/* The bytes at `offset`, of one stream and at most `most`. */
size_t ring_at(const struct ring *, uint64_t offset, size_t most, struct iovec parts[2], uint8_t *stream);
void ring_free(struct ring *);

/* -- commands.c */

struct source {
    struct watch watch;
    struct command *command;
    uint8_t stream;
    bool drained;
    size_t left; /* bytes that it held when the command exited */
};
enum state { BEGINNING, RUNNING, DRAINING, FINISHED, FORGOTTEN };
struct command {
    struct dead dead;
    struct command *next;
    uint32_t number;
    pid_t pid;
    enum state state;
    bool is_terminal, forget, timed_out;
    int status;
    uint64_t started_ms, deadline;
    uint64_t state_deadline; /* of BEGINNING and DRAINING; 0 is none */
    struct source outputs[2];
    struct source input, verdict;
    struct connection *starter, *writer;
    struct ring ring;
    char tag[MAX_TAG + 1];
};
static inline struct source *source_of(struct watch *watch) { return (struct source *)watch; } /* its first member */
void command_start(struct connection *, struct input *in);
void command_attach(struct connection *, uint32_t number, uint64_t offset);
void commands_list(struct connection *);
void command_signal(struct connection *, uint32_t number, uint32_t signo);
void command_resize(struct connection *, uint32_t number, uint16_t rows, uint16_t cols);
void command_release(struct connection *, uint32_t number);
void command_open_input(struct connection *, uint32_t number);
bool command_exited(pid_t pid, int status);
void command_forget(struct command *);
void command_let_go(struct command *);
void commands_note_finished(void);
bool commands_make_memory(void); /* forgets the oldest finished command; false if there is none */
void commands_tick(void);
uint32_t commands_running(void);
bool commands_beginning(void); /* a child of ours has not become its program yet */
void commands_signal_all(int signo);

/* -- streams.c */

void command_output_ready(struct watch *, uint32_t events);
void command_input_ready(struct watch *, uint32_t events);
void command_tell(struct connection *);                       /* what its reader has not got */
void command_read_on(struct command *, struct connection *);  /* after its reader's socket took something */
void command_go_on(struct command *);
void command_left(struct connection *);                       /* a reader or writer */
void command_drain(struct command *);                         /* after its exit */
void command_finish_if_drained(struct command *);
bool command_is_blocked(const struct command *);              /* by a reader that is behind */
void command_feed(struct command *);
void command_press_end(struct command *);                     /* closes its input, or presses ^D */
void command_end_input(struct command *);

/* -- launch.c */

struct launch {
    const char *user, *cwd;
    const uint8_t *argv, *env; /* texts one after the other, checked */
    uint16_t argc, envc;
    bool is_terminal;
    int in, out, err, verdict; /* `verdict` gets {problem, errno}; its close says that the program runs */
};
struct verdict { int problem, error; };
int launch_open(struct launch *, bool with_input, uint16_t rows, uint16_t cols, int ours[4]);
void launch_close(const struct launch *, const int ours[4]);
noreturn void launch(const struct launch *); /* in the forked child */

/* -- accounts.c: never in PID 1 itself, since files inside may be anything */

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[64];
    int group_count;
    char name[64], home[256], shell[256];
};
int account_find(const char *user, struct account *); /* 0 or a problem */
int account_become(const struct account *);           /* 0 or an errno */
const char *account_name(uint32_t id, bool of_group); /* empty if it has none */

/* -- files.c: in a forked helper, on a socket that may block; so are the files below */

enum { CHUNK = 64 << 10 };
extern char buffer[CHUNK];       /* for whatever a call does at the moment */
extern void (*at_leave)(void);   /* removes what is half done */
noreturn void files_serve(int fd, uint8_t kind, struct input *in);
noreturn void leave(int code);
void reply(uint8_t kind, const void *payload, size_t length);
noreturn void finish(uint8_t kind, const void *payload, size_t length);
noreturn void fail(int problem, int error);
void must_work(int result);      /* or fails with errno */
void receive_all(void *data, size_t length);
void check_client(void);         /* leaves if it has gone */

/* -- attributes.c */

enum { MOST_METADATA = 64, MOST_METADATA_BYTES = 4096, MOST_METADATA_NAME = 64 };
struct metadata {
    uint16_t count;
    struct { const char *name, *value; } each[MOST_METADATA];
};
void metadata_take(struct input *in, struct metadata *);  /* marks `in` as bad if it breaks a rule */
void metadata_put(struct output *out, const char *path, bool follow);
int metadata_replace(int fd, const struct metadata *);    /* 0 or an errno */
void attributes_copy(int from, int to, bool with_metadata); /* those of `user.`; fails when the disk is full */
noreturn void alter(const char *path, int what, mode_t mode, const struct metadata *);

/* -- contents.c */

enum { KEEP_MODE = UINT32_MAX };
noreturn void read_file(const char *path, uint64_t offset, uint64_t length);
noreturn void write_file(const char *path, uint32_t mode, int flags, const struct metadata *);
void write_all(int fd, const char *data, size_t length);
enum { TEMPORARY_LENGTH = 27 };  /* ".dovecote-", 16 digits, and ~ if it will replace a file */
void choose_temporary(const char *target, bool replaces, char temporary[PATH_MAX]);
bool is_temporary(const char *name);

/* -- entries.c */

noreturn void stat_file(const char *path, bool follow);
noreturn void list_dir(const char *path, int depth, uint32_t most, bool follow); /* what is in it is not followed */

/* -- moves.c */

bool make_dirs(char *path, mode_t mode); /* whether the last was not there; fails */
int remove_below(int parent, const char *name, int depth); /* 0 or the first errno */
noreturn void remove_file(const char *path, bool recursive);
noreturn void move_file(const char *from, const char *to);

/* -- changes.c */

noreturn void watch_changes(int peer, const char *path, bool recursive);

/* -- processes.c */

void kill_tree(pid_t leader); /* the session, the group and the descendants, from a helper */

/* -- ports.c */

enum { PORT_CLOSED, PORT_OPEN, PORT_LOOPBACK };
struct ports { uint32_t count; struct { uint16_t port; bool loopback; } each[2048]; };
const struct ports *ports_listening(void);
int port_state(const struct ports *, uint16_t port);

#endif
