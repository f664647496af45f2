// Softmax attention in bfloat16, forward and backward, on matrix tiles or vectors (`blocks.h`).
//
// For each head, 32 rows of the score matrix are computed at a time and stay in the second-level
// cache, so memory grows linearly with the tokens. Names: T tokens, D width of a head; both are
// padded with zeros to multiples of 32, Tp and Dp.
//
// Recomputing the probabilities in the backward pass from their rows' log-sum is the algorithm of
// FlashAttention (Dao et al., 2022); here the blocks are sized for a core's cache, not a GPU's.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blocks.h"
#include "heads.h"

namespace {

// --- packing -------------------------------------------------------------------------------------

using Head = HeadOf<bf16>;
using Packed = std::vector<bf16>;
using PackedTiles = std::vector<uint32_t>;

// A head padded, row by row: [Tp, Dp]. It is copied only where there is something to pad.
struct PaddedHead {
  Packed copy;
  const bf16* data;
  long row;

  PaddedHead(Head head, int T, int D, int Tp, int Dp) : data(head.data), row(head.row) {
    if (T == Tp && D == Dp) return;
    copy.resize(size_t(Tp) * Dp);
    for (int t = 0; t < T; t++) std::memcpy(&copy[size_t(t) * Dp], data + t * row, 2 * D);
    data = copy.data(), row = Dp;
  }
  PaddedHead(const PaddedHead&) = delete;
  PaddedHead& operator=(const PaddedHead&) = delete;

  const bf16* at(int t) const { return data + t * row; }
};

// The transpose [Dp, Tp] as operand B of a product (`wide.h`): tile (token / 16, dimension / 32)
// has pairs of dimensions, by token.
PackedTiles pack_transposed(const PaddedHead& rows, int Tp, int Dp) {
  PackedTiles out(size_t(Tp) * Dp / 2);
  uint32_t* tile = out.data();
  for (int t = 0; t < Tp; t += TILE)
    for (int d = 0; d < Dp; d += 32, tile += TILE_DWORDS) {
      __m512i pairs[16];
      load_transposed(rows.at(t) + d, 2 * rows.row, pairs);
      for (int p = 0; p < 16; p++) _mm512_storeu_si512(tile + 16 * p, pairs[p]);
    }
  return out;
}

// [Tp, Dp] as operand B of a product: tile (dimension / 16, token / 32) has pairs of tokens, by
// dimension.
PackedTiles pack_pairs(const PaddedHead& rows, int Tp, int Dp) {
  PackedTiles out(size_t(Tp) * Dp / 2);
  const auto words = [&](int t, int d) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows.at(t) + d)));
  };
  for (int d = 0; d < Dp; d += 16)
    for (int t = 0; t < Tp; t += 2)
      _mm512_storeu_si512(&out[size_t(d) * Tp / 2 + t / 2 * 16],
                          _mm512_or_si512(words(t, d), _mm512_slli_epi32(words(t + 1, d), 16)));
  return out;
}

// The transpose [Dp, Tp], its rows `W` elements apart.
Packed transposed(const PaddedHead& rows, int Tp, int Dp, int W) {
  Packed out(size_t(Dp) * W);
  for (int t = 0; t < Tp; t += TILE)
    for (int d = 0; d < Dp; d += 32) {
      __m512i pairs[16];
      load_transposed(rows.at(t) + d, 2 * rows.row, pairs);
      for (int p = 0; p < 16; p++) {
        auto* even = (__m256i*)&out[size_t(d + 2 * p) * W + t];
        auto* odd = (__m256i*)&out[size_t(d + 2 * p + 1) * W + t];
        _mm256_storeu_si256(even, _mm512_cvtepi32_epi16(pairs[p]));
        _mm256_storeu_si256(odd, _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs[p], 16)));
      }
    }
  return out;
}

// x [n] times a factor, rounded to bfloat16.
void store_rounded(const float* x, float factor, int n, bf16* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_below(i, n);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(factor));
    _mm256_mask_storeu_epi16(out + i, lanes, to_bf16(scaled));
  }
}

float dot(const bf16* a, const bf16* b, int n) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 32) {
    const __mmask32 lanes = n - i >= 32 ? ~0u : (1u << (n - i)) - 1;
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(lanes, a + i),
                           (__m512bh)_mm512_maskz_loadu_epi16(lanes, b + i));
  }
  return _mm512_reduce_add_ps(sum);
}

struct Shape {
  int T, D, Tp, Dp;
  // Elements from a row of Tp to the next: rows 4,096 bytes apart would share their cache lines.
  int W;
  bool causal;
  float scale;  // of the scores

  Shape(int T, int D, bool causal)
      : T(T), D(D), Tp(round_up(T, BLOCK)), Dp(round_up(D, 32)), W(Tp + 32), causal(causal),
        scale(1 / std::sqrt(float(D))) {}
};

// --- forward -------------------------------------------------------------------------------------

// Probabilities, not yet divided by their sum, of scores [seen] of one query; zeros up to `width`.
// Returns the sum, and through `top` the largest score. Works on two vectors at a time, to hide the
// latency of their instructions.
float softmax_row(const float* scores, int seen, int width, float scale, bf16* out, float* top) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512 best = lowest, other = lowest;
  int j = 0;
  for (; j + 32 <= seen; j += 32) {
    best = _mm512_max_ps(best, _mm512_loadu_ps(scores + j));
    other = _mm512_max_ps(other, _mm512_loadu_ps(scores + j + 16));
  }
  for (; j < seen; j += 16)
    best = _mm512_max_ps(best, _mm512_mask_loadu_ps(lowest, lanes_below(j, seen), scores + j));
  *top = _mm512_reduce_max_ps(_mm512_max_ps(best, other));
  const __m512 slope = _mm512_set1_ps(scale * LOG2E), offset = _mm512_set1_ps(*top * scale * LOG2E);
  const auto power = [&](int at) {
    return exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), slope, offset));
  };
  __m512 sum = _mm512_setzero_ps(), rest = sum;
  for (j = 0; j + 32 <= seen; j += 32) {
    const __m512 p = power(j), next = power(j + 16);
    sum = _mm512_add_ps(sum, p);
    rest = _mm512_add_ps(rest, next);
    _mm512_storeu_si512(out + j, (__m512i)_mm512_cvtne2ps_pbh(next, p));
  }
  for (; j < width; j += 16) {
    const __mmask16 lanes = lanes_below(j, seen);
    const __m512 p = lanes ? _mm512_maskz_mov_ps(lanes, power(j)) : _mm512_setzero_ps();
    sum = _mm512_add_ps(sum, p);
    _mm256_storeu_si256((__m256i*)(out + j), to_bf16(p));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum, rest));
}

void forward_head(Head query, Head key, Head value, Head out, float* log_sum, Shape s) {
  const int steps = s.Dp / 32;  // of a product over a head's width
  const PaddedHead q(query, s.T, s.D, s.Tp, s.Dp);
  const PackedTiles k = pack_transposed({key, s.T, s.D, s.Tp, s.Dp}, s.Tp, s.Dp);
  const PackedTiles v = pack_pairs({value, s.T, s.D, s.Tp, s.Dp}, s.Tp, s.Dp);
  std::vector<float> scores(size_t(BLOCK) * s.W), mixed(size_t(BLOCK) * s.Dp);
  Packed weights(size_t(BLOCK) * s.W);
  float sums[BLOCK];
  for (int i = 0; i < s.T; i += BLOCK) {
    const int width = s.causal ? i + BLOCK : s.Tp;  // keys that this block may see
    for (int j = 0; j < width; j += BLOCK) {
      const uint32_t* tiles = &k[size_t(j / TILE) * steps * TILE_DWORDS];
      multiply(q.at(i), q.row, tiles, tiles + steps * TILE_DWORDS, steps, &scores[j], s.W);
    }
    const int rows = std::min(BLOCK, s.T - i);
    for (int r = 0; r < rows; r++) {
      float top;
      sums[r] = softmax_row(&scores[size_t(r) * s.W], s.causal ? i + r + 1 : s.T, width, s.scale,
                            &weights[size_t(r) * s.W], &top);
      log_sum[i + r] = top * s.scale + std::log(sums[r]);
    }
    for (int d = 0; d < s.Dp; d += BLOCK) {
      const uint32_t* tiles = &v[size_t(d / TILE) * (s.Tp / 32) * TILE_DWORDS];
      multiply(weights.data(), s.W, tiles, tiles + s.Tp / 32 * TILE_DWORDS, width / 32, &mixed[d],
               s.Dp);
    }
    for (int r = 0; r < rows; r++)
      store_rounded(&mixed[size_t(r) * s.Dp], 1 / sums[r], s.D, out.data + (i + r) * out.row);
  }
}

// --- backward ------------------------------------------------------------------------------------

struct Gradients {
  Head query, key, value;
};

// For a block of keys and the queries `from` to Tp. Takes the scores and the products of the values
// with the output's gradients, V dO^T, each [32, Tp]. Gives the probabilities and the gradients of
// the scores row by row, and these gradients also as operand B of a product, with pairs of keys.
void score_gradients(const float* scores, const float* products, int first_key, int from, Shape s,
                     const float* log_sum, const float* delta, bf16* p_rows, bf16* ds_rows,
                     uint32_t* ds_pairs) {
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(order);
  const __m512 slope = _mm512_set1_ps(s.scale * LOG2E), scale = _mm512_set1_ps(s.scale);
  for (int r = 0; r < BLOCK; r += 2)
    for (int i = from; i < s.Tp; i += 16) {
      const __m512 sums = _mm512_loadu_ps(log_sum + i), deltas = _mm512_loadu_ps(delta + i);
      __m512 p[2], ds[2];
      for (int key = 0; key < 2; key++) {
        const size_t at = size_t(r + key) * s.W + i;
        const int place = first_key + r + key;
        // A padded key is seen by no query. Its score is 0, which may be far above the others.
        __mmask16 seeing = place < s.T ? 0xffff : 0;
        if (s.causal && i < first_key + BLOCK) seeing &= ~lanes_below(i, place);
        p[key] = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), slope, sums));
        p[key] = _mm512_maskz_mov_ps(seeing, p[key]);
        const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(products + at), deltas);
        ds[key] = _mm512_mul_ps(_mm512_mul_ps(p[key], change), scale);
        _mm256_storeu_si256((__m256i*)(p_rows + at), to_bf16(p[key]));
      }
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0]);
      bf16* row = ds_rows + size_t(r) * s.W + i;
      _mm256_storeu_si256((__m256i*)row, _mm512_castsi512_si256(both));
      _mm256_storeu_si256((__m256i*)(row + s.W), _mm512_extracti64x4_epi64(both, 1));
      _mm512_storeu_si512(ds_pairs + size_t(i / TILE) * TILE_DWORDS + r / 2 * 16,
                          _mm512_permutexvar_epi16(interleave, both));
    }
}

// dQ^T [Dp, from..Tp], in tiles, += K^T [Dp, 32 keys] dS^T [32 keys, from..Tp].
void add_query_gradient(const bf16* key_transposed, const uint32_t* ds, int from, Shape s,
                        float* out) {
  for (int d = 0; d < s.Dp; d += BLOCK) {
    float* upper = out + (size_t(d / TILE) * (s.Tp / TILE) + from / TILE) * TILE_DWORDS;
    add_products(key_transposed + size_t(d) * s.W, s.W, ds + size_t(from / TILE) * TILE_DWORDS,
                 (s.Tp - from) / TILE, upper, upper + size_t(s.Tp / TILE) * TILE_DWORDS);
  }
}

// dQ [T, D] from dQ^T in tiles.
void store_query_gradient(const float* tiles, Shape s, Head out) {
  for (int d = 0; d < s.D; d += TILE)
    for (int t = 0; t < s.T; t += TILE) {
      __m512i rows[16];
      load_transposed(tiles + size_t(d) * s.Tp + t * TILE, 64, rows);
      for (int r = 0; r < std::min(TILE, s.T - t); r++)
        _mm256_mask_storeu_epi16(out.data + (t + r) * out.row + d, lanes_below(d, s.D),
                                 to_bf16((__m512)rows[r]));
    }
}

// Gradient [32, Dp] of a block of keys or values = weights [32, from..Tp] rows [from..Tp, Dp].
void store_block_gradient(const Packed& weights, const PackedTiles& rows, int block, int from,
                          Shape s, std::vector<float>& buffer, Head out) {
  for (int d = 0; d < s.Dp; d += BLOCK) {
    const uint32_t* tiles = &rows[(size_t(d / TILE) * (s.Tp / 32) + from / 32) * TILE_DWORDS];
    multiply(&weights[from], s.W, tiles, tiles + s.Tp / 32 * TILE_DWORDS, (s.Tp - from) / 32,
             &buffer[d], s.Dp);
  }
  for (int r = 0; r < std::min(BLOCK, s.T - block); r++)
    store_rounded(&buffer[size_t(r) * s.Dp], 1.0f, s.D, out.data + (block + r) * out.row);
}

void backward_head(Head query, Head key, Head value, Head out, Head out_gradient,
                   const float* log_sum, Gradients gradients, Shape s) {
  const int steps = s.Dp / 32;
  const PaddedHead q(query, s.T, s.D, s.Tp, s.Dp), k(key, s.T, s.D, s.Tp, s.Dp);
  const PaddedHead v(value, s.T, s.D, s.Tp, s.Dp), g(out_gradient, s.T, s.D, s.Tp, s.Dp);
  const PackedTiles q_columns = pack_transposed(q, s.Tp, s.Dp), q_pairs = pack_pairs(q, s.Tp, s.Dp);
  const PackedTiles g_columns = pack_transposed(g, s.Tp, s.Dp), g_pairs = pack_pairs(g, s.Tp, s.Dp);
  const Packed k_transposed = transposed(k, s.Tp, s.Dp, s.W);
  // Padded queries get probabilities of zero, 2^-1e30.
  std::vector<float> log2_sum(s.Tp, 1e30f), delta(s.Tp, 0.0f);
  for (int t = 0; t < s.T; t++) {
    log2_sum[t] = log_sum[t] * LOG2E;
    delta[t] = dot(out.data + t * out.row, g.at(t), s.D);
  }
  const size_t block_size = size_t(BLOCK) * s.W;
  std::vector<float> scores(block_size), products(block_size), buffer(size_t(BLOCK) * s.Dp);
  std::vector<float> q_gradient(size_t(s.Tp) * s.Dp, 0.0f);
  Packed p(block_size), ds(block_size);
  PackedTiles ds_pairs(size_t(BLOCK) * s.Tp / 2);
  for (int j = 0; j < s.T; j += BLOCK) {
    const int from = s.causal ? j : 0;  // queries that see these keys
    for (int i = from; i < s.Tp; i += BLOCK) {
      const size_t tile = size_t(i / TILE) * steps * TILE_DWORDS, next = steps * TILE_DWORDS;
      multiply(k.at(j), k.row, &q_columns[tile], &q_columns[tile + next], steps, &scores[i], s.W);
      multiply(v.at(j), v.row, &g_columns[tile], &g_columns[tile + next], steps, &products[i], s.W);
    }
    score_gradients(scores.data(), products.data(), j, from, s, log2_sum.data(), delta.data(),
                    p.data(), ds.data(), ds_pairs.data());
    store_block_gradient(p, g_pairs, j, from, s, buffer, gradients.value);
    store_block_gradient(ds, q_pairs, j, from, s, buffer, gradients.key);
    add_query_gradient(&k_transposed[j], ds_pairs.data(), from, s, q_gradient.data());
  }
  store_query_gradient(q_gradient.data(), s, gradients.query);
}

}  // namespace

// --- what Python calls ---------------------------------------------------------------------------

using Strided = StridedOf<bf16>;

extern "C" {

void attention_forward(const Strided* q, const Strided* k, const Strided* v, const Strided* out,
                       float* log_sum, int B, int H, int T, int D, int causal, int threads) {
  const Shape s(T, D, causal != 0);
  for_each_head(B, H, threads, [&](int b, int h, int i) {
    [[maybe_unused]] const Thread thread;
    forward_head(q->at(b, h), k->at(b, h), v->at(b, h), out->at(b, h), log_sum + size_t(i) * T, s);
  });
}

void attention_backward(const Strided* q, const Strided* k, const Strided* v, const Strided* out,
                        const Strided* out_gradient, const float* log_sum, const Strided* dq,
                        const Strided* dk, const Strided* dv, int B, int H, int T, int D,
                        int causal, int threads) {
  const Shape s(T, D, causal != 0);
  for_each_head(B, H, threads, [&](int b, int h, int i) {
    [[maybe_unused]] const Thread thread;
    backward_head(q->at(b, h), k->at(b, h), v->at(b, h), out->at(b, h), out_gradient->at(b, h),
                  log_sum + size_t(i) * T, {dq->at(b, h), dk->at(b, h), dv->at(b, h)}, s);
  });
}
}
