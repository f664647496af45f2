// Vectors of 512 bits and their bfloat16 instructions (AVX-512 BF16), as the kernels use them.

#pragma once

#include <immintrin.h>

#include "numbers.h"

// A product takes A [16, 32] in bfloat16, row by row, and B [32, 16] with pairs of rows
// interleaved, and adds to C [16, 16] in float32. Matrix tiles need this layout, and vectors can
// use it as well.
constexpr int TILE = 16;              // rows of a tile, and columns of float32
constexpr int BLOCK = 32;             // rows that are computed together
constexpr int TILE_DWORDS = 16 * 16;  // a whole tile

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// 2^x of finite x, a little more precise than bfloat16: a cubic on [-1/2, 1/2], relative error
// 1e-4.
inline __m512 exp2_ps(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.05550411f), f, _mm512_set1_ps(0.24022651f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69314718f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, whole);
}

// The transpose of 16 rows of 16 words, in place.
inline void transpose(__m512i (&rows)[16]) {
  __m512i x[16];
  for (int i = 0; i < 16; i += 2) {
    x[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    x[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // rows[i + c] gets in its n-th quarter four rows of column 4 n + c.
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(x[i], x[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(x[i + 1], x[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(x[i + 1], x[i + 3]);
  }
  constexpr int EVEN = 0x88, ODD = 0xdd;  // quarters of both operands
  for (int c = 0; c < 4; c++) {
    x[c] = _mm512_shuffle_i32x4(rows[c], rows[c + 4], EVEN);
    x[c + 4] = _mm512_shuffle_i32x4(rows[c], rows[c + 4], ODD);
    x[c + 8] = _mm512_shuffle_i32x4(rows[c + 8], rows[c + 12], EVEN);
    x[c + 12] = _mm512_shuffle_i32x4(rows[c + 8], rows[c + 12], ODD);
  }
  for (int c = 0; c < 8; c++) {
    rows[c] = _mm512_shuffle_i32x4(x[c], x[c + 8], EVEN);
    rows[c + 8] = _mm512_shuffle_i32x4(x[c], x[c + 8], ODD);
  }
}

// 16 rows of 16 words, `row` bytes apart, transposed.
inline void load_transposed(const void* from, long row, __m512i (&columns)[16]) {
  for (int i = 0; i < 16; i++) columns[i] = _mm512_loadu_si512((const char*)from + i * row);
  transpose(columns);
}

// In a vector that begins at place `start`, the lanes whose place is below `end`.
inline __mmask16 lanes_below(int start, int end) {
  return end - start >= 16 ? 0xffff : end <= start ? 0 : __mmask16((1u << (end - start)) - 1);
}
