/* Rounding to block floating point on a CPU: bit for bit what `layers.blockfloat` does in plain PyTorch.

   Loops are written so that compilers vectorize them, whatever the size of a block. */

#include <stdint.h>

#include "blockfloat.h"

#ifdef BFLOAT16
typedef unsigned short Bits; /* of a Stored */
#else
typedef unsigned int Bits;
#endif

enum { SHARE = 1 << 17, PLACES = 128, BATCH = 1024, SHORT = 16, CUT = 32 - 8 * sizeof(Bits), DIGITS = 24 - CUT };

typedef struct {
    const Stored *x;
    Stored *y;
    int64_t length, inner, block; /* values (outer, length, inner); blocks run along `length` */
    int64_t from, to;             /* blocks, counted along `length`, then `outer` */
    int bits, lowest;
} Part;

static inline int64_t least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

/* Blocks of one value: keep the leading digits, and add one in the last of them if the others round up. */
static void single_values(const Part *part) {
    const Stored *restrict x = part->x + part->from;
    Stored *restrict y = part->y + part->from;
    int64_t values = part->to - part->from;
    int drop = DIGITS > part->bits ? DIGITS - part->bits : 0;
    Bits small = (127 + part->lowest) << (DIGITS - 1), large = (127 - part->lowest) << (DIGITS - 1);
    Bits last = drop > 0 ? 1u << drop : 0, half = last / 2, stay = ~0u << drop, sign = 0x80000000u >> CUT;
    Bits odd = part->bits == 1 ? ~0u : last; /* a single digit that stays is odd, a tie is rounded up */
    for (int64_t i = 0; i < values; i++) {
        Bits all;
        memcpy(&all, x + i, sizeof all);
        Bits magnitude = all & ~sign, even = magnitude & odd ? 0 : half > 0, up = (magnitude + half - even) & stay;
        Bits found = up >= large ? NOT_A_NUMBER >> CUT : up | (all & sign);
        found = magnitude < small ? 0 : found;
        memcpy(y + i, &found, sizeof found);
    }
}

static void larger_of_pairs(const Pattern *restrict x, Pattern *restrict y, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i++) y[i] = x[2 * i] > x[2 * i + 1] ? x[2 * i] : x[2 * i + 1];
}

static void twice_each(const float *restrict x, float *restrict y, int64_t values) {
    for (int64_t i = 0; i < values; i++) y[2 * i] = y[2 * i + 1] = x[i];
}

/* Short blocks one after another, of a power of two values each, at most BATCH in all. */
static void row_of_short_blocks(const Part *part, int64_t first, int64_t blocks, int64_t count) {
    const Stored *x = part->x + first;
    Stored *y = part->y + first;
    Pattern largest[2][BATCH];
    float by[2][BATCH];
    int64_t values = blocks * count, now = 0;
    for (int64_t i = 0; i < values; i++) largest[0][i] = larger(0, widened(x[i]));
    for (int64_t left = values / 2; left >= blocks; left /= 2, now ^= 1)
        larger_of_pairs(largest[now], largest[now ^ 1], left);
    for (int64_t j = 0; j < blocks; j++) by[now][j] = anchor(largest[now][j], part->bits, part->lowest);
    for (int64_t there = blocks; there < values; there *= 2, now ^= 1) twice_each(by[now], by[now ^ 1], there);
    for (int64_t i = 0; i < values; i++) y[i] = narrowed(rounded(widened(x[i]), by[now][i]));
}

/* Blocks one after another, of `count` values, at most BATCH in all. */
static void row_of_blocks(const Part *part, int64_t first, int64_t blocks, int64_t count) {
    const Stored *x = part->x + first;
    Stored *y = part->y + first;
    float by[BATCH];
    Pattern largest[BATCH];
    for (int64_t i = 0; i < BATCH; i += 16) __builtin_prefetch(x + BATCH + i); /* the next ones, meanwhile */
    for (int64_t j = 0; j < blocks; j++) {
        Pattern found = 0;
        for (int64_t i = 0; i < count; i++) found = larger(found, widened(x[j * count + i]));
        largest[j] = found;
    }
    for (int64_t j = 0; j < blocks; j++) by[j] = anchor(largest[j], part->bits, part->lowest);
    for (int64_t j = 0; j < blocks; j++)
        for (int64_t i = 0; i < count; i++) y[j * count + i] = narrowed(rounded(widened(x[j * count + i]), by[j]));
}

/* Blocks side by side: one for each of `inner` columns, their values `inner` apart. */
static void many_blocks(const Part *part, int64_t first, int64_t count) {
    float by[PLACES];
    for (int64_t start = 0; start < part->inner; start += PLACES) {
        int64_t places = least(part->inner - start, PLACES);
        Pattern largest[PLACES] = {0};
        for (int64_t i = 0; i < count; i++) {
            const Stored *x = part->x + first + start + i * part->inner;
            for (int64_t j = 0; j < places; j++) largest[j] = larger(largest[j], widened(x[j]));
        }
        for (int64_t j = 0; j < places; j++) by[j] = anchor(largest[j], part->bits, part->lowest);
        for (int64_t i = 0; i < count; i++) {
            const Stored *x = part->x + first + start + i * part->inner;
            Stored *y = part->y + first + start + i * part->inner;
            for (int64_t j = 0; j < places; j++) y[j] = narrowed(rounded(widened(x[j]), by[j]));
        }
    }
}

static void round_part(const Part *part) {
    if (part->block == 1 && part->inner == 1) {
        single_values(part);
        return;
    }
    int64_t each = (part->length + part->block - 1) / part->block;
    int64_t row = part->from / each, place = part->from % each * part->block;
    for (int64_t block = part->from, blocks; block < part->to; block += blocks) {
        int64_t left = part->length - place, first = (row * part->length + place) * part->inner;
        int64_t count = least(left, part->block);
        blocks = part->inner == 1 ? least(least(left / count, part->to - block), BATCH / count) : 1;
        if (part->inner > 1)
            many_blocks(part, first, count);
        else if (count <= SHORT && (count & (count - 1)) == 0)
            row_of_short_blocks(part, first, blocks, count);
        else
            row_of_blocks(part, first, blocks, count);
        place += blocks * count;
        if (place == part->length) place = 0, row++;
    }
}

void round_blocks(const Stored *x, Stored *y, int64_t outer, int64_t length, int64_t inner, int64_t block, int bits,
                  int lowest, int threads) {
    if (outer * length * inner == 0) return;
    if (inner == 1 && length <= block) block = length, length *= outer, outer = 1; /* each row is one block */
    int64_t blocks = outer * ((length + block - 1) / block), parts = 1 + outer * length * inner / SHARE;
#pragma omp parallel for schedule(dynamic) num_threads(least(threads, parts)) if (threads > 1 && parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        Part part = {x, y, length, inner, block, blocks * i / parts, blocks * (i + 1) / parts, bits, lowest};
        round_part(&part);
    }
}
