// Products of blocks of 32 rows in bfloat16, added in float32: on matrix tiles where the processor
// has some (and NO_TILES does not say otherwise), and else on vectors of 512 bits. Operands are
// laid out as `wide.h` says.

#pragma once

#include <cstring>

#if defined(__AMX_BF16__) && !defined(NO_TILES)

#include "tiles.h"

using Thread = Tiles;  // every thread that computes products needs one

// C [32, 32] = A [32, 32 k] B [32 k, 32]. The rows of A and C are `a_row` and `c_row` elements
// apart; B is two columns of k tiles.
inline void multiply(const bf16* a, long a_row, const uint32_t* b0, const uint32_t* b1, int k,
                     float* c, long c_row) {
  clear();
  accumulate(a, a + TILE * a_row, 2 * a_row, 64, b0, b1, 4 * TILE_DWORDS, k);
  store_product(c, 4 * c_row);
}

// C [32, 16 n] += A [32, 32] B [32, 16 n]: B is n tiles, an even number, and C two rows of them.
inline void add_products(const bf16* a, long a_row, const uint32_t* b, int n, float* upper,
                         float* lower) {
  written();
  _tile_loadd(4, a, 2 * a_row);
  _tile_loadd(5, a + TILE * a_row, 2 * a_row);
  for (int i = 0; i < n * TILE_DWORDS; i += TILE_DWORDS) {
    _tile_loadd(6, b + i, 64);
    _tile_loadd(0, upper + i, 64);
    _tile_loadd(1, lower + i, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    _tile_stored(0, upper + i, 64);
    _tile_stored(1, lower + i, 64);
  }
}

#else

#include "wide.h"

struct Thread {};

constexpr int ROWS = 8;  // of A at a time: their sums with two vectors of B fill half the registers

// sum [16] + the products of the two numbers at `pair` with those of each of 16 pairs, added.
inline __m512 add_pair(__m512 sum, const bf16* pair, __m512i pairs) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)pairs);
}

// Eight rows of two tiles of C, `c_row` elements apart, += those rows of A [8, 32 k] times B; or,
// unless they are ADDED, instead of what was there.
template <bool ADDED>
inline void multiply_rows(const bf16* a, long a_row, const uint32_t* b0, const uint32_t* b1, int k,
                          float* c0, float* c1, long c_row) {
  __m512 left[ROWS], right[ROWS];
  for (int r = 0; r < ROWS; r++) {
    left[r] = ADDED ? _mm512_loadu_ps(c0 + r * c_row) : _mm512_setzero_ps();
    right[r] = ADDED ? _mm512_loadu_ps(c1 + r * c_row) : _mm512_setzero_ps();
  }
  for (int pair = 0; pair < 16 * k; pair++) {
    const __m512i x = _mm512_loadu_si512(b0 + 16 * pair), y = _mm512_loadu_si512(b1 + 16 * pair);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      left[r] = add_pair(left[r], a + r * a_row + 2 * pair, x);
      right[r] = add_pair(right[r], a + r * a_row + 2 * pair, y);
    }
  }
  for (int r = 0; r < ROWS; r++) {
    _mm512_storeu_ps(c0 + r * c_row, left[r]);
    _mm512_storeu_ps(c1 + r * c_row, right[r]);
  }
}

inline void multiply(const bf16* a, long a_row, const uint32_t* b0, const uint32_t* b1, int k,
                     float* c, long c_row) {
  for (int row = 0; row < BLOCK; row += ROWS, a += ROWS * a_row, c += ROWS * c_row)
    multiply_rows<false>(a, a_row, b0, b1, k, c, c + TILE, c_row);
}

inline void add_products(const bf16* a, long a_row, const uint32_t* b, int n, float* upper,
                         float* lower) {
  for (int i = 0; i < n * TILE_DWORDS; i += 2 * TILE_DWORDS)
    for (int row = 0; row < BLOCK; row += ROWS) {
      float* c = (row < TILE ? upper : lower) + i + row % TILE * 16;
      multiply_rows<true>(a + row * a_row, a_row, b + i, b + i + TILE_DWORDS, 1, c, c + TILE_DWORDS,
                          TILE);
    }
}

#endif
