// Products of pairs on tiles, 16 rows of 64 bytes: Intel's AMX (Intel 64 and IA-32 Architectures Software Developer's Manual,
// volume 1, chapter 18). Compiled with EMULATE_TILES, the same in plain C, so that its results can be checked on any processor.
#pragma once
#include "pack.h"

#if HAS_TILES

#define TILE_ROWS 16
#define TILE_WORDS 16

#if defined(EMULATE_TILES)
static __thread float emulated_sums[4][TILE_ROWS][TILE_WORDS];
static __thread uint32_t emulated_words[4][TILE_ROWS][TILE_WORDS];

typedef int TileConfig;
static inline TileConfig tiles_begin(void) { return 0; }
static inline void tiles_end(TileConfig before) { (void)before; }
static inline void emulate_load(void *tile, const void *from, int64_t stride) {
  for (int r = 0; r < TILE_ROWS; r++) memcpy((uint32_t *)tile + r * TILE_WORDS, (const char *)from + r * stride, 64);
}
static inline float low_half(uint32_t word) { return ((union { uint32_t bits; float value; }){word << 16}).value; }
static inline float high_half(uint32_t word) { return ((union { uint32_t bits; float value; }){word & 0xffff0000u}).value; }
// TDPBF16PS (volume 2): even and odd terms are summed apart, and both sums added to the tile.
static inline void emulate_dot(float (*sums)[TILE_WORDS], uint32_t (*a)[TILE_WORDS], uint32_t (*b)[TILE_WORDS]) {
  for (int r = 0; r < TILE_ROWS; r++) {
    float even[TILE_WORDS] = {0}, odd[TILE_WORDS] = {0};
    for (int q = 0; q < TILE_WORDS; q++)
      for (int i = 0; i < TILE_WORDS; i++) {
        even[i] += low_half(a[r][q]) * low_half(b[q][i]);
        odd[i] += high_half(a[r][q]) * high_half(b[q][i]);
      }
    for (int i = 0; i < TILE_WORDS; i++) sums[r][i] += even[i] + odd[i];
  }
}
// Tiles 0 to 3 are sums, 4 to 7 operands.
#define tile_zero(t) memset(emulated_sums[t], 0, sizeof emulated_sums[t])
#define tile_load_sums(t, from, stride) emulate_load(emulated_sums[t], from, stride)
#define tile_load(t, from, stride) emulate_load(emulated_words[(t)-4], from, stride)
#define tile_dot(t, a, b) emulate_dot(emulated_sums[t], emulated_words[(a)-4], emulated_words[(b)-4])
#define tile_store(t, to, stride) \
  for (int tile_row = 0; tile_row < TILE_ROWS; tile_row++) memcpy((char *)(to) + tile_row * (stride), emulated_sums[t][tile_row], 64)
#else
// What the tiles are set up for, which belongs to the thread: ggml's own kernels set them up once and rely on it.
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} TileConfig;
// The compilers' intrinsics for this take 8 bytes of the record for the whole.
static inline void configure(const TileConfig *config) { __asm__ volatile("ldtilecfg %0" : : "m"(*config) : "memory"); }
static inline TileConfig tiles_begin(void) {
  TileConfig before, config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.row_bytes[i] = 64;
    config.rows[i] = TILE_ROWS;
  }
  __asm__ volatile("sttilecfg %0" : "=m"(before) : : "memory");
  configure(&config);
  return before;
}
// Without tiles in use a change of threads has less to save.
static inline void tiles_end(TileConfig before) {
  if (before.palette == 0)
    _tile_release();
  else
    configure(&before);
}
#define tile_zero(t) _tile_zero(t)
#define tile_load_sums(t, from, stride) _tile_loadd(t, from, stride)
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
#define tile_dot(t, a, b) _tile_dpbf16ps(t, a, b)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#endif

// 16 words of pairs of one row; words past the `left` numbers are zeros.
static inline void put_row_words(uint32_t *out, const char *p, int32_t type, int64_t left) {
  for (int q = 0; q < TILE_WORDS; q += VL)
    store_words(out + q, some_words_at(p + (size_t)q * 2 * type_bytes(type), type, 1, left - 2 * q, 1));
}

// Pairs of the terms at p and after it, of `rows` rows and `terms` terms that are left.
static inline vu pair_at(const char *p, const Operand *x, int across, int rows, int terms) {
  if (across && rows >= VL && terms >= 2) return pair_words(numbers_at(p, x->type), numbers_at(p + x->k_stride, x->type));
  float values[2][VL] = {{0}};
  for (int h = 0; h < 2 && h < terms && rows > 0; h++, p += x->k_stride) {
    if (across)
      store(values[h], some_numbers_at(p, x->type, rows));
    else
      widen_all(p, x->type, x->row_stride, rows < VL ? rows : VL, values[h]);
  }
  return pair_words(load(values[0]), load(values[1]));
}

// The second operand: rows from r0 on, terms k0 .. k0 + kc, as tiles of 16 rows by 16 words, those of the same rows one after the
// other. Missing rows and terms are zeros. Writes an even number of tiles of rows.
static void pack_tiles(const Operand *x, int64_t r0, int rows, int64_t k0, int kc, uint32_t *out) {
  const char *const corner = x->data + r0 * x->row_stride + k0 * x->k_stride;
  const int along = x->k_stride == type_bytes(x->type), across = x->row_stride == type_bytes(x->type);
  const int words = words_for(kc, 1);
  const int all = round_up(rows, 2 * TILE_ROWS);
  if (along) {
    for (int s = 0; s < all; s += TILE_ROWS)
      for (int q = 0; q < words; q += TILE_WORDS, out += TILE_ROWS * TILE_WORDS) {
        const char *p = corner + s * x->row_stride + (size_t)q * 2 * type_bytes(x->type);
        for (int r = 0; r < TILE_ROWS; r++, p += x->row_stride) {
          __builtin_prefetch(p + 256);
          put_row_words(out + r * TILE_WORDS, p, x->type, s + r < rows ? kc - 2 * q : 0);
        }
      }
    return;
  }
  // all rows of the same terms, one after the other: across, they are neighbors in memory
  for (int q = 0; q < words; q += TILE_WORDS)
    for (int s = 0; s < all; s += TILE_ROWS) {
      uint32_t *tile = out + (size_t)s * words + q * TILE_ROWS;
      for (int r = 0; r < TILE_ROWS; r += VL)
        for (int w = 0; w < TILE_WORDS; w += VL) { // a block of VL rows by VL words, transposed
          vu block[VL];
          for (int i = 0; i < VL; i++) {
            const int k = 2 * (q + w + i);
            block[i] = pair_at(corner + (s + r) * x->row_stride + k * x->k_stride, x, across, rows - s - r, kc - k);
          }
          transpose_words(block);
          for (int i = 0; i < VL; i++) store_words(tile + (r + i) * TILE_WORDS + w, block[i]);
        }
    }
}

// As `multiply_panels`, for a in panels of 32 rows and b in tiles: 32 x 32 results stay in four tiles.
// past_caches: the results are read much later, and need not be fetched before they are overwritten
static void multiply_tiles(int words, const uint32_t *a, int a_words, int m, const uint32_t *b, int n, float *c, int64_t ldc, int add,
                           int64_t last, int past_caches) {
  enum { SIDE = 2 * TILE_ROWS, TILE = TILE_ROWS * TILE_WORDS };
  past_caches = past_caches && !add && ((uintptr_t)c | (uintptr_t)(4 * ldc)) % 64 == 0;
  const TileConfig before = tiles_begin();
  for (int j = 0; j < n; j += SIDE)
    for (int i = 0; i < m; i += SIDE) {
      const int mi = m - i < SIDE ? m - i : SIDE, nj = n - j < SIDE ? n - j : SIDE;
      if (i > last + j + nj - 1) continue;
      const uint32_t *ai = a + (size_t)i * a_words, *b0 = b + (size_t)j * words, *b1 = b0 + (size_t)TILE_ROWS * words;
      float edge[SIDE * SIDE] __attribute__((aligned(64))), *out = c + j * ldc + i;
      int64_t ld = ldc;
      const int whole = mi == SIDE && nj == SIDE;
      if (!whole || past_caches) {
        out = edge;
        ld = SIDE;
      }
      if (!whole && add) {
        memset(edge, 0, sizeof edge);
        for (int y = 0; y < nj; y++) memcpy(edge + y * SIDE, c + (j + y) * ldc + i, 4 * mi);
      }
      if (add) {
        tile_load_sums(0, out, ld * 4);
        tile_load_sums(1, out + TILE_ROWS, ld * 4);
        tile_load_sums(2, out + TILE_ROWS * ld, ld * 4);
        tile_load_sums(3, out + TILE_ROWS * ld + TILE_ROWS, ld * 4);
      } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
      }
      for (int q = 0; q < words; q += TILE_WORDS, ai += TILE_WORDS * SIDE, b0 += TILE, b1 += TILE) {
        tile_load(4, b0, 64);
        tile_load(6, ai, SIDE * 4);
        tile_load(7, ai + TILE_ROWS, SIDE * 4);
        tile_load(5, b1, 64);
        tile_dot(0, 4, 6);
        tile_dot(1, 4, 7);
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
      }
      tile_store(0, out, ld * 4);
      tile_store(1, out + TILE_ROWS, ld * 4);
      tile_store(2, out + TILE_ROWS * ld, ld * 4);
      tile_store(3, out + TILE_ROWS * ld + TILE_ROWS, ld * 4);
      for (int y = 0; whole && past_caches && y < SIDE; y++)
        for (int x = 0; x < SIDE; x += VL) store_past_caches(c + (j + y) * ldc + i + x, load(edge + y * SIDE + x));
      for (int y = 0; !whole && y < nj; y++) memcpy(c + (j + y) * ldc + i, edge + y * SIDE, 4 * mi);
    }
  tiles_end(before);
  if (past_caches) order_stores();
}

#endif
