/* runtime/base/numa.h - private to base: the choice of NUMA nodes, for its test. */
#ifndef NUMA_H
#define NUMA_H

#include <hwloc.h>
#include <stdint.h>

/* Into ret those nodes with memory whose processors meet `cpus`; returns how many. */
uint32_t numa_nodes(hwloc_topology_t topo, hwloc_const_bitmap_t cpus, hwloc_bitmap_t ret);

#endif
