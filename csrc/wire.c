/* A wire inside the process: what one port's workers send waits here until a worker of another port takes it. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "port.h"
#include "vipsec.h"

enum {
    WIRE_OCTETS = 1 << 23, /* of all that waits, lengths among them; a power of two */
    WIRE_FRAMES = 4096,
    SCRATCH = 1 << 18, /* of one burst that is taken */
    LONGEST = 1 << 17,
};

struct vipsec_wire {
    pthread_mutex_t lock;
    uint64_t written, read; /* octets since the beginning */
    uint32_t waiting;       /* frames */
    int ready;              /* an eventfd, readable while frames wait; -1: closed */
    struct vipsec_wire_counts counts;
    uint8_t *octets;  /* each frame behind its length */
    uint8_t *scratch; /* frames that were taken last */
};

struct vipsec_wire *vipsec_wire_new(void) {
    struct vipsec_wire *wire = calloc(1, sizeof *wire);
    if (wire == NULL) {
        return NULL;
    }
    wire->octets = malloc(WIRE_OCTETS); /* pages that no frame needs are never touched */
    wire->scratch = malloc(SCRATCH);
    wire->ready = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wire->octets == NULL || wire->scratch == NULL || wire->ready < 0 ||
        pthread_mutex_init(&wire->lock, NULL) != 0) {
        free(wire->octets);
        free(wire->scratch);
        if (wire->ready >= 0) {
            close(wire->ready);
        }
        free(wire);
        return NULL;
    }
    return wire;
}

int vipsec_wire_fd(const struct vipsec_wire *wire) { return wire->ready; }

static void copy_in(struct vipsec_wire *wire, uint64_t at, const void *from, size_t len) {
    const size_t begin = at % WIRE_OCTETS, first = len < WIRE_OCTETS - begin ? len : WIRE_OCTETS - begin;
    memcpy(wire->octets + begin, from, first);
    memcpy(wire->octets, (const uint8_t *)from + first, len - first);
}

static void copy_out(const struct vipsec_wire *wire, uint64_t at, void *to, size_t len) {
    const size_t begin = at % WIRE_OCTETS, first = len < WIRE_OCTETS - begin ? len : WIRE_OCTETS - begin;
    memcpy(to, wire->octets + begin, first);
    memcpy((uint8_t *)to + first, wire->octets, len - first);
}

static bool has_room(const struct vipsec_wire *wire, uint32_t len) {
    return wire->ready >= 0 && wire->waiting < WIRE_FRAMES && len <= LONGEST &&
           sizeof len + len <= WIRE_OCTETS - (wire->written - wire->read);
}

size_t vipsec_wire_put(struct vipsec_wire *wire, const struct vipsec_frame *frames, size_t count) {
    pthread_mutex_lock(&wire->lock);
    const bool was_empty = wire->waiting == 0;
    size_t done = 0;
    for (; done < count && has_room(wire, frames[done].len); done++) {
        const uint32_t len = frames[done].len;
        copy_in(wire, wire->written, &len, sizeof len);
        copy_in(wire, wire->written + sizeof len, frames[done].data, len);
        wire->written += sizeof len + len;
        wire->waiting++;
        wire->counts.put_octets += len;
    }
    wire->counts.put_frames += done;
    wire->counts.refused += count - done;
    if (was_empty && done != 0) {
        eventfd_write(wire->ready, 1);
    }
    pthread_mutex_unlock(&wire->lock);
    return done;
}

size_t vipsec_wire_take(struct vipsec_wire *wire, struct vipsec_frame *frames, size_t most) {
    size_t done = 0, used = 0;
    pthread_mutex_lock(&wire->lock);
    while (done < most && wire->waiting != 0) {
        uint32_t len;
        copy_out(wire, wire->read, &len, sizeof len);
        if (len > SCRATCH - used) {
            break;
        }
        copy_out(wire, wire->read + sizeof len, wire->scratch + used, len);
        frames[done++] = (struct vipsec_frame){.data = wire->scratch + used, .len = len};
        used += len;
        wire->read += sizeof len + len;
        wire->waiting--;
        wire->counts.taken_octets += len;
    }
    wire->counts.taken_frames += done;
    if (done != 0 && wire->waiting == 0 && wire->ready >= 0) {
        eventfd_t told;
        eventfd_read(wire->ready, &told);
    }
    pthread_mutex_unlock(&wire->lock);
    return done;
}

size_t vipsec_worker_take(struct vipsec_worker *worker, struct vipsec_wire *wire, size_t most) {
    struct vipsec_frame frames[PORT_BATCH];
    size_t done = 0, batch;
    do {
        const size_t left = most - done;
        batch = vipsec_wire_take(wire, frames, left < PORT_BATCH ? left : PORT_BATCH);
        vipsec_worker_receive(worker, frames, batch);
        done += batch;
    } while (batch != 0 && done < most);
    return done;
}

void vipsec_uplink_wire(void *user, struct vipsec_frame *frames, size_t count) { vipsec_wire_put(user, frames, count); }

void vipsec_wire_read(struct vipsec_wire *wire, struct vipsec_wire_counts *out) {
    pthread_mutex_lock(&wire->lock);
    *out = wire->counts;
    pthread_mutex_unlock(&wire->lock);
}

void vipsec_wire_close(struct vipsec_wire *wire) {
    pthread_mutex_lock(&wire->lock);
    if (wire->ready >= 0) {
        close(wire->ready);
        wire->ready = -1;
    }
    wire->read = wire->written;
    wire->waiting = 0;
    pthread_mutex_unlock(&wire->lock);
}

void vipsec_wire_free(struct vipsec_wire *wire) {
    if (wire == NULL) {
        return;
    }
    vipsec_wire_close(wire);
    /* What guests have sent in the clear went through them. */
    vipsec_wipe(wire->octets, wire->written < WIRE_OCTETS ? (size_t)wire->written : WIRE_OCTETS);
    vipsec_wipe(wire->scratch, SCRATCH);
    free(wire->octets);
    free(wire->scratch);
    pthread_mutex_destroy(&wire->lock);
    free(wire);
}
