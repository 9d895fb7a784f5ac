/* The last step of the receive path: frames into receive queues. */
#ifndef VIPSEC_DELIVER_H
#define VIPSEC_DELIVER_H

#include "port.h"

/* Puts worker->ready into the receive queues, in order, and tells their drivers. Outside locks and read sections. */
void deliver_ready(struct vipsec_worker *worker);

#endif
