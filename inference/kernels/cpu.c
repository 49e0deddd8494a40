/* Element-wise work and paged attention on the CPU, where torch has no fused kernel.

   Compiled once per machine by inference/kernels/__init__.py, from this file alone: the functions
   take plain pointers, sizes in elements, and are generic over the element type by including the
   file into itself. Arithmetic is float32 whatever the storage. */

#ifndef ELEMENT

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

static inline float load_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 round_bf16(float value) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float load_f32(float x) { return x; }
static inline float round_f32(float x) { return x; }

/* e^x for x <= 0, good to 2 units in the last place: Cody-Waite reduction and a polynomial, in a
   form that compilers vectorise, unlike libm's. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* Sixteen floats: one register with AVX-512, two or four elsewhere. */
typedef float lanes __attribute__((vector_size(64)));
typedef uint16_t half_lanes __attribute__((vector_size(32)));
typedef uint32_t bit_lanes __attribute__((vector_size(64)));
#define LANES 16
#define MAX_GROUP 8

static inline lanes load_lanes_bf16(const bf16 *x) {
    half_lanes halves;
    memcpy(&halves, x, sizeof halves);
    return (lanes)(__builtin_convertvector(halves, bit_lanes) << 16);
}

static inline lanes load_lanes_f32(const float *x) {
    lanes value;
    memcpy(&value, x, sizeof value);
    return value;
}

/* Below this many elements waking sleeping threads costs more than it saves: some 50 us. */
#define PARALLEL 262144

#define JOIN(a, b) a##_##b
#define NAME(function, suffix) JOIN(function, suffix)

#define ELEMENT bf16
#define SUFFIX bf16
#define LOAD load_bf16
#define LOAD_LANES load_lanes_bf16
#define ROUND round_bf16
#include "cpu.c"
#undef ELEMENT
#undef SUFFIX
#undef LOAD
#undef LOAD_LANES
#undef ROUND

#define ELEMENT float
#define SUFFIX f32
#define LOAD load_f32
#define LOAD_LANES load_lanes_f32
#define ROUND round_f32
#include "cpu.c"

#else

/* out[r] = x[r] / rms(x[r]) * weight, for contiguous rows. */
void NAME(rms_norm, SUFFIX)(const ELEMENT *x, const ELEMENT *weight, ELEMENT *out, int64_t rows,
                            int64_t width, float eps) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        const ELEMENT *in = x + r * width;
        ELEMENT *o = out + r * width;
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += LOAD(in[i]) * LOAD(in[i]);
        float scale = 1.0f / sqrtf(sum / (float)width + eps);
        for (int64_t i = 0; i < width; i++) o[i] = ROUND(LOAD(in[i]) * scale * LOAD(weight[i]));
    }
}

/* out = silu(gate) * up, for rows [gate | up] of 2 * width. */
void NAME(silu_mul, SUFFIX)(const ELEMENT *gate_up, ELEMENT *out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        const ELEMENT *gate = gate_up + r * 2 * width, *up = gate + width;
        ELEMENT *o = out + r * width;
        for (int64_t i = 0; i < width; i++) {
            float g = LOAD(gate[i]);
            float e = exp_negative(g < 0 ? g : -g); /* e^-|g| */
            float sigmoid = (g < 0 ? e : 1.0f) / (1.0f + e);
            o[i] = ROUND(g * sigmoid * LOAD(up[i]));
        }
    }
}

/* In place, for the first `heads` heads of each row: normalise if there is a weight [heads, dim],
   then rotate by cos and signed sin [rows, dim]. */
void NAME(norm_rotate, SUFFIX)(ELEMENT *x, int64_t row_stride, const ELEMENT *weight,
                               const float *cos, const float *sin, int64_t rows, int64_t heads,
                               int64_t dim, float eps) {
    int64_t half = dim / 2;
#pragma omp parallel for if (rows * heads * dim > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        float buffer[dim];
        const float *c = cos + r * dim, *s = sin + r * dim;
        for (int64_t h = 0; h < heads; h++) {
            ELEMENT *head = x + r * row_stride + h * dim;
            for (int64_t i = 0; i < dim; i++) buffer[i] = LOAD(head[i]);
            if (weight) {
                float sum = 0;
                for (int64_t i = 0; i < dim; i++) sum += buffer[i] * buffer[i];
                float scale = 1.0f / sqrtf(sum / (float)dim + eps);
                const ELEMENT *w = weight + h * dim;
                for (int64_t i = 0; i < dim; i++) buffer[i] *= scale * LOAD(w[i]);
            }
            for (int64_t i = 0; i < half; i++) {
                head[i] = ROUND(buffer[i] * c[i] + buffer[i + half] * s[i]);
                head[i + half] = ROUND(buffer[i + half] * c[i + half] + buffer[i] * s[i + half]);
            }
        }
    }
}

/* Softmax in place over scores [matrices, rows, width] * scale. With `first` >= 0, row r of each
   matrix sees the columns up to first + r; the others become 0. */
void NAME(softmax, SUFFIX)(ELEMENT *scores, int64_t matrices, int64_t rows, int64_t width,
                           float scale, int64_t first) {
#pragma omp parallel for if (matrices * rows * width > PARALLEL / 2)
    for (int64_t m = 0; m < matrices * rows; m++) {
        ELEMENT *x = scores + m * width;
        int64_t seen = first < 0 ? width : first + m % rows + 1;
        if (seen > width) seen = width;
        float buffer[width];
        float top = -3.0e38f, sum = 0;
        for (int64_t i = 0; i < seen; i++) {
            buffer[i] = LOAD(x[i]) * scale;
            top = buffer[i] > top ? buffer[i] : top;
        }
        for (int64_t i = 0; i < seen; i++) {
            buffer[i] = exp_negative(buffer[i] - top);
            sum += buffer[i];
        }
        float inverse = 1.0f / sum;
        for (int64_t i = 0; i < seen; i++) x[i] = ROUND(buffer[i] * inverse);
        memset(x + seen, 0, (size_t)(width - seen) * sizeof(ELEMENT));
    }
}

/* Copy new keys [rows, kv_heads, dim] (rows of a stride) into the pool's slots. The pool of keys is
   [blocks, kv_heads, dim, block_size]: one query meets a lane of tokens at a time. */
void NAME(store_keys, SUFFIX)(ELEMENT *pool, const ELEMENT *x, int64_t row_stride,
                              const int64_t *slots, int64_t rows, int64_t kv_heads,
                              int64_t block_size, int64_t dim) {
#pragma omp parallel for if (rows * kv_heads * dim > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        int64_t block = slots[r] / block_size, place = slots[r] % block_size;
        for (int64_t h = 0; h < kv_heads; h++) {
            ELEMENT *to = pool + (block * kv_heads + h) * dim * block_size + place;
            const ELEMENT *from = x + r * row_stride + h * dim;
            for (int64_t i = 0; i < dim; i++) to[i * block_size] = from[i];
        }
    }
}

/* The same for values, whose pool is [blocks, kv_heads, block_size, dim]. */
void NAME(store_values, SUFFIX)(ELEMENT *pool, const ELEMENT *x, int64_t row_stride,
                                const int64_t *slots, int64_t rows, int64_t kv_heads,
                                int64_t block_size, int64_t dim) {
#pragma omp parallel for if (rows * kv_heads * dim > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        int64_t block = slots[r] / block_size, place = slots[r] % block_size;
        for (int64_t h = 0; h < kv_heads; h++)
            memcpy(pool + ((block * kv_heads + h) * block_size + place) * dim,
                   x + r * row_stride + h * dim, (size_t)dim * sizeof(ELEMENT));
    }
}

/* scores[g * stride + t] = query[g] . key[t] over one block; `group` is constant where inlined. */
static inline __attribute__((always_inline)) void
NAME(score_block, SUFFIX)(const ELEMENT *keys, const float *query, float *scores, int64_t stride,
                          int64_t group, int64_t block_size, int64_t dim) {
    for (int64_t t = 0; t < block_size; t += LANES) {
        lanes sums[MAX_GROUP] = {{0}};
        for (int64_t i = 0; i < dim; i++) {
            lanes key = LOAD_LANES(keys + i * block_size + t);
#pragma GCC unroll 8
            for (int64_t g = 0; g < group; g++) sums[g] += query[g * dim + i] * key;
        }
#pragma GCC unroll 8
        for (int64_t g = 0; g < group; g++) memcpy(scores + g * stride + t, &sums[g], sizeof(lanes));
    }
}

/* out[g] += sum over t of weights[g * stride + t] * value[t] over one block. */
static inline __attribute__((always_inline)) void
NAME(sum_block, SUFFIX)(const ELEMENT *values, const float *weights, float *out, int64_t stride,
                        int64_t group, int64_t count, int64_t dim) {
    for (int64_t i = 0; i < dim; i += LANES) {
        lanes sums[MAX_GROUP];
#pragma GCC unroll 8
        for (int64_t g = 0; g < group; g++) memcpy(&sums[g], out + g * dim + i, sizeof(lanes));
        for (int64_t t = 0; t < count; t++) {
            lanes value = LOAD_LANES(values + t * dim + i);
#pragma GCC unroll 8
            for (int64_t g = 0; g < group; g++) sums[g] += weights[g * stride + t] * value;
        }
#pragma GCC unroll 8
        for (int64_t g = 0; g < group; g++) memcpy(out + g * dim + i, &sums[g], sizeof(lanes));
    }
}

/* All of one row and one key head: `group` queries [group, dim], already scaled, over a sequence's
   blocks; their sums go to out [group, dim]. */
static inline __attribute__((always_inline)) void
NAME(attend_row, SUFFIX)(const float *query, const ELEMENT *keys, const ELEMENT *values,
                         const int64_t *table, int64_t length, float *scores, float *out,
                         int64_t kv_heads, int64_t head, int64_t group, int64_t block_size,
                         int64_t dim) {
    int64_t num_blocks = (length + block_size - 1) / block_size;
    int64_t stride = num_blocks * block_size, size = block_size * dim;
    for (int64_t b = 0; b < num_blocks; b++) {
        if (b + 1 < num_blocks) {
            const char *next = (const char *)(keys + (table[b + 1] * kv_heads + head) * size);
            for (size_t i = 0; i < (size_t)size * sizeof(ELEMENT); i += 64) __builtin_prefetch(next + i);
        }
        NAME(score_block, SUFFIX)(keys + (table[b] * kv_heads + head) * size, query,
                                  scores + b * block_size, stride, group, block_size, dim);
    }
    for (int64_t g = 0; g < group; g++) {
        float *s = scores + g * stride;
        float top = -3.0e38f, total = 0;
        for (int64_t t = 0; t < length; t++) top = s[t] > top ? s[t] : top;
        for (int64_t t = 0; t < length; t++) {
            s[t] = exp_negative(s[t] - top);
            total += s[t];
        }
        float inverse = 1.0f / total;
        for (int64_t t = 0; t < length; t++) s[t] *= inverse;
    }
    for (int64_t b = 0; b < num_blocks; b++) {
        if (b + 1 < num_blocks) {
            const char *next = (const char *)(values + (table[b + 1] * kv_heads + head) * size);
            for (size_t i = 0; i < (size_t)size * sizeof(ELEMENT); i += 64) __builtin_prefetch(next + i);
        }
        int64_t left = length - b * block_size;
        NAME(sum_block, SUFFIX)(values + (table[b] * kv_heads + head) * size,
                                scores + b * block_size, out, stride, group,
                                left < block_size ? left : block_size, dim);
    }
}

/* One query token per row over its blocks: out[row, head] = softmax(q k * scale) v.
   tables [rows, table_width]; lengths in tokens, the new one included; group <= MAX_GROUP, dim and
   block_size multiples of LANES. */
void NAME(decode_attention, SUFFIX)(const ELEMENT *q, int64_t q_stride, const ELEMENT *keys,
                                    const ELEMENT *values, const int64_t *tables,
                                    const int64_t *lengths, ELEMENT *out, int64_t rows,
                                    int64_t table_width, int64_t kv_heads, int64_t group,
                                    int64_t block_size, int64_t dim, float scale) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1) if (rows * table_width * block_size * kv_heads * group * dim > 2 * PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t h = 0; h < kv_heads; h++) {
            int64_t width = group * dim, first = (r * kv_heads + h) * width;
            int64_t padded = (lengths[r] + block_size - 1) / block_size * block_size;
            float *scores = malloc(sizeof(float) * (size_t)(group * padded));
            float query[width], sums[width];
            for (int64_t i = 0; i < width; i++) {
                query[i] = LOAD(q[r * q_stride + h * width + i]) * scale;
                sums[i] = 0;
            }
#define ATTEND(constant)                                                                           \
    case constant:                                                                                 \
        NAME(attend_row, SUFFIX)(query, keys, values, tables + r * table_width, lengths[r],        \
                                 scores, sums, kv_heads, h, constant, block_size, dim);            \
        break;
            switch (group) {
                ATTEND(1) ATTEND(2) ATTEND(3) ATTEND(4) ATTEND(5) ATTEND(6) ATTEND(7) ATTEND(8)
            }
#undef ATTEND
            for (int64_t i = 0; i < width; i++) out[first + i] = ROUND(sums[i]);
            free(scores);
        }
    }
}

#endif
