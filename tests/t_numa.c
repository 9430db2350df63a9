/* tests/t_numa.c - which NUMA nodes a block is spread over, on made-up machines; on this one that
 * the block stays usable, and, where there are several nodes, that its pages lie on all of them. */
#include "runtime/base/numa.h"
#include "runtime/base/sl_numa.h"
#include "tests/t.h"

#include <stdlib.h>

static void check_nodes(const char *machine, const char *cpus, const char *want)
{
    hwloc_topology_t topo;
    hwloc_bitmap_t set = hwloc_bitmap_alloc(), got = hwloc_bitmap_alloc();
    char text[64];
    T_NEED(hwloc_topology_init(&topo) == 0 && hwloc_topology_set_synthetic(topo, machine) == 0
               && hwloc_topology_load(topo) == 0,
           "the machine \"%s\"", machine);
    T_NEED(set && got && hwloc_bitmap_list_sscanf(set, cpus) == 0, "processors %s", cpus);
    uint32_t n = numa_nodes(topo, set, got);
    hwloc_bitmap_list_snprintf(text, sizeof text, got);
    T_CHECK(!strcmp(text, want) && n == (uint32_t)hwloc_bitmap_weight(got),
            "\"%s\", processors %s: nodes %s (%u), want %s", machine, cpus, text, n, want);
    hwloc_bitmap_free(set);
    hwloc_bitmap_free(got);
    hwloc_topology_destroy(topo);
}

static void check_block(sl_ctx *ctx)
{
    enum { BYTES = (8 << 20) + 100 };
    void *p = NULL;
    T_NEED(sl_mem_alloc(ctx, SL_ACC_DENSE, BYTES, &p) == SL_OK, "%s", sl_error(ctx));
    unsigned char *b = p;
    uint32_t n = sl_mem_interleave(b + 1, BYTES - 1);
    T_CHECK(n >= 1 && sl_mem_interleave(b, 10) == 1, "%u nodes", n);
    for (size_t i = 0; i < BYTES; i++) b[i] = (unsigned char)(i % 251);
    size_t bad = 0;
    for (size_t i = 0; i < BYTES; i++) bad += b[i] != i % 251;
    T_CHECK(!bad, "%zu bytes changed", bad);
    printf("a block of %d bytes on %u node%s\n", BYTES, n, n == 1 ? "" : "s");
    if (n == 1) goto done;
    hwloc_topology_t topo;
    hwloc_bitmap_t where = hwloc_bitmap_alloc();
    T_NEED(where && hwloc_topology_init(&topo) == 0 && hwloc_topology_load(topo) == 0, "hwloc");
    if (hwloc_get_area_memlocation(topo, b, BYTES, where, HWLOC_MEMBIND_BYNODESET) == 0)
        T_CHECK(hwloc_bitmap_weight(where) == (int)n, "pages on %d nodes, not %u",
                hwloc_bitmap_weight(where), n);
    hwloc_bitmap_free(where);
    hwloc_topology_destroy(topo);
done:
    sl_mem_free(ctx, p);
}

int main(void)
{
    t_begin();
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_nodes("core:4 pu:1", "0-3", "0");
    check_nodes("numa:2 core:4 pu:1", "0-7", "0-1");
    check_nodes("numa:2 core:4 pu:1", "4,6", "1");
    check_nodes("pack:2 numa:2 core:2 pu:2", "0-11", "0-2");
    check_block(ctx);
    sl_ctx_destroy(&ctx);
    return t_end();
}
