/* SIGBUS guard: the handler and each thread's stack of frames. */
#include "guard.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

#include "memory.h"

static _Thread_local struct guard_frame *innermost;
static _Thread_local bool handing_on;

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;

void guard_push(struct guard_frame *frame, struct vipsec_memory *memory) {
    frame->memory = memory;
    frame->outer = innermost;
    frame->top = &innermost;
    innermost = frame;
    __asm__ volatile("" : : : "memory");
}

/* What is not ours: as if this handler were not there. */
static void hand_on(int number, siginfo_t *info, void *context) {
    const bool again = handing_on; /* the previous handler has come back to us: no handler wants it */
    if (!again && (previous.sa_flags & SA_SIGINFO) != 0) {
        handing_on = true;
        previous.sa_sigaction(number, info, context);
        handing_on = false;
    } else if (!again && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        handing_on = true;
        previous.sa_handler(number);
        handing_on = false;
    } else {
        /* Back to the instruction, which faults again and ends the process where it is to blame. */
        signal(number, SIG_DFL);
        if (info->si_code <= 0) {
            raise(number);
        }
    }
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    if (info->si_code > 0) { /* an access of this thread, not kill() */
        for (struct guard_frame *frame = innermost; frame != NULL; frame = frame->outer) {
            if (memory_owns(frame->memory, info->si_addr)) {
                innermost = frame->outer;
                atomic_store_explicit(&frame->memory->failed, true, memory_order_release);
                siglongjmp(frame->env, 1);
            }
        }
    }
    hand_on(number, info, context);
}

bool guard_install(void) {
    struct sigaction now, ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask); /* with NODEFER: a jump out of the handler leaves no signal blocked */
    pthread_mutex_lock(&installing);
    bool done = sigaction(SIGBUS, NULL, &now) == 0;
    if (done && ((now.sa_flags & SA_SIGINFO) == 0 || now.sa_sigaction != on_bus_error)) {
        previous = now;
        done = sigaction(SIGBUS, &ours, NULL) == 0;
    }
    pthread_mutex_unlock(&installing);
    return done;
}
