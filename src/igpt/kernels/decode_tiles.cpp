// The decoder's step (`decode.h`) on matrix tiles (AMX).
//
// Weights are stored in tiles of 16 outputs by 32 inputs, keys and values in the interleaved pairs
// that bfloat16 products take; products are added in float32. Weights in int8 are widened to
// bfloat16 as they are read.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "decode.h"
#include "tiles.h"

constexpr int CHUNK = 4;     // tiles of int8 that are widened before they are used
constexpr int AHEAD = 4096;  // how many bytes of int8 ahead to prefetch; the best value measured

namespace {

// Where the elements of a column of a tile [16, 16] are.
const __m512i ROWS = _mm512_slli_epi32(
    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 4);

// 32 consecutive outputs of a picture.
struct Outputs {
  __m512 low, high;
  static Outputs load(const float* from) {
    return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)};
  }
};

void store(float* to, const Outputs& y) {
  _mm512_storeu_ps(to, y.low);
  _mm512_storeu_ps(to + 16, y.high);
}

void add(float* to, const Outputs& y) {
  const Outputs x = Outputs::load(to);
  store(to, {_mm512_add_ps(x.low, y.low), _mm512_add_ps(x.high, y.high)});
}

// 32 floats as 16 pairs of bfloat16.
__m512i pack(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// x [B, inputs] as operand B of a product (`wide.h`): tile (picture / 16, input / 32) has pairs of
// inputs, by picture.
struct Inputs {
  int steps;  // tiles that a picture's inputs go through
  std::vector<uint32_t> tiles;

  Inputs(int B, int inputs)
      : steps(inputs / 32), tiles(size_t(round_up(B, 32)) / TILE * steps * TILE_DWORDS, 0) {}

  const uint32_t* column(int picture) const {
    return &tiles[size_t(picture / TILE) * steps * TILE_DWORDS];
  }
  // Sets the inputs i to i + 31 of a picture.
  void set(int picture, int i, const Outputs& x) {
    uint32_t* pairs = &tiles[(size_t(picture / TILE) * steps + i / 32) * TILE_DWORDS];
    _mm512_i32scatter_epi32(pairs + picture % TILE, ROWS, pack(x.low, x.high), 4);
  }
};

float dot(const float* a, const float* b, int n) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16)
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
  return _mm512_reduce_add_ps(sum);
}

void set_normalised(const float* h, const float* gain, int d, float eps, int picture, Inputs& to) {
  const __m512 factor = _mm512_set1_ps(1 / std::sqrt(dot(h, h, d) / d + eps));
  const auto part = [&](int i) {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(h + i), factor), _mm512_loadu_ps(gain + i));
  };
  for (int i = 0; i < d; i += 32) to.set(picture, i, {part(i), part(i + 16)});
}

// Tiles of int8 as bfloat16, which represents all of their values exactly.
void widen(const int8_t* from, int count, bf16* to) {
  for (int i = 0; i < count; i += 32) {
    const auto part = [&](int at) {
      const __m128i bytes = _mm_loadu_si128((const __m128i*)(from + i + at));
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    };
    _mm_prefetch((const char*)from + i + AHEAD, _MM_HINT_T0);
    _mm512_storeu_si512(to + i, pack(part(0), part(16)));
  }
}

// Outputs `output` to `output` + 31 of 32 pictures, not yet scaled, as a product [32, 32].
void multiply(const Linear& linear, int output, const Inputs& x, int picture, float* product) {
  constexpr int SIZE = TILE * 32;  // elements of a tile
  const int steps = linear.inputs / 32;
  const size_t first = size_t(output / TILE) * steps * SIZE, second = first + size_t(steps) * SIZE;
  const uint32_t *b0 = x.column(picture), *b1 = x.column(picture + TILE);
  clear();
  if (!linear.scales) {
    const auto* tiles = (const bf16*)linear.weights;
    accumulate(tiles + first, tiles + second, 64, 2 * SIZE, b0, b1, 2 * SIZE, steps);
  } else {
    const auto* tiles = (const int8_t*)linear.weights;
    alignas(64) bf16 wide[2][CHUNK * SIZE];
    for (int k = 0; k < steps; k += CHUNK) {
      const int count = std::min(CHUNK, steps - k), at = k * SIZE;
      widen(tiles + first + at, count * SIZE, wide[0]);
      widen(tiles + second + at, count * SIZE, wide[1]);
      accumulate(wide[0], wide[1], 64, 2 * SIZE, b0 + k * TILE_DWORDS, b1 + k * TILE_DWORDS,
                 2 * SIZE, count);
    }
  }
  store_product(product, 4 * BLOCK);
}

// Calls use(picture, output, y) with outputs `output` to `output` + 31 of every picture, for
// all outputs; the team of threads shares the outputs.
template <class Use>
void apply(const Linear& linear, const Inputs& x, int B, Use use) {
  alignas(64) float product[BLOCK * BLOCK];
  const __m512i places = _mm512_slli_epi32(ROWS, 1);  // of a column of the product
#pragma omp for schedule(static)
  for (int output = 0; output < linear.outputs; output += BLOCK)
    for (int picture = 0; picture < B; picture += BLOCK) {
      multiply(linear, output, x, picture, product);
      for (int b = picture; b < std::min(B, picture + BLOCK); b++) {
        const float* column = product + b - picture;
        __m512 low = _mm512_i32gather_ps(places, column, 4);
        __m512 high = _mm512_i32gather_ps(places, column + TILE * BLOCK, 4);
        if (linear.scales) {
          low = _mm512_mul_ps(low, _mm512_loadu_ps(linear.scales + output));
          high = _mm512_mul_ps(high, _mm512_loadu_ps(linear.scales + output + 16));
        }
        use(b, output, Outputs{low, high});
      }
    }
}

// x sigmoid(1.702 x)
__m512 quick_gelu(__m512 x) {
  const __m512 power = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.702f * LOG2E)));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1), power));
}

Outputs quick_gelu(const Outputs& x) { return {quick_gelu(x.low), quick_gelu(x.high)}; }

// --- attention -----------------------------------------------------------------------------------

__m512i broadcast_pair(const bf16* pair) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return _mm512_set1_epi32(both);
}

__m512 add_products(__m512 sum, const bf16* pairs, __m512i pair) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(pairs), (__m512bh)pair);
}

void round_all(const float* x, int n, bf16* to) {
  for (int i = 0; i < n; i += 16)
    _mm256_storeu_si256((__m256i*)(to + i), to_bf16(_mm512_loadu_ps(x + i)));
}

// Scores of one query [D] with `count` positions, 64 at a time.
void score(const bf16* query, const bf16* keys, int D, int count, float* out) {
  for (int s = 0; s < count; s += TOGETHER) {
    const bf16* block = keys + size_t(s) * D;  // 16 positions take 16 D elements
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                      _mm512_setzero_ps()};
    for (int d = 0; d < D; d += 2) {
      const __m512i pair = broadcast_pair(query + d);
      for (int i = 0; i < 4; i++) sums[i] = add_products(sums[i], block + i * 16 * D + d * 16, pair);
    }
    for (int i = 0; i < 4; i++) _mm512_storeu_ps(out + s + 16 * i, sums[i]);
  }
}

// Softmax of scores [count], rounded to bfloat16 and not yet divided by the sum, which is returned;
// zeros follow, up to a multiple of 64.
float softmax(float* scores, int count, float scale, bf16* out) {
  __m512 best = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int s = 0; s < count; s += 16)
    best = _mm512_max_ps(best, _mm512_mask_loadu_ps(best, lanes_below(s, count), scores + s));
  const __m512 slope = _mm512_set1_ps(scale * LOG2E);
  const __m512 offset = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(best)), slope);
  for (int s = 0; s < round_up(count, TOGETHER); s += 16) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + s), slope, offset);
    const __m512 p = _mm512_maskz_mov_ps(lanes_below(s, count), exp2_ps(x));
    sum = _mm512_add_ps(sum, p);
    _mm256_storeu_si256((__m256i*)(out + s), to_bf16(p));
  }
  return _mm512_reduce_add_ps(sum);
}

// Values [count, D] mixed with weights [count], 16 dimensions at a time, times a factor.
void mix(const bf16* weights, const bf16* values, int D, int count, float factor, float* out) {
  constexpr int VECTORS = 4;  // side by side, 64 dimensions
  for (int d = 0; d < D; d += 16 * VECTORS) {
    const int vectors = std::min(VECTORS, (D - d) / 16);
    __m512 sums[2][VECTORS];
    for (auto& row : sums)
      for (auto& sum : row) sum = _mm512_setzero_ps();
    for (int s = 0; s < count; s += 4)
      for (int half = 0; half < 2; half++) {
        const __m512i pair = broadcast_pair(weights + s + 2 * half);
        const bf16* row = values + size_t(s + 2 * half) * D + 2 * d;
        for (int i = 0; i < vectors; i++)
          sums[half][i] = add_products(sums[half][i], row + 32 * i, pair);
      }
    for (int i = 0; i < vectors; i++)
      _mm512_storeu_ps(out + d + 16 * i, _mm512_mul_ps(_mm512_add_ps(sums[0][i], sums[1][i]),
                                                       _mm512_set1_ps(factor)));
  }
}

struct Scratch {
  Floats scores, mixed;
  std::vector<bf16> query, key, value, weights;
  Scratch(int S, int D) : scores(S), mixed(D), query(D), key(D), value(D), weights(S) {}
};

// Stores the new key and value of a head, the `head`-th over all layers and pictures, then lets its
// query attend to all positions.
void attend(const float* q, const float* k, const float* v, const Cache& cache, size_t head, int D,
            Scratch& scratch) {
  const int length = cache.length, count = length + 1;
  bf16* keys = (bf16*)cache.keys + head * cache.S * D;
  bf16* values = (bf16*)cache.values + head * cache.S * D;
  bf16* key = keys + size_t(length / 16) * 16 * D + length % 16 * 2;
  bf16* value = values + size_t(length / 2) * 2 * D + length % 2;
  round_all(q, D, scratch.query.data());
  round_all(k, D, scratch.key.data());
  round_all(v, D, scratch.value.data());
  for (int d = 0; d < D; d++) {
    key[d / 2 * 32 + d % 2] = scratch.key[d];
    value[2 * d] = scratch.value[d];
  }
  score(scratch.query.data(), keys, D, count, scratch.scores.data());
  const float sum =
      softmax(scratch.scores.data(), count, 1 / std::sqrt(float(D)), scratch.weights.data());
  mix(scratch.weights.data(), values, D, round_up(count, 4), 1 / sum, scratch.mixed.data());
}

struct Backend {
  using Thread = Tiles;
  using Inputs = ::Inputs;
  using Outputs = ::Outputs;
  using Scratch = ::Scratch;
};

}  // namespace

extern "C" void decode_step(const Model* model, const Cache* cache, float* h, float* logits, int B,
                            int threads) {
  step<Backend>(*model, *cache, h, logits, B, threads);
}
