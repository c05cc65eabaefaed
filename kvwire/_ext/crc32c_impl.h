/* CRC32C (Castagnoli, RFC 3720 appendix B.4), the fastest implementation that this CPU runs.
 *
 * Every extension module that includes this compiles its own copy of crc32c_impl.c: tables and choice are made
 * once, when the module is loaded, and are read-only afterwards unless kvwire_crc32c_select() is called.
 * All functions may be called from any thread and never need the GIL. */
#ifndef KVWIRE_CRC32C_IMPL_H
#define KVWIRE_CRC32C_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* `crc` is the finalised value of the bytes so far (0 before the first), and so is the result. */
typedef uint32_t (*kvwire_crc32c_fn)(uint32_t crc, const void *data, size_t n);

uint32_t kvwire_crc32c(uint32_t crc, const void *data, size_t n);

/* Names of the implementations that this CPU runs, best first; NULL past the last one. */
const char *kvwire_crc32c_name(size_t index);

/* The implementation of that name, or NULL where it is unknown or this CPU does not run it. */
kvwire_crc32c_fn kvwire_crc32c_find(const char *name);

/* Makes kvwire_crc32c() of this module use that implementation; -1 (and no change) where find() gives NULL. */
int kvwire_crc32c_select(const char *name);

const char *kvwire_crc32c_selected(void);

#endif
