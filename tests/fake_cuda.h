/* tests/fake_cuda.h - a CUDA runtime of host threads: streams run copies and the kernels of
 * tests/cuda_shim.h in order, each on a thread of its own; events order them. Device memory ends on
 * an unmapped page, is unmapped when freed, and starts as garbage. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stddef.h>

/* What goes wrong, set by tests while nothing runs. */
typedef struct fake_cuda_faults {
    int no_driver;          /* cudaErrorInsufficientDriver from every call */
    int n_cards;            /* default 1 */
    size_t mem_bytes;       /* of the card; default 4 GiB */
    int no_pinning;         /* cudaHostRegister refuses */
    int fail_launch;        /* the launch after so many fails, and the device with it; 0: none */
} fake_cuda_faults;
extern fake_cuda_faults fake_cuda;

void fake_cuda_reset(void);     /* defaults, and a device that works again */
/* Memory, streams and events that are still there. */
typedef struct fake_cuda_left { size_t allocs, bytes, streams, events, registered; } fake_cuda_left;
void fake_cuda_count(fake_cuda_left *ret);

#endif
