// The decoder's step (`decode.h`) on vectors of any processor.
//
// Weights and cache are stored in bfloat16 or int8, since reading them is what a step waits for. Those
// in bfloat16 are multiplied as they are where the processor does that (AVX-512 BF16), and else widened
// in registers to float32; weights in int8 meet inputs rounded to 16 bits, as products of whole numbers
// are twice as fast as those of floats. Sums are in float32. Weights lie as [outputs / 32, inputs / P,
// 32, P], P numbers in a word of 32 bits: a vector of words is of as many outputs as it has lanes, and
// of P inputs.

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
constexpr int ROWS = LANES == 16 ? 8 : LANES == 8 ? 3 : 2;
constexpr int AHEAD = 2048;  // bytes that are on their way from memory; measured

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

template <class Element>
void store(Element* to, const Outputs& y) {
  for (int i = 0; i < Outputs::VECTORS; i++) store(to + i * LANES, y.part[i]);
}

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

// x [B, inputs], set 32 at a time.
template <class Element>
struct Rows {
  int inputs;
  std::vector<Element> x;

  Rows(int B, int inputs) : inputs(inputs), x(size_t(B) * inputs) {}

  size_t place(int picture) const { return size_t(picture) * inputs; }
  const Element* row(int picture) const { return &x[place(picture)]; }
  void set(int picture, int i, const Outputs& part) { store(&x[place(picture) + i], part); }
};

// Those which meet weights in bfloat16.
template <class Number>
struct Inputs : Rows<Factor<Number>> {
  using Rows<Factor<Number>>::Rows;
  void finish(int /*B*/) {}
  float scale(int) const { return 1; }
};

// Those which meet weights in int8: of each picture a scale, and whole numbers so small that no sum of
// products passes 32 bits.
template <>
struct Inputs<int8_t> : Rows<float> {
  std::vector<int16_t> whole;
  Floats scales;
  float largest;  // whole number

  Inputs(int B, int inputs)
      : Rows<float>(B, inputs), whole(x.size()), scales(B),
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
  for (int i = 0; i < d; i += WIDE) {
    Outputs x = Outputs::load(h + i);
    const Outputs gains = Outputs::load(gain + i);
    for (int v = 0; v < Outputs::VECTORS; v++) x.part[v] *= factor * gains.part[v];
    to.set(picture, i, x);
  }
}

// What is on its way from memory while [32] words of weights are used.
void fetch_ahead(const char* panel) {
  for (int line = 0; line < 4 * WIDE; line += 64) __builtin_prefetch(panel + AHEAD + line);
}

// 32 outputs of R pictures, of weights in bfloat16.
template <int R>
void multiply(const char* panel, const Factor<bf16>* x, int inputs, Outputs* y) {
  constexpr int V = Outputs::VECTORS;
  Vector sums[R][V] = {};
  for (int i = 0; i < inputs; i += 2, panel += 4 * WIDE) {
    fetch_ahead(panel);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const auto weights = load<Words>(panel + 4 * LANES * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        sums[r][v] = add_products<bf16>(sums[r][v], weights, x + size_t(r) * inputs + i);
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

constexpr int SUMS = TOGETHER / LANES;           // vectors side by side
constexpr int IN_LINE = 64 / int(sizeof(Words));  // vectors in what memory is fetched by

template <class Number>
struct Scratch {
  Floats scores, mixed;
  std::vector<Factor<Number>> query, weights;
  std::vector<Number> row;
  Scratch(int S, int D) : scores(S), mixed(D), query(D), weights(S), row(D) {}
};

// x [n] as factors: as they are, or rounded into `room`.
template <class Factors>
const Factors* as_factors(const float* x, int n, Factors* room) {
  if constexpr (std::is_same_v<Factors, float>) return x;
  for (int i = 0; i < n; i += LANES) store(room + i, load(x + i));
  return room;
}

// Scores of one query [D] with `count` positions, 64 at a time.
template <class Number>
void score(const Factor<Number>* query, const char* keys, int D, int count, float* out) {
  constexpr int P = PACK<Number>, GROUP = 16;  // positions that lie together
  for (int s = 0; s < count; s += TOGETHER) {
    const char* block = keys + size_t(s) * D * sizeof(Number);
    const char* ahead = block + 2 * TOGETHER * D * sizeof(Number);  // measured, as AHEAD
    Vector sums[SUMS] = {};
    for (int d = 0; d < D; d += P)
#pragma GCC unroll 16
      for (int i = 0; i < SUMS; i++) {
        const int group = i * LANES / GROUP, lane = i * LANES % GROUP;
        const char* place = block + (size_t(group) * D / P + d / P) * 4 * GROUP + 4 * lane;
        if (i % IN_LINE == 0)
          __builtin_prefetch(ahead + (size_t(d) / P * SUMS + i) * sizeof(Words));
        const Words words = load<Words>(place);
        sums[i] = add_products<Number>(sums[i], words, query + d);
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
void mix(const Factor<Number>* weights, const char* values, int D, int count, float factor, float* out) {
  constexpr int P = PACK<Number>;
  for (int d = 0; d < D; d += TOGETHER) {
    const int vectors = std::min(SUMS, (D - d) / LANES);
    Vector sums[SUMS] = {};
    const auto add_all = [&](int n) {
      for (int s = 0; s < count; s += P) {
        const char* row = values + (size_t(s) / P * D + d) * 4;
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
          if (i % IN_LINE == 0) __builtin_prefetch(row + 4 * LANES * i + AHEAD);
          const Words words = load<Words>(row + 4 * LANES * i);
          sums[i] = add_products<Number>(sums[i], words, weights + s);
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

// x [D], rounded; returns the scale of int8.
float round_all(const float* x, int D, bf16* to) {
  for (int d = 0; d < D; d += LANES) store(to + d, load(x + d));
  return 1;
}

float round_all(const float* x, int D, int8_t* to) {
  float largest = 1e-30f;
  for (int d = 0; d < D; d++) largest = std::max(largest, std::abs(x[d]));
  for (int d = 0; d < D; d++) to[d] = int8_t(std::lrintf(x[d] / largest * 127));
  return largest / 127;
}

// x [D], P numbers side by side and then a stride.
template <int P, class Number>
void scatter(const Number* x, int D, Number* to, long stride) {
  for (int d = 0; d < D; d += P, to += stride)
    for (int p = 0; p < P; p++) to[p] = x[d + p];
}

// Store the new key and value of a head, the `head`-th of all, then let its query look at all of them.
template <class Number>
void attend(const float* q, const float* k, const float* v, const Cache& cache, size_t head, int D,
            Scratch<Number>& scratch) {
  constexpr int P = PACK<Number>;
  const int length = cache.length, count = length + 1;
  Number* keys = (Number*)cache.keys + head * cache.S * D;
  Number* values = (Number*)cache.values + head * cache.S * D;
  Number* row = scratch.row.data();
  const float key_scale = round_all(k, D, row);
  scatter<P>(row, D, keys + size_t(length / 16) * 16 * D + length % 16 * P, 16 * P);
  const float value_scale = round_all(v, D, row);
  scatter<1>(row, D, values + size_t(length / P) * P * D + length % P, P);
  float* scores = scratch.scores.data();
  Factor<Number> *query = scratch.query.data(), *weights = scratch.weights.data();
  score<Number>(as_factors(q, D, query), (const char*)keys, D, count, scores);
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
  mix<Number>(as_factors(scores, round_up(count, WIDE), weights), (const char*)values, D,
              round_up(count, P), 1 / sum, scratch.mixed.data());
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
