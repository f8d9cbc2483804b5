/* What `layers.kernels.cpu` compares with Python's declaration of a struct: its size and its last field's offset. */

#include <stddef.h>
#include <stdint.h>

#define EXPORT_LAYOUT(type, last)                                                               \
    const char *last_field(void) { return #last; }                                              \
    int64_t layout(int of_last) { return of_last ? (int64_t)offsetof(type, last) : (int64_t)sizeof(type); }
