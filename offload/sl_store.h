/* offload/sl_store.h - where tensor bytes are read from: the files of a model, mapped or copied.
 * Owns duplicates of the descriptors and the mappings. Must not parse a file or know what a
 * slice is for. Threads: sl_store_read may run on several threads when each has its own ctx;
 * sl_store_map on one at a time. Units: bytes. Tested by tests/t_store.c. */
#ifndef SL_STORE_H
#define SL_STORE_H

#include "runtime/base/sl_type.h"

typedef struct sl_store sl_store;

typedef struct sl_slice {
    uint32_t file;      /* index in the store */
    sl_type type;
    uint64_t offset, bytes;
} sl_slice;

/* file_bytes: the sizes the files had when their headers were checked; paths name them in
 * messages. Descriptors are duplicated, so the caller may close its own. The ctx must outlive
 * the store, which charges it. Errors: SL_E_ARG (n_files 0), SL_E_IO (dup), SL_E_NOMEM. The
 * caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_store_create(sl_ctx *ctx, const int *fds,
                                              const uint64_t *file_bytes,
                                              const char *const *paths, uint32_t n_files,
                                              sl_store **ret);
SL_API void sl_store_destroy(sl_store **store);     /* *store may be NULL, and is NULL afterwards */

SL_API uint32_t sl_store_n_files(const sl_store *store);
SL_API const char *sl_store_path(const sl_store *store, uint32_t file);
SL_API uint64_t sl_store_file_bytes(const sl_store *store, uint32_t file);

/* The slice's bytes, read-only, until destroy. The first slice of a file maps the whole of it
 * (shared: the page cache's pages) and charges its size to SL_ACC_MAPPED; each slice is asked of
 * the disk ahead of use (MADV_WILLNEED), so a cold model is read once, in the order of these
 * calls. Only for models that fit in memory. A file that shrinks later ends the process with
 * SIGBUS: the documented exception; one that has already another size is refused here.
 * Errors: SL_E_ARG (no such file, or the slice leaves it), SL_E_IO (size changed, mmap failed). */
SL_API SL_NODISCARD sl_status sl_store_map(sl_ctx *ctx, sl_store *store, sl_slice slice,
                                           const void **ret);

/* Copy the slice's bytes to dst, which has room for slice.bytes. Restarts after signals and
 * short reads. Errors: SL_E_ARG as above, SL_E_IO (the read failed, or the file ended early);
 * dst is then undefined. */
SL_API SL_NODISCARD sl_status sl_store_read(sl_ctx *ctx, const sl_store *store, sl_slice slice,
                                            void *dst);

#endif
