/* runtime/base/numa.c - memory policy of a block, through hwloc. */
#include "runtime/base/sl_numa.h"
#include "runtime/base/numa.h"

#include <unistd.h>

uint32_t numa_nodes(hwloc_topology_t topo, hwloc_const_bitmap_t cpus, hwloc_bitmap_t ret)
{
    uint32_t n = 0;
    hwloc_bitmap_zero(ret);
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(topo, HWLOC_OBJ_NUMANODE, o));) {
        if (!o->attr->numanode.local_memory || !hwloc_bitmap_intersects(o->cpuset, cpus)) continue;
        hwloc_bitmap_set(ret, o->os_index);
        n++;
    }
    return n;
}

/* Needs a loaded topology and two empty sets. */
static uint32_t interleave(hwloc_topology_t topo, hwloc_bitmap_t cpus, hwloc_bitmap_t nodes,
                           uintptr_t first, uintptr_t end)
{
    if (hwloc_get_cpubind(topo, cpus, HWLOC_CPUBIND_THREAD) < 0)
        hwloc_bitmap_copy(cpus, hwloc_topology_get_allowed_cpuset(topo));
    uint32_t n = numa_nodes(topo, cpus, nodes);
    hwloc_bitmap_and(nodes, nodes, hwloc_topology_get_allowed_nodeset(topo));
    if (n < 2 || hwloc_bitmap_weight(nodes) != (int)n) return 1;
    return hwloc_set_area_membind(topo, (void *)first, end - first, nodes,
                                  HWLOC_MEMBIND_INTERLEAVE, HWLOC_MEMBIND_BYNODESET)
                 < 0 ? 1 : n;
}

uint32_t sl_mem_interleave(void *p, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)p + bytes) / page * page;
    hwloc_topology_t topo;
    uint32_t ret = 1;
    if (first >= end || hwloc_topology_init(&topo) < 0) return 1;
    hwloc_topology_set_all_types_filter(topo, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_bitmap_t cpus = hwloc_bitmap_alloc(), nodes = hwloc_bitmap_alloc();
    if (cpus && nodes && hwloc_topology_load(topo) == 0)
        ret = interleave(topo, cpus, nodes, first, end);
    hwloc_bitmap_free(cpus);
    hwloc_bitmap_free(nodes);
    hwloc_topology_destroy(topo);
    return ret;
}
