/* Listening TCP ports of this network namespace. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

static bool hex(const char **at, const char *end, int digits, uint32_t *value) {
    *value = 0;
    for (int i = 0; i < digits; i++, (*at)++) {
        if (*at >= end)
            return false;
        int c = **at, digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

static void add(struct ports *ports, uint16_t port, bool loopback) {
    for (uint32_t i = 0; i < ports->count; i++)
        if (ports->each[i].port == port) {
            ports->each[i].loopback &= loopback;
            return;
        }
    if (ports->count < sizeof ports->each / sizeof *ports->each) {
        ports->each[ports->count].port = port;
        ports->each[ports->count++].loopback = loopback;
    }
}

/* "  0: 0100007F:1F90 00000000:0000 0A ..." False at the first line that is no listener: the kernel lists them first. */
static bool line(struct ports *ports, const char *at, const char *end, int words) {
    while (at < end && *at != ':')
        at++;
    at++;
    while (at < end && *at == ' ')
        at++;
    uint32_t word[4], port, other, state;
    for (int i = 0; i < words; i++)
        if (!hex(&at, end, 8, &word[i]))
            return true; /* the heading */
    if (at++ >= end || !hex(&at, end, 4, &port) || at++ >= end)
        return true;
    for (int i = 0; i < words; i++)
        if (!hex(&at, end, 8, &other))
            return true;
    if (at++ >= end || !hex(&at, end, 4, &other) || at++ >= end || !hex(&at, end, 2, &state))
        return true;
    if (state != 0x0A)
        return false;
    uint8_t bytes[16];
    memcpy(bytes, word, words * 4);
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff}, one[16] = {[15] = 1};
    bool loopback = words == 1 ? bytes[0] == 127
                               : !memcmp(bytes, one, 16) || (!memcmp(bytes, mapped, 12) && bytes[12] == 127);
    add(ports, port, loopback);
    return true;
}

static void scan(struct ports *ports, const char *path, int words) {
    char buffer[4096];
    size_t kept = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return;
    for (int rounds = 0; rounds < 1024; rounds++) {
        ssize_t got = read(fd, buffer + kept, sizeof buffer - kept);
        if (got <= 0)
            break;
        char *at = buffer, *end = buffer + kept + got, *stop;
        bool more = true;
        while (more && (stop = memchr(at, '\n', end - at))) {
            more = line(ports, at, stop, words);
            at = stop + 1;
        }
        kept = end - at;
        if (!more || kept == sizeof buffer)
            break;
        memmove(buffer, at, kept);
    }
    close(fd);
}

/* Of the kernel's <linux/netlink.h> and <linux/inet_diag.h>, which a C library of its own does not bring. */
enum { SOCK_DIAG = 4, BY_FAMILY = 20, REQUEST_DUMP = 0x301, NL_ERROR = 2, NL_DONE = 3, LISTENING = 1 << 10 };
struct header { uint32_t length; uint16_t type, flags; uint32_t sequence, from; };
struct endpoints { uint16_t port, other_port; uint8_t address[16], other[16]; uint32_t interface, cookie[2]; };
struct question { struct header header; uint8_t family, protocol, extensions, pad; uint32_t states; struct endpoints id; };
struct answer { uint8_t family, state, timer, retransmits; struct endpoints id; };

static bool is_loopback(const struct answer *row) {
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff}, one[16] = {[15] = 1};
    const uint8_t *a = row->id.address;
    return row->family == AF_INET ? a[0] == 127 : !memcmp(a, one, 16) || (!memcmp(a, mapped, 12) && a[12] == 127);
}

/* Asks for listeners alone: reading /proc/net/tcp goes through the whole machine's table of connections. */
static bool dump(struct ports *ports, int fd, uint8_t family) {
    struct question ask = {.header = {sizeof ask, BY_FAMILY, REQUEST_DUMP, 1, 0},
                           .family = family, .protocol = IPPROTO_TCP, .states = LISTENING};
    if (send(fd, &ask, sizeof ask, MSG_DONTWAIT) != sizeof ask)
        return false;
    union { char bytes[8192]; struct header first; } buffer;
    for (int rounds = 0; rounds < 1024; rounds++) {
        ssize_t got = recv(fd, &buffer, sizeof buffer, MSG_DONTWAIT);
        if (got <= 0)
            return false;
        for (char *at = buffer.bytes, *end = at + got; end - at >= (ptrdiff_t)sizeof(struct header);) {
            struct header *message = (struct header *)at;
            if (message->length < sizeof *message || message->length > (size_t)(end - at) || message->type == NL_ERROR)
                return false;
            if (message->type == NL_DONE)
                return true;
            struct answer *row = (struct answer *)(message + 1);
            if (message->length >= sizeof *message + sizeof *row)
                add(ports, ntohs(row->id.port), is_loopback(row));
            at += (message->length + 3) & ~3u;
        }
    }
    return false;
}

static bool ask_kernel(struct ports *ports) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, SOCK_DIAG);
    if (fd < 0)
        return false;
    bool known = dump(ports, fd, AF_INET) && dump(ports, fd, AF_INET6);
    close(fd);
    return known;
}

const struct ports *ports_listening(void) {
    static struct ports ports;
    ports.count = 0;
    if (!ask_kernel(&ports)) { /* a kernel without tcp_diag */
        ports.count = 0;
        scan(&ports, "/proc/net/tcp", 1);
        scan(&ports, "/proc/net/tcp6", 4);
    }
    return &ports;
}

int port_state(const struct ports *ports, uint16_t port) {
    for (uint32_t i = 0; i < ports->count; i++)
        if (ports->each[i].port == port)
            return ports->each[i].loopback ? PORT_LOOPBACK : PORT_OPEN;
    return PORT_CLOSED;
}
