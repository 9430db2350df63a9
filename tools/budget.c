/* tools/budget.c - how much memory this process may take now. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/session.h"

/* The number in the first line of a file; false for "max", no file, or anything else. */
static bool read_u64(const char *path, uint64_t *ret)
{
    FILE *in = fopen(path, "r");
    if (!in) return false;
    bool ok = fscanf(in, "%" SCNu64, ret) == 1;
    fclose(in);
    return ok;
}

/* MemAvailable of /proc/meminfo: free memory and what the kernel can drop without swapping. */
static uint64_t mem_available(void)
{
    FILE *in = fopen("/proc/meminfo", "r");
    if (!in) return 0;
    char line[256];
    uint64_t kib = 0;
    while (fgets(line, sizeof line, in))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1) break;
    fclose(in);
    return kib * 1024;
}

/* What the group at root + path and every group above it leave: limit minus use, least of all. Page
 * cache counts as use there but can be dropped, so inactive file pages are given back. */
static uint64_t group_leaves(const char *root, const char *path, const char *limit_name,
                             const char *use_name)
{
    char dir[512], file[640], line[256];
    uint64_t least = UINT64_MAX;
    if (snprintf(dir, sizeof dir, "%s%s", root, path) >= (int)sizeof dir) return least;
    for (;;) {
        uint64_t limit, use = 0, cache = 0;
        snprintf(file, sizeof file, "%s/%s", dir, limit_name);
        if (read_u64(file, &limit) && limit < (uint64_t)1 << 62) {  /* v1: 2^63 for none */
            snprintf(file, sizeof file, "%s/%s", dir, use_name);
            if (!read_u64(file, &use)) use = 0;
            snprintf(file, sizeof file, "%s/memory.stat", dir);
            FILE *in = fopen(file, "r");
            while (in && fgets(line, sizeof line, in))
                if (sscanf(line, "inactive_file %" SCNu64, &cache) == 1) break;
            if (in) fclose(in);
            use -= SL_MIN(use, cache);
            least = SL_MIN(least, limit - SL_MIN(limit, use));
        }
        char *slash = strrchr(dir + strlen(root), '/');
        if (!slash) return least;
        *slash = 0;
    }
}

uint64_t cli_available_bytes(void)
{
    uint64_t bytes = mem_available(), left = UINT64_MAX;
    FILE *in = fopen("/proc/self/cgroup", "r");
    char line[512];
    while (in && fgets(line, sizeof line, in)) {
        line[strcspn(line, "\n")] = 0;
        char *path = strrchr(line, ':');
        if (!path) continue;
        path++;
        if (!strcmp(path, "/")) path = (char *)"";
        if (!strncmp(line, "0::", 3))
            left = SL_MIN(left, group_leaves("/sys/fs/cgroup", path, "memory.max",
                                             "memory.current"));
        else if (strstr(line, ":memory:"))
            left = SL_MIN(left, group_leaves("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                             "memory.usage_in_bytes"));
    }
    if (in) fclose(in);
    return bytes ? SL_MIN(bytes, left) : left == UINT64_MAX ? 0 : left;
}

/* Files that code is mapped from, whole: the kernel reads ahead of a page fault, and a group that
 * runs the program first is charged all that it read. */
static uint64_t program_bytes(void)
{
    FILE *in = fopen("/proc/self/maps", "r");
    char line[4352], last[4096] = "";
    uint64_t bytes = 0;
    while (in && fgets(line, sizeof line, in)) {
        struct stat info;
        char *path = strchr(line, '/'), *mode = strchr(line, ' ');
        line[strcspn(line, "\n")] = 0;
        if (!path || !mode || mode[3] != 'x' || !strcmp(path, last) || stat(path, &info)) continue;
        snprintf(last, sizeof last, "%s", path);    /* a file's mappings stand together */
        bytes += (uint64_t)info.st_size;
    }
    if (in) fclose(in);
    return bytes;
}

uint64_t cli_held_bytes(void)
{
    uint64_t resident = 0, of_files = 0;
    FILE *in = fopen("/proc/self/statm", "r");
    if (!in) return 0;
    if (fscanf(in, "%*s %" SCNu64 " %" SCNu64, &resident, &of_files) != 2) resident = of_files = 0;
    fclose(in);
    return (resident - SL_MIN(of_files, resident)) * (uint64_t)sysconf(_SC_PAGESIZE)
         + program_bytes();
}
