/*
 * SIGBUS guard. The peer that owns a mapping can take its backing away under our hands; the access that
 * follows raises SIGBUS. A frame around every stretch that touches guest memory turns that into a branch:
 *
 *     struct guard_frame frame;
 *     if (guard_enter(&frame, memory) == 0) {
 *         ... guest memory ...
 *         guard_leave(&frame);
 *     } else {
 *         ... it has vanished: memory->failed is set, the frame is left; do not touch guest memory ...
 *     }
 *
 * The second branch is reached by siglongjmp, so inside a frame
 *   - hold no lock, no read section of the SA table and no allocation that only this stretch would release, or note
 *     it where the second branch finds it;
 *   - do not return, break or goto out of it without guard_leave;
 *   - locals that are changed inside and read in the second branch are volatile.
 * Frames nest: a fault goes to the innermost frame whose memory it lies in, frames inside that one are dropped.
 * The kernel mask of signals is not restored: do not change it inside a frame. Entering costs a few nanoseconds.
 */
#ifndef VIPSEC_GUARD_H
#define VIPSEC_GUARD_H

#include <setjmp.h>
#include <stdbool.h>

struct vipsec_memory;

struct guard_frame {
    sigjmp_buf env;
    struct vipsec_memory *memory;
    struct guard_frame *outer;
    struct guard_frame **top; /* this thread's innermost frame */
};

/* A macro because the function that sets the jump must not have returned when it is taken. */
#define guard_enter(frame, guarded) (guard_push((frame), (guarded)), sigsetjmp((frame)->env, 0))

/* Puts the handler in front of the present one, unless it is there. False when the system refuses. */
bool guard_install(void);

void guard_push(struct guard_frame *frame, struct vipsec_memory *memory);

static inline void guard_leave(const struct guard_frame *frame) {
    __asm__ volatile("" : : : "memory"); /* accesses of the stretch stay inside the frame */
    *frame->top = frame->outer;
}

#endif
