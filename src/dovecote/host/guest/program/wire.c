/* Reading and writing frames, and the names of what went wrong. */
#include <stdlib.h>

#include "guest.h"

uint64_t take(struct input *in, int bytes) {
    if (in->bad || in->end - in->at < bytes) {
        in->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | in->at[i];
    in->at += bytes;
    return value;
}

const char *take_text(struct input *in) {
    uint64_t length = take(in, 4);
    if (in->bad || (uint64_t)(in->end - in->at) <= length || in->at[length] || memchr(in->at, 0, length)) {
        in->bad = true;
        return "";
    }
    const char *text = (const char *)in->at;
    in->at += length + 1;
    return text;
}

static void reserve(struct output *out, size_t more) {
    if (out->length + more <= out->capacity)
        return;
    out->capacity = (out->length + more) * 2;
    out->bytes = must(realloc(out->bytes, out->capacity));
}

void put(struct output *out, uint64_t value, int bytes) {
    reserve(out, bytes);
    for (int i = 0; i < bytes; i++, value >>= 8)
        out->bytes[out->length++] = value & 0xff;
}

void put_text(struct output *out, const char *text) {
    size_t length = strlen(text) + 1;
    put(out, length - 1, 4);
    reserve(out, length);
    memcpy(out->bytes + out->length, text, length);
    out->length += length;
}

void frame_head(uint8_t head[5], uint8_t kind, uint32_t length) {
    for (int i = 0; i < 4; i++)
        head[i] = length >> 8 * i;
    head[4] = kind;
}

char *decimal(char *end, uint64_t value) {
    *end = 0;
    do
        *--end = '0' + value % 10;
    while (value /= 10);
    return end;
}

const char *problem_name(int problem) {
    static const char *const names[] = {
        "", "io", "bad_request", "too_many", "no_such_command", "no_such_user", "bad_cwd", "bad_executable",
        "stdin_closed", "still_running", "not_regular", "no_process", "stalled", "stopping", "no_terminal",
        "too_many_watches",
    };
    return problem > 0 && problem < (int)(sizeof names / sizeof *names) ? names[problem] : "io";
}

const char *errno_name(int error) {
#define NAME(e) case e: return #e;
    switch (error) {
        NAME(EPERM) NAME(ENOENT) NAME(ESRCH) NAME(EINTR) NAME(EIO) NAME(ENXIO) NAME(E2BIG) NAME(ENOEXEC) NAME(EBADF)
        NAME(ECHILD) NAME(EAGAIN) NAME(ENOMEM) NAME(EACCES) NAME(EFAULT) NAME(EBUSY) NAME(EEXIST) NAME(EXDEV)
        NAME(ENODEV) NAME(ENOTDIR) NAME(EISDIR) NAME(EINVAL) NAME(ENFILE) NAME(EMFILE) NAME(ENOTTY) NAME(ETXTBSY)
        NAME(EFBIG) NAME(ENOSPC) NAME(ESPIPE) NAME(EROFS) NAME(EMLINK) NAME(EPIPE) NAME(ENAMETOOLONG) NAME(ENOSYS)
        NAME(ENOTEMPTY) NAME(ELOOP) NAME(EOVERFLOW) NAME(EOPNOTSUPP) NAME(ETIMEDOUT) NAME(ESTALE) NAME(EDQUOT)
        NAME(EPROTO) NAME(ELIBBAD) NAME(ERANGE)
    }
#undef NAME
    return error ? "EUNKNOWN" : "";
}

int failure(uint8_t *payload, size_t room, int problem, int error) {
    struct output out = {payload, 0, room};
    put_text(&out, problem_name(problem));
    put_text(&out, errno_name(error));
    return out.length;
}
