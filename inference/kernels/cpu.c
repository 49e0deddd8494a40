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

/* Below this many elements waking other threads costs more than it saves. */
#define PARALLEL 16384

#define JOIN(a, b) a##_##b
#define NAME(function, suffix) JOIN(function, suffix)

#define ELEMENT bf16
#define SUFFIX bf16
#define LOAD load_bf16
#define ROUND round_bf16
#include "cpu.c"
#undef ELEMENT
#undef SUFFIX
#undef LOAD
#undef ROUND

#define ELEMENT float
#define SUFFIX f32
#define LOAD load_f32
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
#pragma omp parallel for if (matrices * rows * width > PARALLEL)
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

/* Copy new keys and values [rows, kv_heads, dim] (rows of a stride) into the pool's slots. The pool
   is [blocks, kv_heads, block_size, dim]. */
void NAME(store, SUFFIX)(ELEMENT *pool, const ELEMENT *x, int64_t row_stride, const int64_t *slots,
                         int64_t rows, int64_t kv_heads, int64_t block_size, int64_t dim) {
#pragma omp parallel for if (rows * kv_heads * dim > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        int64_t block = slots[r] / block_size, place = slots[r] % block_size;
        for (int64_t h = 0; h < kv_heads; h++)
            memcpy(pool + ((block * kv_heads + h) * block_size + place) * dim,
                   x + r * row_stride + h * dim, (size_t)dim * sizeof(ELEMENT));
    }
}

/* One query token per row over its blocks: out[row, head] = softmax(q k * scale) v.
   tables [rows, table_width]; lengths in tokens, the new one included. */
void NAME(decode_attention, SUFFIX)(const ELEMENT *q, int64_t q_stride, const ELEMENT *keys,
                                    const ELEMENT *values, const int64_t *tables,
                                    const int64_t *lengths, ELEMENT *out, int64_t rows,
                                    int64_t table_width, int64_t kv_heads, int64_t group,
                                    int64_t block_size, int64_t dim, float scale) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1) if (rows * table_width > 8)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t h = 0; h < kv_heads; h++) {
            int64_t length = lengths[r];
            int64_t num_blocks = (length + block_size - 1) / block_size;
            int64_t padded = num_blocks * block_size;
            float *scores = malloc(sizeof(float) * (size_t)(group * padded));
            float query[group][dim], sum[group][dim];
            for (int64_t g = 0; g < group; g++)
                for (int64_t i = 0; i < dim; i++) {
                    query[g][i] = LOAD(q[r * q_stride + (h * group + g) * dim + i]) * scale;
                    sum[g][i] = 0;
                }
            for (int64_t b = 0; b < num_blocks; b++) {
                int64_t block = tables[r * table_width + b];
                const ELEMENT *k = keys + (block * kv_heads + h) * block_size * dim;
                for (int64_t t = 0; t < block_size; t++) {
                    float key[dim];
                    for (int64_t i = 0; i < dim; i++) key[i] = LOAD(k[t * dim + i]);
                    for (int64_t g = 0; g < group; g++) {
                        float dot = 0;
                        for (int64_t i = 0; i < dim; i++) dot += query[g][i] * key[i];
                        scores[g * padded + b * block_size + t] = dot;
                    }
                }
            }
            for (int64_t g = 0; g < group; g++) {
                float *s = scores + g * padded;
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
                int64_t block = tables[r * table_width + b];
                const ELEMENT *v = values + (block * kv_heads + h) * block_size * dim;
                int64_t left = length - b * block_size;
                int64_t count = left < block_size ? left : block_size;
                for (int64_t t = 0; t < count; t++) {
                    float value[dim];
                    for (int64_t i = 0; i < dim; i++) value[i] = LOAD(v[t * dim + i]);
                    for (int64_t g = 0; g < group; g++) {
                        float p = scores[g * padded + b * block_size + t];
                        for (int64_t i = 0; i < dim; i++) sum[g][i] += p * value[i];
                    }
                }
            }
            for (int64_t g = 0; g < group; g++)
                for (int64_t i = 0; i < dim; i++)
                    out[(r * kv_heads * group + h * group + g) * dim + i] = ROUND(sum[g][i]);
            free(scores);
        }
    }
}

#endif
