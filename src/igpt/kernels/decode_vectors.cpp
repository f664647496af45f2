// The decoder's step (`decode.h`) on vectors of any processor.
//
// Weights and cache are stored in bfloat16 or int8, since reading them is what a step waits for. They
// are widened in registers, and all is computed in float32; but for weights in int8, which meet inputs
// rounded to 16 bits, as products of whole numbers are twice as fast. Weights lie as [outputs / 32,
// inputs / P, 32, P], P numbers in a word of 32 bits: a vector of words is of as many outputs as it has
// lanes, and of P inputs.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "decode.h"
#include "vectors.h"

namespace {

// Pictures that share what is read of a weight: as many as the registers can hold the sums of.
constexpr int ROWS = LANES == 16 ? 6 : LANES == 8 ? 3 : 2;
constexpr int AHEAD = 2048;  // bytes of weights that are on their way from memory; measured

// --- linear layers -------------------------------------------------------------------------------

// 32 of a picture.
struct Outputs {
  static constexpr int VECTORS = WIDE / LANES;
  Vector part[VECTORS];

  static Outputs load(const float* from) {
    Outputs y;
    std::memcpy(&y, from, sizeof y);
    return y;
  }
};

void store(float* to, const Outputs& y) { std::memcpy(to, &y, sizeof y); }

void add(float* to, const Outputs& y) {
  Outputs sum = Outputs::load(to);
  for (int i = 0; i < Outputs::VECTORS; i++) sum.part[i] += y.part[i];
  store(to, sum);
}

// x sigmoid(1.702 x)
Outputs quick_gelu(Outputs x) {
  for (Vector& part : x.part) part /= exp2(part * (-1.702f * LOG2E)) + 1.0f;
  return x;
}

// x [B, inputs], which meet weights in bfloat16.
template <class Number>
struct Inputs {
  int inputs;
  Floats x;

  Inputs(int B, int inputs) : inputs(inputs), x(size_t(B) * inputs) {}

  void set(int picture, int i, const Outputs& part) { store(&x[place(picture) + i], part); }
  void finish(int /*B*/) {}
  const float* row(int picture) const { return &x[place(picture)]; }
  float scale(int) const { return 1; }
  size_t place(int picture) const { return size_t(picture) * inputs; }
};

// x [B, inputs], which meet weights in int8: of each picture a scale, and whole numbers so small that
// no sum of products passes 32 bits.
template <>
struct Inputs<int8_t> : Inputs<float> {
  std::vector<int16_t> whole;
  Floats scales;
  float largest;  // whole number

  Inputs(int B, int inputs)
      : Inputs<float>(B, inputs), whole(x.size()), scales(B),
        largest(std::min(32767, std::numeric_limits<int32_t>::max() / (127 * inputs))) {}

  const int16_t* row(int picture) const { return &whole[place(picture)]; }
  float scale(int picture) const { return scales[picture]; }

  // When all are set; the team shares the pictures.
  void finish(int B) {
#pragma omp for schedule(static)
    for (int b = 0; b < B; b++) {
      const float* from = &x[place(b)];
      Vector top = {};
      for (int i = 0; i < inputs; i += LANES)
        top = larger(top, larger(load(from + i), -load(from + i)));
      float magnitude = 1e-30f;
      for (int i = 0; i < LANES; i++) magnitude = std::max(magnitude, top[i]);
      scales[b] = magnitude / largest;
      int16_t* to = &whole[place(b)];
      for (int i = 0; i < inputs; i++)
        to[i] = int16_t(from[i] * (largest / magnitude) + ROUND - ROUND);
    }
  }
};

template <class Number>
void set_normalised(const float* h, const float* gain, int d, float eps, int picture,
                    Inputs<Number>& to) {
  Vector squares = {};
  for (int i = 0; i < d; i += LANES) squares += load(h + i) * load(h + i);
  const float factor = 1 / std::sqrt(sum_of(squares) / d + eps);
  float* row = &to.x[size_t(picture) * d];
  for (int i = 0; i < d; i += LANES) store(row + i, load(h + i) * factor * load(gain + i));
}

// What is on its way from memory while [32] words of weights are used.
void fetch_ahead(const char* panel) {
  for (int line = 0; line < 4 * WIDE; line += 64) __builtin_prefetch(panel + AHEAD + line);
}

// 32 outputs of R pictures, of weights in bfloat16.
template <int R>
void multiply(const char* panel, const float* x, int inputs, Outputs* y) {
  constexpr int V = Outputs::VECTORS;
  Vector sums[R][V] = {};
  for (int i = 0; i < inputs; i += 2, panel += 4 * WIDE) {
    fetch_ahead(panel);
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const Vector weight = number<bf16>(load<Words>(panel + 4 * LANES * v), p);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r][v] += weight * x[size_t(r) * inputs + i + p];
      }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) y[r].part[v] = sums[r][v];
}

// The same of weights in int8, not yet scaled. A word has the first two of four inputs in its even
// bytes and the others in its odd ones, so that either pair becomes halves by a shift or two.
template <int R>
void multiply(const char* panel, const int16_t* x, int inputs, Outputs* y) {
  constexpr int V = Outputs::VECTORS;
  Words sums[R][V] = {};
  for (int i = 0; i < inputs; i += 4, panel += 4 * WIDE) {
    fetch_ahead(panel);
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++) {
      Words pairs[R];
      for (int r = 0; r < R; r++)
        pairs[r] = Words{} + load<int32_t>(x + size_t(r) * inputs + i + 2 * odd);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const auto bytes = load<Halves>(panel + 4 * LANES * v);
        const auto weights = (Words)(odd ? bytes >> 8 : (bytes << 8) >> 8);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r][v] = add_products(sums[r][v], weights, pairs[r]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) y[r].part[v] = __builtin_convertvector(sums[r][v], Vector);
}

// Either of them, of up to R pictures.
template <int R = ROWS, class Input>
void multiply_up_to(int rows, const char* panel, const Input* x, int inputs, Outputs* y) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_up_to<R - 1>(rows, panel, x, inputs, y);
  }
  multiply<R>(panel, x, inputs, y);
}

// Calls use(picture, output, y) with outputs `output` to `output` + 31 of every picture, for all
// outputs; the team shares these.
template <class Number, class Use>
void apply(const Linear& linear, Inputs<Number>& x, int B, Use use) {
  x.finish(B);
#pragma omp for schedule(static)
  for (int output = 0; output < linear.outputs; output += WIDE) {
    const char* panel = (const char*)linear.weights + size_t(output) * linear.inputs * sizeof(Number);
    for (int b = 0; b < B; b += ROWS) {
      Outputs y[ROWS];
      const int rows = std::min(ROWS, B - b);
      multiply_up_to(rows, panel, x.row(b), linear.inputs, y);
      for (int r = 0; r < rows; r++) {
        if (linear.scales)
          for (int v = 0; v < Outputs::VECTORS; v++)
            y[r].part[v] *= load(linear.scales + output + v * LANES) * x.scale(b + r);
        use(b + r, output, y[r]);
      }
    }
  }
}

// --- attention -----------------------------------------------------------------------------------

constexpr int SUMS = TOGETHER / LANES;  // vectors side by side

template <class Number>
struct Scratch {
  Floats scores, mixed;
  Scratch(int S, int D) : scores(S), mixed(round_up(D, TOGETHER)) {}
};

// Scores of one query [D] with `count` positions, 64 at a time.
template <class Number>
void score(const float* query, const char* keys, int D, int count, float* out) {
  constexpr int P = PACK<Number>, GROUP = 16;  // positions that lie together
  for (int s = 0; s < count; s += TOGETHER) {
    const char* block = keys + size_t(s) * D * sizeof(Number);
    Vector sums[SUMS] = {};
    for (int d = 0; d < D; d += P)
#pragma GCC unroll 16
      for (int i = 0; i < SUMS; i++) {
        const int group = i * LANES / GROUP, lane = i * LANES % GROUP;
        const Words words = load<Words>(block + (size_t(group) * D / P + d / P) * 4 * GROUP + 4 * lane);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) sums[i] += number<Number>(words, p) * query[d + p];
      }
    for (int i = 0; i < SUMS; i++) store(out + s + i * LANES, sums[i]);
  }
}

// Softmax of scores [count] where they are, not yet divided by the sum, which is returned; zeros
// after it, up to a multiple of 64.
float softmax(float* scores, int count, float scale) {
  const int end = round_up(count, TOGETHER);
  std::fill(scores + count, scores + end, -INFINITY);
  Vector best = load(scores), sum = {};
  for (int s = LANES; s < end; s += LANES) best = larger(best, load(scores + s));
  float top = best[0];
  for (int i = 1; i < LANES; i++) top = std::max(top, best[i]);
  const float slope = scale * LOG2E, offset = top * slope;
  for (int s = 0; s < end; s += LANES) {
    const Vector p = exp2(load(scores + s) * slope - offset);
    sum += p;
    store(scores + s, p);
  }
  std::fill(scores + count, scores + end, 0.0f);
  return sum_of(sum);
}

// Values [count, D] mixed with weights [count], 64 dimensions at a time, times a factor.
template <class Number>
void mix(const float* weights, const char* values, int D, int count, float factor, float* out) {
  constexpr int P = PACK<Number>;
  for (int d = 0; d < D; d += TOGETHER) {
    const int vectors = std::min(SUMS, (D - d) / LANES);
    Vector sums[SUMS] = {};
    const auto add_all = [&](int n) {
      for (int s = 0; s < count; s += P) {
        const char* row = values + (size_t(s) / P * D + d) * 4;
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
          const Words words = load<Words>(row + 4 * LANES * i);
#pragma GCC unroll 4
          for (int p = 0; p < P; p++) sums[i] += number<Number>(words, p) * weights[s + p];
        }
      }
    };
    if (vectors == SUMS)
      add_all(SUMS);
    else
      add_all(SUMS / 2);  // D is a multiple of 32
    for (int i = 0; i < vectors; i++) store(out + d + i * LANES, sums[i] * factor);
  }
}

// To the nearest bfloat16, ties to even.
bf16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Stores x [D], a number every `stride`, P of them side by side; returns the scale of int8.
template <class Number>
float pack(const float* x, int D, Number* to, long stride, int side) {
  float largest = 0;
  for (int d = 0; d < D; d++) largest = std::max(largest, std::abs(x[d]));
  const float scale = std::max(largest, 1e-30f) / 127;
  for (int d = 0; d < D; d++) {
    Number& place = to[d / side * stride + d % side];
    if constexpr (std::is_same_v<Number, int8_t>)
      place = int8_t(std::lrintf(x[d] / scale));
    else
      place = rounded(x[d]);
  }
  return scale;
}

// Store the new key and value of a head, the `head`-th of all, then let its query look at all of them.
template <class Number>
void attend(const float* q, const float* k, const float* v, const Cache& cache, size_t head, int D,
            Scratch<Number>& scratch) {
  constexpr int P = PACK<Number>;
  const int length = cache.length, count = length + 1;
  Number* keys = (Number*)cache.keys + head * cache.S * D;
  Number* values = (Number*)cache.values + head * cache.S * D;
  const float key_scale =
      pack(k, D, keys + size_t(length / 16) * 16 * D + length % 16 * P, 16 * P, P);
  const float value_scale = pack(v, D, values + size_t(length / P) * P * D + length % P, P, 1);
  float* scores = scratch.scores.data();
  score<Number>(q, (const char*)keys, D, count, scores);
  if constexpr (std::is_same_v<Number, int8_t>) {
    float* scales = cache.key_scales + head * cache.S;
    scales[length] = key_scale;
    for (int s = 0; s < count; s++) scores[s] *= scales[s];
  }
  const float sum = softmax(scores, count, 1 / std::sqrt(float(D)));
  if constexpr (std::is_same_v<Number, int8_t>) {
    float* scales = cache.value_scales + head * cache.S;
    scales[length] = value_scale;
    for (int s = 0; s < count; s++) scores[s] *= scales[s];
  }
  mix<Number>(scores, (const char*)values, D, round_up(count, P), 1 / sum, scratch.mixed.data());
}

template <class Number>
struct Road {
  struct Thread {};
  using Inputs = ::Inputs<Number>;
  using Outputs = ::Outputs;
  using Scratch = ::Scratch<Number>;
};

}  // namespace

extern "C" void decode_step(const Model* model, const Cache* cache, float* h, float* logits, int B,
                            int threads) {
  const auto run = model->head.scales ? &step<Road<int8_t>> : &step<Road<bf16>>;
  run(*model, *cache, h, logits, B, threads);
}
