// Softmax attention in float32, forward and backward, on the vectors of any processor.
//
// The algorithm is that of `attention.cpp`: the scores of a few queries stay in the second-level
// cache, and the backward pass computes them again, a few keys and queries at a time. Names: T
// tokens, D width of a head, Tp and Dp the same, padded with zeros to whole panels.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "heads.h"
#include "vectors.h"

namespace {

using Head = HeadOf<float>;
using Floats = std::vector<float>;

constexpr int PANEL = 2 * LANES;           // columns that are computed together
constexpr int ROWS = LANES == 16 ? 8 : 6;  // and rows: their sums leave registers for the operands
constexpr int BLOCK = 4 * ROWS;            // queries (forward) or keys (backward) at a time
constexpr int CHUNK = 6 * PANEL;           // queries beside such keys
constexpr int CHUNK_ROW = CHUNK + LANES;   // rows a power of two apart would share cache lines

// --- products ------------------------------------------------------------------------------------

// An operand A: element (row, step) is at `row * from_row + step * from_step`.
struct Left {
  const float* data;
  long from_row, from_step;
};

// C [N, PANEL] = A [N, k] B [k, PANEL]; or, if ADDED, C += A B. Rows of C are `c_row` apart. The sum
// is made apart from what was there: a sum of sums is more exact than one long one.
template <bool ADDED, int N>
void multiply_rows(Left a, const float* b, int k, float* c, long c_row) {
  Vector left[N] = {}, right[N] = {};
  for (int step = 0; step < k; step++, a.data += a.from_step, b += PANEL) {
    const Vector x = load(b), y = load(b + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) {
      const float factor = a.data[r * a.from_row];
      left[r] += x * factor;
      right[r] += y * factor;
    }
  }
  for (int r = 0; r < N; r++, c += c_row) {
    store(c, ADDED ? load(c) + left[r] : left[r]);
    store(c + LANES, ADDED ? load(c + LANES) + right[r] : right[r]);
  }
}

// The same for an even number of rows.
template <bool ADDED>
void multiply(Left a, int rows, const float* b, int k, float* c, long c_row) {
  const auto from = [&](int r) { return Left{a.data + r * a.from_row, a.from_row, a.from_step}; };
  int r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    multiply_rows<ADDED, ROWS>(from(r), b, k, c + r * c_row, c_row);
  for (; r < rows; r += 2) multiply_rows<ADDED, 2>(from(r), b, k, c + r * c_row, c_row);
}

// --- packing -------------------------------------------------------------------------------------

struct Shape {
  int T, D, Tp, Dp;
  bool causal;
  float scale, slope;  // of the scores; of those in powers of two

  Shape(int T, int D, bool causal)
      : T(T), D(D), Tp(round_up(T, PANEL)), Dp(round_up(D, PANEL)), causal(causal),
        scale(1 / std::sqrt(float(D))), slope(scale * LOG2E) {}
};

// Fetches the row that is read soon after that of token `t`: a head's rows lie apart, which the
// processor does not foresee.
void prefetch(Head head, int t, Shape s) {
  const float* row = head.data + std::min(t + 16, s.T - 1) * head.row;
  for (int d = 0; d < s.D; d += 16) __builtin_prefetch(row + d);
}

// The transpose as operand B, times a factor: a panel of tokens after the other, [D, PANEL] each.
Floats pack_transposed(Head head, Shape s, float factor) {
  Floats out(size_t(s.Tp) * s.D);
  for (int t = 0; t < s.T; t++) {
    prefetch(head, t, s);
    float* to = &out[size_t(t / PANEL) * PANEL * s.D + t % PANEL];
    for (int d = 0; d < s.D; d++) to[d * PANEL] = head.data[t * head.row + d] * factor;
  }
  return out;
}

// As operand B: a panel of dimensions after the other, [Tp, PANEL] each.
Floats pack(Head head, Shape s) {
  Floats out(size_t(s.Tp) * s.Dp);
  for (int t = 0; t < s.T; t++) {
    prefetch(head, t, s);
    for (int d = 0; d < s.D; d += PANEL)
      std::memcpy(&out[size_t(d) * s.Tp + size_t(t) * PANEL], head.data + t * head.row + d,
                  sizeof(float) * std::min(PANEL, s.D - d));
  }
  return out;
}

// Tokens `first` to `first` + BLOCK, times a factor; zeros beyond the last.
void copy_block(Head head, int first, Shape s, float factor, Floats& out) {
  std::fill(out.begin(), out.end(), 0.0f);
  for (int r = 0; r < std::min(BLOCK, s.T - first); r++)
    for (int d = 0; d < s.D; d++) out[r * s.D + d] = head.data[(first + r) * head.row + d] * factor;
}

// `rows` rows [Dp], times `factor(row)`, to those of a head from token `first` on.
template <class Factor>
void store_rows(const Floats& from, int rows, Factor factor, Head head, int first, Shape s) {
  for (int r = 0; r < rows; r++) {
    float* to = head.data + (first + r) * head.row;
    for (int d = 0; d < s.D; d++) to[d] = from[size_t(r) * s.Dp + d] * factor(r);
  }
}

float dot(const float* a, const float* b, int n) {
  Vector sums = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
  float sum = sum_of(sums);
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// The places of a vector's lanes, from `start` on.
Words places(int start) {
  Words x;
  for (int i = 0; i < LANES; i++) x[i] = start + i;
  return x;
}

// x where `mask` is all ones, and 0 where it is 0.
Vector only(Words mask, Vector x) { return (Vector)(mask & (Words)x); }

// --- forward -------------------------------------------------------------------------------------

// Scores [seen] of one query, in powers of two, become probabilities, not yet divided by their sum;
// zeros follow up to `width`. Returns the sum, and through `top` the largest score. Works on two
// vectors at a time, to hide the latency of their instructions.
float softmax_row(float* scores, int seen, int width, float* top) {
  const Vector lowest = Vector{} - INFINITY;
  Vector best = lowest, other = lowest;
  int j = 0;
  for (; j + PANEL <= seen; j += PANEL) {
    best = larger(best, load(scores + j));
    other = larger(other, load(scores + j + LANES));
  }
  for (; j < seen; j += LANES) best = larger(best, places(j) < seen ? load(scores + j) : lowest);
  *top = largest_of(larger(best, other));
  const auto power = [&](int at) { return exp2(load(scores + at) - *top); };
  Vector sum = {}, rest = {};
  for (j = 0; j + PANEL <= seen; j += PANEL) {
    const Vector p = power(j), next = power(j + LANES);
    sum += p;
    rest += next;
    store(scores + j, p);
    store(scores + j + LANES, next);
  }
  for (; j < width; j += LANES) {
    const Vector p = only(places(j) < seen, power(j));
    sum += p;
    store(scores + j, p);
  }
  return sum_of(sum + rest);
}

void forward_head(Head query, Head key, Head value, Head out, float* log2_sum, Shape s) {
  const Floats keys = pack_transposed(key, s, 1), values = pack(value, s);
  const long row = s.Tp + LANES;  // see CHUNK_ROW
  Floats block(size_t(BLOCK) * s.D), scores(BLOCK * row), mixed(size_t(BLOCK) * s.Dp);
  float sums[BLOCK];
  for (int i = 0; i < s.T; i += BLOCK) {
    const int rows = std::min(BLOCK, s.T - i);
    const int width = s.causal ? std::min(round_up(i + BLOCK, PANEL), s.Tp) : s.Tp;  // keys seen
    copy_block(query, i, s, s.slope, block);
    for (int j = 0; j < width; j += PANEL)
      multiply<false>({block.data(), s.D, 1}, BLOCK, &keys[size_t(j) * s.D], s.D, &scores[j], row);
    for (int r = 0; r < rows; r++) {
      float top;
      sums[r] = softmax_row(&scores[r * row], s.causal ? i + r + 1 : s.T, width, &top);
      log2_sum[i + r] = top + std::log2(sums[r]);
    }
    for (int d = 0; d < s.D; d += PANEL)
      multiply<false>({scores.data(), row, 1}, BLOCK, &values[size_t(d) * s.Tp], width, &mixed[d],
                      s.Dp);
    store_rows(mixed, rows, [&](int r) { return 1 / sums[r]; }, out, i, s);
  }
}

// --- backward ------------------------------------------------------------------------------------

struct Gradients {
  Head query, key, value;
};

// For the scores [n] of a key, in powers of two, with the queries from `first` on, and for the
// products of its value with their outputs' gradients: the probabilities, and the gradients of the
// scores, but for their scale. Only queries from `seen_from` on see the key.
void score_gradients(float* scores, float* products, int n, int first, int seen_from,
                     const float* log2_sum, const float* delta) {
  for (int i = 0; i < n; i += LANES) {
    Vector p = exp2(load(scores + i) - load(log2_sum + i));
    if (first + i < seen_from) p = only(places(first + i) >= seen_from, p);
    store(scores + i, p);
    store(products + i, p * (load(products + i) - load(delta + i)));
  }
}

void backward_head(Head query, Head key, Head value, Head out, Head out_gradient,
                   const float* log2_sums, Gradients gradients, Shape s) {
  const Floats q_columns = pack_transposed(query, s, s.slope), q_rows = pack(query, s);
  const Floats g_columns = pack_transposed(out_gradient, s, 1), g_rows = pack(out_gradient, s);
  const Floats k_rows = pack(key, s);
  // Padded queries get probabilities of next to zero, and meet zeros.
  Floats log2_sum(s.Tp, 1e30f), delta(s.Tp, 0.0f);
  std::copy(log2_sums, log2_sums + s.T, log2_sum.begin());
  for (int t = 0; t < s.T; t++)
    delta[t] = dot(out.data + t * out.row, out_gradient.data + t * out_gradient.row, s.D);
  Floats k(size_t(BLOCK) * s.D), v(k), p(size_t(BLOCK) * CHUNK_ROW), ds(p);
  Floats k_gradient(size_t(BLOCK) * s.Dp), v_gradient(k_gradient);
  Floats q_gradient(size_t(s.Tp) * s.Dp);
  for (int j = 0; j < s.T; j += BLOCK) {
    copy_block(key, j, s, 1, k);
    copy_block(value, j, s, 1, v);
    std::fill(k_gradient.begin(), k_gradient.end(), 0.0f);
    std::fill(v_gradient.begin(), v_gradient.end(), 0.0f);
    for (int i = s.causal ? j / PANEL * PANEL : 0; i < s.Tp; i += CHUNK) {
      const int n = std::min(CHUNK, s.Tp - i);  // queries
      for (int c = 0; c < n; c += PANEL) {
        const size_t panel = size_t(i + c) * s.D;
        multiply<false>({k.data(), s.D, 1}, BLOCK, &q_columns[panel], s.D, &p[c], CHUNK_ROW);
        multiply<false>({v.data(), s.D, 1}, BLOCK, &g_columns[panel], s.D, &ds[c], CHUNK_ROW);
      }
      for (int r = 0; r < BLOCK; r++) {
        // A padded key is seen by no query: its score is 0, which may be far above the others.
        const int seen_from = j + r >= s.T ? s.Tp : s.causal ? j + r : 0;
        score_gradients(&p[r * CHUNK_ROW], &ds[r * CHUNK_ROW], n, i, seen_from, &log2_sum[i],
                        &delta[i]);
      }
      for (int d = 0; d < s.D; d += PANEL) {
        const float *q = &q_rows[size_t(d) * s.Tp], *g = &g_rows[size_t(d) * s.Tp];
        multiply<true>({p.data(), CHUNK_ROW, 1}, BLOCK, g + i * PANEL, n, &v_gradient[d], s.Dp);
        multiply<true>({ds.data(), CHUNK_ROW, 1}, BLOCK, q + i * PANEL, n, &k_gradient[d], s.Dp);
        multiply<true>({ds.data(), 1, CHUNK_ROW}, n, &k_rows[size_t(d) * s.Tp + j * PANEL],
                       std::min(BLOCK, s.Tp - j), &q_gradient[size_t(i) * s.Dp + d], s.Dp);
      }
    }
    const int rows = std::min(BLOCK, s.T - j);
    store_rows(v_gradient, rows, [](int) { return 1.0f; }, gradients.value, j, s);
    store_rows(k_gradient, rows, [&](int) { return s.scale; }, gradients.key, j, s);
  }
  store_rows(q_gradient, s.T, [&](int) { return s.scale; }, gradients.query, 0, s);
}

}  // namespace

// --- what Python calls ---------------------------------------------------------------------------

using Strided = StridedOf<float>;

extern "C" {

void attention_forward(const Strided* q, const Strided* k, const Strided* v, const Strided* out,
                       float* log2_sum, int B, int H, int T, int D, int causal, int threads) {
  const Shape s(T, D, causal != 0);
  for_each_head(B, H, threads, [&](int b, int h, int i) {
    forward_head(q->at(b, h), k->at(b, h), v->at(b, h), out->at(b, h), log2_sum + size_t(i) * T, s);
  });
}

void attention_backward(const Strided* q, const Strided* k, const Strided* v, const Strided* out,
                        const Strided* out_gradient, const float* log2_sum, const Strided* dq,
                        const Strided* dk, const Strided* dv, int B, int H, int T, int D,
                        int causal, int threads) {
  const Shape s(T, D, causal != 0);
  for_each_head(B, H, threads, [&](int b, int h, int i) {
    backward_head(q->at(b, h), k->at(b, h), v->at(b, h), out->at(b, h), out_gradient->at(b, h),
                  log2_sum + size_t(i) * T, {dq->at(b, h), dk->at(b, h), dv->at(b, h)}, s);
  });
}
}
