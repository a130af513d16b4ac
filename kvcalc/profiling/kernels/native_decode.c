/* Split-KV decode attention on CPU cores, for MLA in latent space and for MHA, GQA and MQA: pages, online softmax.

   A sequence has query rows [G, M, W], M for each of its KV heads; its context is cut into pieces, which threads take
   one after the other. A piece walks its tokens in tiles that stay in the core's cache. For R rows at a time a tile is
       scores   S[t][r] = q[r] . k[t]       lanes along W, R x T accumulators in registers, summed over lanes at the end
       softmax  peak, rescale, exp2, sum    lanes along r: the scores of a token lie side by side
       values   O[r] += S[t][r] v[t]        lanes along Z, R x D accumulators
   A tile is read from memory once, for all rows, and memory is to be busy all the time: a cursor runs ahead through the
   cache, in the order of memory, and fetches a token of a head for each that is computed. MLA's values are the first Z
   elements of its keys. Formats narrower than fp32 are widened first. Whoever ends a sequence's last piece combines its
   outputs. What a thread writes often is in its own room: two cores that write to one line wait for each other.

   Flash-Decoding: Dao, Haziza, Massa, Sizov, 2023; online softmax: arXiv 1805.02867; blocks: arXiv 2205.14135. */

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif
#define TILE 64 /* tokens, at most */
#define AHEAD 6 /* tokens that the cursor is ahead of a single KV head with few rows; else it is a tile */
#define TILE_OF_ONE 16 /* tokens of a tile of one row */
#define LINE 64 /* bytes */
#define SHARED (256 << 10) /* bytes of a tile of several heads: two fit into the second-level cache */
#define INLINE static inline __attribute__((always_inline))
#define SHUFFLE __builtin_shufflevector
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float row_vec __attribute__((vector_size(4 * ROWS), aligned(4), may_alias));
typedef int32_t row_int __attribute__((vector_size(4 * ROWS), aligned(4), may_alias));
typedef uint32_t row_bits __attribute__((vector_size(4 * ROWS), aligned(4), may_alias));

enum format { FP32, BF16, FP16, FP8_E4M3 };
static const int BYTES[] = {4, 2, 2, 1};

/* Strides count elements of the cache's format; tokens of a page lie side by side, and in a token its KV heads. */
struct work {
    const float *q;             /* [sequences, G, M, W] */
    const char *k, *v;          /* pages; v is NULL where values are the first elements of keys */
    const int32_t *page_table;  /* [sequences, table_width] */
    const int32_t *attended;    /* [sequences, M] tokens that a row attends */
    const int32_t *pieces;      /* [n_pieces, 3] sequence, first token, end; pieces of a sequence are neighbours */
    const int32_t *piece_range; /* [sequences, 2] first piece, end */
    float *partial;             /* [n_pieces, G, M, Z] outputs before they are divided by their sums */
    float *peaks, *sums;        /* [n_pieces, G, M] */
    float *out, *lse;           /* [sequences, G, M, Z], [sequences, G, M] */
    atomic_int *next;           /* the piece that is to be taken next */
    atomic_int *waiting;        /* [sequences] pieces that are not done */
    int64_t k_page, k_token, k_head, v_page, v_token, v_head;
    int32_t table_width, page_tokens, heads, rows, key_width, value_width, n_pieces, format;
    float score_scale, out_scale; /* the softmax scale times log2(e); both times those of the cache */
};

/* A token of a head in fp32: its key, and its value where that is another row. */
INLINE int wide_floats(const struct work *w) { return w->key_width + (w->v ? w->value_width : 0); }

/* --- numbers ------------------------------------------------------------------------------------------------------ */

INLINE row_vec choose(row_int condition, row_vec yes, row_vec no) {
    return (row_vec)((condition & (row_int)yes) | (~condition & (row_int)no));
}

INLINE row_vec larger(row_vec a, row_vec b) { return choose(a > b, a, b); }

INLINE int at_most(int a, int b) { return a < b ? a : b; }

/* 2^x for x <= 0, to 2 ulps; 0 below the smallest normal number, NaN for NaN. */
INLINE row_vec exp2_of(row_vec x) {
    const row_vec zero = {0}, lowest = zero - 126.0f;
    const float to_integer = 12582912.0f; /* 1.5 x 2^23: a sum with it is an integer, in its low bits */
    row_int vanishes = x < lowest;
    row_vec y = choose(vanishes, lowest, x), shifted = y + to_integer, f = y - (shifted - to_integer);
    row_vec p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    row_int exponent = (row_int)(((row_bits)shifted + 127) << 23);
    return choose(vanishes, zero, p * (row_vec)exponent);
}

/* A row of cache elements in fp32. The 8- and 16-bit formats are fp32 numbers with fewer bits: shifted into place, and
   multiplied by the difference of the exponents' biases, which makes subnormal numbers right as well. */
INLINE void widen(int format, const char *from, float *to, int width) {
    for (int i = 0; i < width; i++) {
        union { uint32_t bits; float number; } x;
        if (format == BF16) {
            x.bits = (uint32_t)((const uint16_t *)from)[i] << 16;
        } else if (format == FP16) {
            uint32_t half = ((const uint16_t *)from)[i], magnitude = half & 0x7fff;
            x.bits = magnitude << 13;
            x.number *= 0x1p112f;
            x.bits |= (magnitude >= 0x7c00 ? 0x7f800000 : 0) | (half & 0x8000) << 16;
        } else {
            uint32_t byte = ((const uint8_t *)from)[i], magnitude = byte & 0x7f;
            x.bits = magnitude << 20;
            x.number *= 0x1p120f;
            x.bits |= (magnitude == 0x7f ? 0x7fc00000 : 0) | (byte & 0x80) << 24;
        }
        to[i] = x.number;
    }
}

/* Sums over the lanes of R vectors, in R lanes of a vector: neighbours are folded into one until one is left. */
INLINE row_vec sums_over_lanes(int rows, const vec *in) {
    vec a[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) a[r] = r < rows ? in[r] : (vec){0};
#if LANES == 16
    UNROLL for (int r = 0; r < ROWS; r += 2)
        a[r / 2] = SHUFFLE(a[r], a[r + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   SHUFFLE(a[r], a[r + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLL for (int r = 0; r < ROWS / 2; r += 2)
        a[r / 2] = SHUFFLE(a[r], a[r + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   SHUFFLE(a[r], a[r + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    vec b = SHUFFLE(a[0], a[1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
            SHUFFLE(a[0], a[1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return SHUFFLE(b, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           SHUFFLE(b, b, 1, 3, 5, 7, 9, 11, 13, 15);
#elif LANES == 8
    UNROLL for (int r = 0; r < ROWS; r += 2)
        a[r / 2] = SHUFFLE(a[r], a[r + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
                   SHUFFLE(a[r], a[r + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    vec b = SHUFFLE(a[0], a[1], 0, 1, 4, 5, 8, 9, 12, 13) +
            SHUFFLE(a[0], a[1], 2, 3, 6, 7, 10, 11, 14, 15);
    return SHUFFLE(b, b, 0, 2, 4, 6) + SHUFFLE(b, b, 1, 3, 5, 7);
#else
    UNROLL for (int r = 0; r < ROWS; r += 2)
        a[r / 2] = SHUFFLE(a[r], a[r + 1], 0, 1, 4, 5) +
                   SHUFFLE(a[r], a[r + 1], 2, 3, 6, 7);
    return SHUFFLE(a[0], a[1], 0, 2, 4, 6) + SHUFFLE(a[0], a[1], 1, 3, 5, 7);
#endif
}

/* --- places in the cache ------------------------------------------------------------------------------------------ */

/* Rows of tokens first .. first + n - 1 of a sequence, of its first KV head, through its page table. */
static void find_rows(const struct work *w, int sequence, int first, int n, const char **k, const char **v) {
    const int32_t *table = w->page_table + (int64_t)sequence * w->table_width;
    const int bytes = BYTES[w->format];
    for (int t = 0; t < n;) {
        int slot = (first + t) % w->page_tokens, page = table[(first + t) / w->page_tokens];
        const char *key = w->k + bytes * (page * w->k_page + slot * w->k_token);
        const char *value = w->v ? w->v + bytes * (page * w->v_page + slot * w->v_token) : key;
        for (; slot < w->page_tokens && t < n; slot++, t++) {
            k[t] = key, v[t] = value;
            key += bytes * w->k_token, value += bytes * (w->v ? w->v_token : w->k_token);
        }
    }
}

/* What is to be fetched next of a sequence, in the order of memory: token by token, KV head by KV head. */
struct cursor {
    int sequence, row, end; /* row = token x heads + head */
};

/* The next rows of a cursor: `left` of them are in the page of the first, the others begin the page that follows. */
struct ahead {
    const char *k, *v, *next_k, *next_v;
    int64_t k_step, v_step;
    int left;
};

/* n rows, and on. */
INLINE struct ahead take(const struct work *w, struct cursor *c, int n) {
    const int bytes = BYTES[w->format], in_page = w->page_tokens * w->heads;
    const int page = c->row / in_page, slot = c->row - page * in_page;
    const int32_t *table = w->page_table + (int64_t)c->sequence * w->table_width;
    struct ahead a = {.left = in_page - slot};
    const int next = a.left < n && c->row + a.left < c->end ? page + 1 : page;
    a.k_step = bytes * (w->heads > 1 ? w->k_head : w->k_token);
    a.k = w->k + bytes * table[page] * w->k_page + slot * a.k_step;
    a.next_k = w->k + bytes * table[next] * w->k_page - a.left * a.k_step;
    a.v_step = bytes * (w->heads > 1 ? w->v_head : w->v_token);
    a.v = w->v + bytes * table[page] * w->v_page + slot * a.v_step;
    a.next_v = w->v + bytes * table[next] * w->v_page - a.left * a.v_step;
    c->row = at_most(c->row + n, c->end - 1);
    return a;
}

INLINE const char *key_ahead(struct ahead a, int i) { return (i < a.left ? a.k : a.next_k) + i * a.k_step; }

INLINE const char *value_ahead(struct ahead a, int i) { return (i < a.left ? a.v : a.next_v) + i * a.v_step; }

INLINE void fetch(const char *row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(row + i, 0, 3);
}

INLINE void fetch_rows(const struct work *w, struct ahead a, int from, int to) {
    const int64_t k_bytes = w->key_width * BYTES[w->format], v_bytes = w->v ? w->value_width * BYTES[w->format] : 0;
    for (int i = from; i < to; i++) {
        fetch(key_ahead(a, i), k_bytes);
        fetch(value_ahead(a, i), v_bytes);
    }
}

/* --- a block of R query rows and a tile of tokens ----------------------------------------------------------------- */

struct tile {
    const float *k[TILE], *v[TILE];
    int n, first; /* tokens, and the place of the first in its sequence */
};

/* S[t][r] = q[r] . k[t] for T tokens. */
INLINE void scores_of(int rows, int tokens, const float *q, const float *const *k, int width, float *s) {
    vec sum[8][ROWS];
    UNROLL for (int t = 0; t < tokens; t++) {
        UNROLL for (int r = 0; r < rows; r++) sum[t][r] = (vec){0};
    }
    for (int i = 0; i < width; i += LANES) {
        vec key[8];
        UNROLL for (int t = 0; t < tokens; t++) key[t] = *(const vec *)(k[t] + i);
        UNROLL for (int r = 0; r < rows; r++) {
            vec query = *(const vec *)(q + (int64_t)r * width + i);
            UNROLL for (int t = 0; t < tokens; t++) sum[t][r] += query * key[t];
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) *(row_vec *)(s + t * ROWS) = sums_over_lanes(rows, sum[t]);
}

/* S[0][r] = q[r] . k while the cache's row `ahead` is fetched: tokens one after the other, as they lie in memory, come
   faster than when a core reads from several places. */
INLINE void scores_streaming(int rows, const float *q, const float *k, int width, float *s, const char *ahead) {
    vec sum[ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = (vec){0};
    for (int i = 0; i < width; i += LANES) {
        __builtin_prefetch(ahead + i * sizeof(float), 0, 3);
        vec key = *(const vec *)(k + i);
        UNROLL for (int r = 0; r < rows; r++) sum[r] += *(const vec *)(q + (int64_t)r * width + i) * key;
    }
    *(row_vec *)s = sums_over_lanes(rows, sum);
}

/* O[r] += S[t][r] v[t] for D vectors of the width, from element `at` on. */
INLINE void values_of(int rows, int vectors, const float *s, const struct tile *tile, float *o, int width, int at) {
    vec sum[ROWS][8];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int d = 0; d < vectors; d++) sum[r][d] = *(const vec *)(o + (int64_t)r * width + at + d * LANES);
    }
    for (int t = 0; t < tile->n; t++) {
        vec value[8];
        UNROLL for (int d = 0; d < vectors; d++) value[d] = *(const vec *)(tile->v[t] + at + d * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int d = 0; d < vectors; d++) sum[r][d] += s[t * ROWS + r] * value[d];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int d = 0; d < vectors; d++) *(vec *)(o + (int64_t)r * width + at + d * LANES) = sum[r][d];
    }
}

/* R rows attend a tile; o, peak and sum are their outputs, peaks and sums so far, s is room for scores. As many rows of
   the cache as the tile has are fetched where it is asked for: inside the scores where few attend, else about half
   between scores, half between values. (`ahead` comes by value: behind a pointer it would be read again after each
   score.) */
INLINE void attend(int rows, int tokens, int vectors, const struct work *w, const struct tile *tile, int fetches,
                   struct ahead ahead, const float *q, const int32_t *attended, float *s, float *o, float *peak,
                   float *sum) {
    const int n = tile->n, width = w->value_width, streams = fetches && rows < 8 && w->format == FP32;
    const int early = w->rows < 16 ? 3 : 4; /* eighths, between scores */
    int t = 0;
    for (; streams && t < n; t++) {
        if (w->v) fetch(value_ahead(ahead, t), width * sizeof(float));
        scores_streaming(rows, q, tile->k[t], w->key_width, s + t * ROWS, key_ahead(ahead, t));
    }
    fetches &= !streams;
    for (; t + tokens <= n; t += tokens) {
        scores_of(rows, tokens, q, tile->k + t, w->key_width, s + t * ROWS);
        if (fetches) fetch_rows(w, ahead, t * early / 8, (t + tokens) * early / 8);
    }
    if (fetches) fetch_rows(w, ahead, t * early / 8, n * early / 8);
    for (; t < n; t++) scores_of(rows, 1, q, tile->k + t, w->key_width, s + t * ROWS);

    row_vec before = {0}, total = {0};
    row_int limit = {0};
    int everyone = attended[0];
    for (int r = 0; r < rows; r++) {
        before[r] = peak[r], total[r] = sum[r], limit[r] = attended[r] - tile->first;
        if (attended[r] < everyone) everyone = attended[r];
    }
    row_vec *scores = (row_vec *)s, top = before;
    for (t = everyone > tile->first ? everyone - tile->first : 0; t < n; t++)
        scores[t] = choose(limit > t, scores[t], (row_vec){0} - INFINITY);
    for (t = 0; t < n; t++) top = larger(scores[t] *= w->score_scale, top);
    row_vec fade = exp2_of(before - top);
    total *= fade;
    for (t = 0; t < n; t++) total += scores[t] = exp2_of(scores[t] - top);
    for (int r = 0; r < rows; r++) {
        peak[r] = top[r], sum[r] = total[r];
        if (fade[r] != 1.0f)
            for (int i = 0; i < width; i++) o[(int64_t)r * width + i] *= fade[r];
    }
    int at = 0;
    for (; at + vectors * LANES <= width; at += vectors * LANES) {
        const int done = n * early / 8, rest = n - done, to = at + vectors * LANES;
        values_of(rows, vectors, s, tile, o, width, at);
        if (fetches) fetch_rows(w, ahead, done + at * rest / width, done + to * rest / width);
    }
    for (; at < width; at += LANES) values_of(rows, 1, s, tile, o, width, at);
}

/* --- a single query row of a KV head ------------------------------------------------------------------------------ */

/* q . k in the lanes of a vector, while the cache's row `ahead` is fetched. */
INLINE vec lanes_of_score(const float *q, const float *k, int width, const char *ahead, int bytes) {
    vec sum[4] = {{0}};
    int i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLL for (int j = i; j < i + 4 * LANES; j += LANES) {
            __builtin_prefetch(ahead + j * bytes, 0, 3);
            sum[(j - i) / LANES] += *(const vec *)(q + j) * *(const vec *)(k + j);
        }
    }
    for (; i < width; i += LANES) {
        __builtin_prefetch(ahead + i * bytes, 0, 3);
        sum[0] += *(const vec *)(q + i) * *(const vec *)(k + i);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* O += S[t] v[t] for D vectors, from element `at` on; v[t] lie `step` floats apart. */
INLINE void values_of_one(int vectors, const float *s, const float *v, int64_t step, int n, float *o, int at) {
    vec sum[8];
    UNROLL for (int d = 0; d < vectors; d++) sum[d] = *(const vec *)(o + at + d * LANES);
    for (int t = 0; t < n; t++) {
        UNROLL for (int d = 0; d < vectors; d++) sum[d] += s[t] * *(const vec *)(v + t * step + at + d * LANES);
    }
    UNROLL for (int d = 0; d < vectors; d++) *(vec *)(o + at + d * LANES) = sum[d];
}

/* The row attends n tokens of a page, whose first key and value are k and v. Scores lie side by side, and a vector of
   them is softened at a time. */
INLINE void attend_one(int format, const struct work *w, const char *k, const char *v, int n,
                       struct ahead ahead, const float *q, float *room, float *o, float *peak, float *sum) {
    const int W = w->key_width, Z = w->value_width, wide_step = wide_floats(w);
    const int bytes = format == FP32 ? 4 : BYTES[format];
    const int64_t k_step = bytes * w->k_token, v_step = w->v ? bytes * w->v_token : k_step;
    float *s = room, *wide = room + TILE * ROWS, top = *peak;
    n = at_most(n, TILE_OF_ONE); /* as it is: now the compiler knows */
    for (int t = 0; t < n;) {
        const int from = t, to = at_most(from + ROWS, n);
        vec lanes[ROWS] = {{0}};
        for (; t < to; t++) {
            const float *key = (const float *)(k + t * k_step);
            if (format != FP32) widen(format, k + t * k_step, wide + t * wide_step, W), key = wide + t * wide_step;
            if (w->v) fetch(value_ahead(ahead, t), Z * bytes);
            lanes[t - from] = lanes_of_score(q, key, W, key_ahead(ahead, t), bytes);
        }
        *(row_vec *)(s + from) = sums_over_lanes(ROWS, lanes) * w->score_scale;
        for (t = from; t < to; t++) top = s[t] > top ? s[t] : top;
    }
    if (top > *peak) {
        const float fade = exp2f(*peak - top);
        for (int i = 0; i < Z; i++) o[i] *= fade;
        *sum *= fade, *peak = top;
    }
    for (int t = 0; t < n; t += ROWS) *(row_vec *)(s + t) = exp2_of(*(row_vec *)(s + t) - top);
    for (int t = 0; t < n; t++) {
        *sum += s[t];
        if (w->v && format != FP32) widen(format, v + t * v_step, wide + t * wide_step + W, Z);
    }
    const float *value = format == FP32 ? (const float *)v : wide + (w->v ? W : 0);
    const int64_t step = format == FP32 ? v_step / 4 : wide_step;
    int at = 0;
    for (; at + 8 * LANES <= Z; at += 8 * LANES) values_of_one(8, s, value, step, n, o, at);
    for (; at < Z; at += LANES) values_of_one(1, s, value, step, n, o, at);
}

/* --- pieces ------------------------------------------------------------------------------------------------------- */

/* Tokens of a tile. With few rows memory sets the pace, and a tile of one head has to stay in the first-level cache
   (32 KiB and more) until its values are read; many rows move more of their own outputs, once for each tile, than of
   the cache. Of several heads a tile is computed in the second-level cache, where the next one is fetched meanwhile.
   Multiples of 8 end where pages do. */
static int tile_tokens(const struct work *w) {
    const int bytes = 4 * wide_floats(w), shared = SHARED / (w->heads * bytes);
    const int of_a_head = (w->rows < 16 ? 36 << 10 : 72 << 10) / bytes;
    const int tokens = (w->heads > 1 ? at_most(shared, of_a_head) : of_a_head) / 8 * 8;
    return at_most(tokens < 8 ? 8 : tokens, w->rows == 1 ? TILE_OF_ONE : TILE);
}

/* The rows of KV head g attend a tile whose tokens are k and v. */
INLINE void attend_head(const struct work *w, struct tile *tile, int g, const char *const *k, const char *const *v,
                        struct ahead ahead, const float *q, const int32_t *attended, float *s, float *wide,
                        float *o, float *peak, float *sum) {
    const int W = w->key_width, Z = w->value_width, bytes = BYTES[w->format];
    const int64_t k_head = bytes * g * w->k_head, v_head = w->v ? bytes * g * w->v_head : k_head;
    for (int t = 0; t < tile->n; t++, wide += wide_floats(w)) {
        tile->k[t] = (const float *)(k[t] + k_head), tile->v[t] = (const float *)(v[t] + v_head);
        if (w->format == FP32) continue;
        widen(w->format, k[t] + k_head, wide, W);
        if (w->v) widen(w->format, v[t] + v_head, wide + W, Z);
        tile->k[t] = wide, tile->v[t] = w->v ? wide + W : wide;
    }
    for (int r = 0, rows; r < w->rows; r += rows) {
#define ATTEND(R, T, D) attend(rows = R, T, D, w, tile, r == 0, ahead, q + (int64_t)r * W, attended + r, s, \
                               o + (int64_t)r * Z, peak + r, sum + r)
#if LANES == 16
        if (w->rows - r >= 8) ATTEND(8, 3, 2);
        else
#endif
        if (w->rows - r >= 4) ATTEND(4, 3, 2);
        else if (w->rows - r >= 2) ATTEND(2, 4, 4);
        else ATTEND(1, 8, 8);
    }
}

static void run_piece(const struct work *w, int piece, float *room) {
    const int sequence = w->pieces[3 * piece], start = w->pieces[3 * piece + 1], end = w->pieces[3 * piece + 2];
    const int64_t W = w->key_width, Z = w->value_width, M = w->rows, all = w->heads * M;
    const int size = tile_tokens(w), is_one = M == 1 && w->page_tokens >= size, bytes = BYTES[w->format];
    const int32_t *attended = w->attended + sequence * M;
    const float *q = w->q + sequence * all * W;
    float *o = w->partial + piece * all * Z, *s = room, *wide = room + TILE * ROWS;
    float *peak = wide + TILE * wide_floats(w), *sum = peak + all;
    const char *k[TILE], *v[TILE];
    struct tile tile = {.first = start};
    struct cursor cursor = {.sequence = sequence, .row = start * w->heads, .end = end * w->heads};
    const int is_near = w->heads == 1 && (is_one || (M < 8 && w->format == FP32)); /* fetched inside the scores */
    if (start < end) take(w, &cursor, is_near ? AHEAD : size * w->heads);
    memset(o, 0, sizeof(float) * all * Z);
    memset(sum, 0, sizeof(float) * all);
    for (int r = 0; r < all; r++) peak[r] = -1e30f;
    for (; tile.first < end; tile.first += tile.n) {
        tile.n = at_most(size, end - tile.first);
        if (is_one) tile.n = at_most(tile.n, w->page_tokens - tile.first % w->page_tokens);
        find_rows(w, sequence, tile.first, is_one ? 1 : tile.n, k, v);
        for (int g = 0; g < w->heads; g++) {
            const struct ahead ahead = take(w, &cursor, tile.n);
            const int64_t row = g * M;
            if (!is_one) {
                attend_head(w, &tile, g, k, v, ahead, q + row * W, attended, s, wide, o + row * Z, peak + row,
                            sum + row);
                continue;
            }
            const char *key = k[0] + bytes * g * w->k_head, *value = w->v ? v[0] + bytes * g * w->v_head : key;
            const int n = at_most(tile.n, attended[0] - tile.first);
            if (w->format == FP32)
                attend_one(FP32, w, key, value, n, ahead, q + row * W, room, o + row * Z, peak + row, sum + row);
            else
                attend_one(w->format, w, key, value, n, ahead, q + row * W, room, o + row * Z, peak + row, sum + row);
        }
    }
    memcpy(w->peaks + piece * all, peak, sizeof(float) * all);
    memcpy(w->sums + piece * all, sum, sizeof(float) * all);
}

/* Outputs and natural-log sums of a sequence from its pieces; 0 and -inf for a row that attends nothing. */
static void combine(const struct work *w, int sequence) {
    const int M = w->heads * w->rows, Z = w->value_width;
    const int from = w->piece_range[2 * sequence], to = w->piece_range[2 * sequence + 1];
    for (int r = 0; r < M; r++) {
        float top = -1e30f, total = 0.0f, *out = w->out + ((int64_t)sequence * M + r) * Z;
        for (int p = from; p < to; p++) top = fmaxf(top, w->peaks[(int64_t)p * M + r]);
        for (int i = 0; i < Z; i++) out[i] = 0.0f;
        for (int p = from; p < to; p++) {
            const float weight = exp2f(w->peaks[(int64_t)p * M + r] - top), *o = w->partial + ((int64_t)p * M + r) * Z;
            total += weight * w->sums[(int64_t)p * M + r];
            for (int i = 0; i < Z; i++) out[i] += weight * o[i];
        }
        w->lse[(int64_t)sequence * M + r] = total == 0.0f ? -INFINITY : (top + log2f(total)) * 0.69314718f;
        const float scale = total == 0.0f ? 0.0f : w->out_scale / total;
        for (int i = 0; i < Z; i++) out[i] *= scale;
    }
}

/* Floats of room that a thread needs, in whole lines of its own. */
int64_t room_floats(const struct work *w) {
    const int64_t floats = TILE * ROWS + (int64_t)TILE * wide_floats(w) + 2 * w->heads * w->rows;
    return (floats + 2 * LINE / 4) / (LINE / 4) * (LINE / 4);
}

/* What one thread does: pieces until none are left. */
void decode(const struct work *w, float *room) {
    for (int piece; (piece = atomic_fetch_add(w->next, 1)) < w->n_pieces;) {
        run_piece(w, piece, room);
        const int sequence = w->pieces[3 * piece];
        if (atomic_fetch_sub(w->waiting + sequence, 1) == 1) combine(w, sequence);
    }
}
