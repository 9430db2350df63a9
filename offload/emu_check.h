/* offload/emu_check.h - who may touch which bytes: accesses of memory by operations of queues and
 * by the driver, and what orders them. Private to offload/ and to tests.
 * Each actor (the driver, each queue) has a vector clock (Mattern 1989; Fidge 1988): how many
 * operations of every actor are known to be over when its next one starts. Two accesses of the same
 * bytes, one of them a write, need an order. All of it is decided when work is submitted, so what
 * is found does not depend on how fast anything runs.
 * Owns tables of numbers. Must not touch the memory in question. Threads: one. Units: bytes.
 * Tested by tests/t_emu.c. */
#ifndef EMU_CHECK_H
#define EMU_CHECK_H

#include "runtime/base/sl_base.h"

enum { EMU_ACTORS = 8, EMU_DRIVER = 0 };    /* the others are queues */

typedef struct emu_clock { uint64_t at[EMU_ACTORS]; } emu_clock;
typedef struct emu_check emu_check;

typedef enum emu_kind { EMU_DEVICE, EMU_HOST } emu_kind;    /* of memory */

emu_check *emu_check_create(void);          /* NULL: no memory */
void emu_check_destroy(emu_check **c);

/* What was done wrong first, in one line; NULL: nothing. All later calls do nothing then. */
const char *emu_check_error(const emu_check *c);

/* Memory that others may use from now on. `what` names it; it must stay. */
void emu_check_add(emu_check *c, const void *p, size_t bytes, emu_kind kind, const char *what);
/* The driver takes it back: a write of all of it. */
void emu_check_remove(emu_check *c, const void *p);
/* Is [p, p + bytes) within memory of that kind? */
bool emu_check_knows(const emu_check *c, const void *p, size_t bytes, emu_kind kind);
/* What was added and not removed: how many, and one of them in words. */
uint32_t emu_check_left(const emu_check *c, char *text, size_t room);

/* A queue gets one more operation: what the driver did is ordered before it. what[EMU_DRIVER] and
 * the like name actors in messages. */
void emu_check_submit(emu_check *c, uint32_t actor, const char *what);
/* The operation that the actor got last (the driver: this call) reads or writes bytes; `what` names
 * them. Memory of the device must be known; other memory of the host is passed over. */
void emu_check_access(emu_check *c, uint32_t actor, const void *p, size_t bytes, emu_kind kind,
                      bool write, const char *what);

emu_clock emu_check_now(const emu_check *c, uint32_t actor);    /* of an event */
void emu_check_join(emu_check *c, uint32_t actor, const emu_clock *event);  /* waits for it */

#endif
