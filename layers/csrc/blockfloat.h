/* Rounding to block floating point, to nearest even: the part that C and CUDA share.

   A float32 x is rounded to a multiple of 2^(e - b + 1) by adding and then subtracting the anchor 1.5 * 2^(e - b + 24):
   the sum has no bits below that step, and the processor rounds it to nearest even. So a value costs one addition and
   one subtraction, a block one integer sum on the bit pattern of its largest magnitude.

   A bfloat16 is the upper half of a float32. Rounding adds no digits to it, so the result is a bfloat16 too. */

#ifdef __CUDACC__
#define EACH static __device__ __forceinline__
#else
#include <string.h>
#define EACH static inline
#endif

typedef unsigned int Pattern;

#define NOT_A_NUMBER 0x7fc00000u

EACH Pattern pattern(float value) {
    Pattern bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

EACH float value(Pattern bits) {
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

#ifdef BFLOAT16
typedef unsigned short Stored;

EACH float widened(Stored x) {
    return value((Pattern)x << 16);
}

EACH Stored narrowed(float x) {
    return pattern(x) >> 16;
}
#else
typedef float Stored;

EACH float widened(Stored x) {
    return x;
}

EACH Stored narrowed(float x) {
    return x;
}
#endif

EACH Pattern larger(Pattern magnitude, float x) {
    Pattern other = pattern(x) & 0x7fffffffu;
    return other > magnitude ? other : magnitude;
}

/* The anchor of a block by its largest magnitude: NaN if that is too large; if too small, one that rounds it to 0. */
EACH float anchor(Pattern largest, int bits, int lowest) {
    Pattern drop = 24 - bits;
    Pattern odd = bits == 1 ? 1 : (largest >> drop) & 1; /* the last digit that stays, of one digit the leading one */
    Pattern exponent = (largest + (1u << (drop - 1)) - 1 + odd) >> 23;
    Pattern found = (exponent + drop) << 23 | 0x400000u;
    found = largest < (Pattern)(127 + lowest) << 23 ? (Pattern)(127 + lowest + 25) << 23 | 0x400000u : found;
    return value(exponent >= (Pattern)(127 - lowest) ? NOT_A_NUMBER : found);
}

EACH float rounded(float x, float by) {
    return pattern(by) == NOT_A_NUMBER ? by : (x + by) - by;
}
