// Matrix tiles (AMX), as the kernels use them.
//
// A tile is 16 rows of 64 bytes: of A [16, 32], of B [32, 16] in pairs of rows, or of C [16, 16].

#pragma once

#include <cstddef>
#include <cstdint>

#include "wide.h"

// The configuration of eight tiles of full size. A constant, since the compiler does not know that
// the processor reads it, and might leave out writing it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
};
inline constexpr TileConfig CONFIG;

// Configures the calling thread's tiles as long as this object lives.
struct Tiles {
  Tiles() { _tile_loadconfig(&CONFIG); }
  ~Tiles() { _tile_release(); }
};

// The compiler does not know, either, what a tile is loaded from: this makes it write all to
// memory.
inline void written() { __asm__ volatile("" ::: "memory"); }

// C [32, 32], in tiles 0 to 3, += A [32, 32 k] B [32 k, 32]. A is two rows of tiles and B two
// columns. A step is from one tile of such a row or column to the next, a stride from a row of
// numbers to the next; both are in bytes.
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
