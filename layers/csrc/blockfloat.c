/* Rounding to block floating point on a CPU: bit for bit what `layers.blockfloat` does in plain PyTorch. */

#include <stdint.h>

#include "blockfloat.h"

enum { SHARE = 1 << 17, PLACES = 128, BATCH = 1024 };

typedef struct {
    const float *x;
    float *y;
    int64_t length, inner, block; /* values (outer, length, inner); blocks run along `length` */
    int64_t from, to;             /* blocks, counted along `length`, then `outer` */
    int bits, lowest;
} Part;

static inline int64_t least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

static void single_values(const Part *part) {
    for (int64_t i = part->from; i < part->to; i++)
        part->y[i] = rounded(part->x[i], anchor(larger(0, part->x[i]), part->bits, part->lowest));
}

/* Blocks one after another, of `count` values, at most BATCH in all. */
static void row_of_blocks(const Part *part, int64_t first, int64_t blocks, int64_t count) {
    const float *x = part->x + first;
    float *y = part->y + first, by[BATCH];
    Pattern largest[BATCH];
    for (int64_t i = 0; i < BATCH; i += 16) __builtin_prefetch(x + BATCH + i); /* the next ones, meanwhile */
    for (int64_t j = 0; j < blocks; j++) {
        Pattern found = 0;
        for (int64_t i = 0; i < count; i++) found = larger(found, x[j * count + i]);
        largest[j] = found;
    }
    for (int64_t j = 0; j < blocks; j++) by[j] = anchor(largest[j], part->bits, part->lowest);
    for (int64_t j = 0; j < blocks; j++)
        for (int64_t i = 0; i < count; i++) y[j * count + i] = rounded(x[j * count + i], by[j]);
}

/* Blocks side by side: one for each of `inner` places, their values `inner` apart. */
static void many_blocks(const Part *part, int64_t first, int64_t count) {
    float by[PLACES];
    for (int64_t start = 0; start < part->inner; start += PLACES) {
        int64_t places = least(part->inner - start, PLACES);
        Pattern largest[PLACES] = {0};
        for (int64_t i = 0; i < count; i++) {
            const float *x = part->x + first + start + i * part->inner;
            for (int64_t j = 0; j < places; j++) largest[j] = larger(largest[j], x[j]);
        }
        for (int64_t j = 0; j < places; j++) by[j] = anchor(largest[j], part->bits, part->lowest);
        for (int64_t i = 0; i < count; i++) {
            const float *x = part->x + first + start + i * part->inner;
            float *y = part->y + first + start + i * part->inner;
            for (int64_t j = 0; j < places; j++) y[j] = rounded(x[j], by[j]);
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
        if (part->inner == 1)
            row_of_blocks(part, first, blocks, count);
        else
            many_blocks(part, first, count);
        place += blocks * count;
        if (place == part->length) place = 0, row++;
    }
}

void round_blocks(const float *x, float *y, int64_t outer, int64_t length, int64_t inner, int64_t block, int bits,
                  int lowest, int threads) {
    if (outer * length * inner == 0) return;
    int64_t blocks = outer * ((length + block - 1) / block), parts = 1 + outer * length * inner / SHARE;
#pragma omp parallel for schedule(dynamic) num_threads(least(threads, parts)) if (threads > 1 && parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        Part part = {x, y, length, inner, block, blocks * i / parts, blocks * (i + 1) / parts, bits, lowest};
        round_part(&part);
    }
}
