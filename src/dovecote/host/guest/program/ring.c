/* The latest output of one command, by absolute offset. */
#include <stdlib.h>
#include <sys/mman.h>

#include "guest.h"

#ifndef MADV_DONTFORK
#define MADV_DONTFORK 10
#endif

static size_t total;

static uint32_t most_marks(const struct ring *ring) {
    return ring->limit / 64 < 64 ? 64 : ring->limit / 64;
}

static uint64_t *mark(const struct ring *ring, uint32_t index) {
    return &ring->marks[(ring->mark_first + index) % ring->mark_capacity];
}

static uint64_t mark_end(const struct ring *ring, uint32_t index) {
    return index + 1 < ring->mark_count ? *mark(ring, index + 1) >> 2 : ring->end;
}

static void copy_to(struct ring *ring, uint8_t *bytes, size_t capacity) {
    for (uint64_t at = ring->start; at < ring->end;) {
        size_t from = at % ring->capacity, to = at % capacity, part = ring->end - at;
        if (part > ring->capacity - from)
            part = ring->capacity - from;
        if (part > capacity - to)
            part = capacity - to;
        memcpy(bytes + to, ring->bytes + from, part);
        at += part;
    }
}

static bool grow(struct ring *ring) {
    size_t wanted = ring->capacity ? ring->capacity * 2 : RING_FIRST;
    if (wanted > ring->limit)
        wanted = ring->limit;
    while (ring->capacity && total + wanted - ring->capacity > RING_TOTAL)
        if (!commands_make_memory())
            return false;
    /* Not in forked children: it is other commands' output, and page tables would make forks slow. */
    uint8_t *bytes = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        return false;
    madvise(bytes, wanted, MADV_DONTFORK);
    if (ring->bytes) {
        copy_to(ring, bytes, wanted);
        munmap(ring->bytes, ring->capacity);
    }
    total += wanted - ring->capacity;
    ring->bytes = bytes;
    ring->capacity = wanted;
    return true;
}

static void drop(struct ring *ring, uint64_t to) {
    ring->start = to;
    while (ring->mark_count && mark_end(ring, 0) <= to) {
        ring->mark_first = (ring->mark_first + 1) % ring->mark_capacity;
        ring->mark_count--;
    }
}

int ring_room(struct ring *ring, uint64_t unread, struct iovec parts[2]) {
    if (ring->mark_count >= most_marks(ring)) { /* many tiny pieces from both streams in turn */
        uint64_t end = mark_end(ring, ring->mark_count / 4);
        if (end > unread)
            return 0;
        drop(ring, end);
    }
    while (ring->end - ring->start == ring->capacity && ring->capacity < ring->limit && grow(ring))
        ;
    size_t room = ring->capacity - (ring->end - ring->start);
    size_t wanted = ring->capacity / 4 < OUTPUT_CHUNK ? ring->capacity / 4 : OUTPUT_CHUNK;
    if (room < wanted && ring->capacity >= ring->limit && ring->start < unread) {
        uint64_t gain = wanted - room;
        drop(ring, ring->start + (gain < unread - ring->start ? gain : unread - ring->start));
    } else if (!room && ring->start < unread) { /* it may not grow now */
        drop(ring, ring->start + (wanted < unread - ring->start ? wanted : unread - ring->start));
    }
    room = ring->capacity - (ring->end - ring->start);
    if (!room)
        return 0;
    size_t at = ring->end % ring->capacity, first = ring->capacity - at;
    parts[0] = (struct iovec){ring->bytes + at, room < first ? room : first};
    parts[1] = (struct iovec){ring->bytes, room < first ? 0 : room - first};
    return parts[1].iov_len ? 2 : 1;
}

bool ring_add(struct ring *ring, uint8_t stream, size_t count) {
    if (!ring->mark_count || (*mark(ring, ring->mark_count - 1) & 3) != stream) {
        if (ring->mark_count == ring->mark_capacity) {
            uint32_t capacity = ring->mark_capacity ? ring->mark_capacity * 2 : 8;
            uint64_t *marks = malloc(capacity * sizeof *marks);
            if (!marks)
                return false;
            for (uint32_t i = 0; i < ring->mark_count; i++)
                marks[i] = *mark(ring, i);
            free(ring->marks);
            ring->marks = marks;
            ring->mark_capacity = capacity;
            ring->mark_first = 0;
        }
        ring->mark_count++;
        *mark(ring, ring->mark_count - 1) = ring->end << 2 | stream;
    }
    ring->end += count;
    return true;
}

size_t ring_at(const struct ring *ring, uint64_t offset, size_t most, struct iovec parts[2], uint8_t *stream) {
    uint32_t low = 0, high = ring->mark_count; /* the last mark at or before the offset */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (*mark(ring, middle) >> 2 <= offset)
            low = middle;
        else
            high = middle;
    }
    *stream = *mark(ring, low) & 3;
    size_t length = mark_end(ring, low) - offset, at = offset % ring->capacity, first = ring->capacity - at;
    if (length > most)
        length = most;
    parts[0] = (struct iovec){ring->bytes + at, length < first ? length : first};
    parts[1] = (struct iovec){ring->bytes, length < first ? 0 : length - first};
    return length;
}

void ring_free(struct ring *ring) {
    if (ring->bytes)
        munmap(ring->bytes, ring->capacity);
    total -= ring->capacity;
    free(ring->marks);
    ring->bytes = NULL;
    ring->marks = NULL;
    ring->capacity = ring->mark_count = ring->mark_capacity = 0;
    ring->start = ring->end;
}
