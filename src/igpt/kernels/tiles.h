// Matrix tiles (AMX) and vectors, as all kernels here use them.
//
// A tile is 16 rows of 64 bytes. A product takes A [16, 32] in bfloat16, row by row, and B [32, 16]
// with pairs of rows interleaved, and adds to C [16, 16] in float32.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "numbers.h"

constexpr int TILE = 16;              // rows of a tile, and columns of float32
constexpr int BLOCK = 32;             // rows that are computed together
constexpr int TILE_DWORDS = 16 * 16;  // a whole tile

// Eight tiles of full size. Constant memory, as the compiler does not know that it is read.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
};
inline constexpr TileConfig CONFIG;

// The tiles of one thread, as long as this lives.
struct Tiles {
  Tiles() { _tile_loadconfig(&CONFIG); }
  ~Tiles() { _tile_release(); }
};

// Nor does it know what a tile is loaded from: all that was written must be in memory.
inline void written() { __asm__ volatile("" ::: "memory"); }

// C [32, 32], in tiles 0 to 3, += A [32, 32 k] B [32 k, 32]. A is two rows of tiles and B two columns.
// Steps, from one tile of a row or column to the next, and strides, from a row to the next, are in
// bytes.
inline void accumulate(const void* a0, const void* a1, long a_stride, long a_step, const void* b0,
                       const void* b1, long b_step, int k) {
  written();
  const auto at = [](const void* base, long offset) { return (const char*)base + offset; };
  for (long i = 0; i < k; i++) {
    _tile_loadd(4, at(a0, i * a_step), a_stride);
    _tile_loadd(5, at(a1, i * a_step), a_stride);
    _tile_loadd(6, at(b0, i * b_step), 64);
    _tile_loadd(7, at(b1, i * b_step), 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

inline void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void store_product(float* c, long c_stride) {
  auto* out = (char*)c;
  _tile_stored(0, out, c_stride);
  _tile_stored(1, out + 64, c_stride);
  _tile_stored(2, out + TILE * c_stride, c_stride);
  _tile_stored(3, out + TILE * c_stride + 64, c_stride);
}

// --- vectors -------------------------------------------------------------------------------------

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// 2^x of finite x, to the precision of bfloat16 and some more: a cubic on [-1/2, 1/2], 1e-4 relative.
inline __m512 exp2_ps(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.05550411f), f, _mm512_set1_ps(0.24022651f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69314718f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, whole);
}

// Lanes of a vector that begins at `start` whose place is below `end`.
inline __mmask16 lanes_below(int start, int end) {
  return end - start >= 16 ? 0xffff : end <= start ? 0 : __mmask16((1u << (end - start)) - 1);
}

// Ask the system for the tiles: 0 when it grants them. 18 is the state of their data.
extern "C" inline __attribute__((used, visibility("default"))) int request_tiles() {
  return int(syscall(SYS_arch_prctl, 0x1023, 18));
}
