// The decoder's step (`decode.h`) on vectors of any processor.
//
// Weights and cache are stored in bfloat16 or int8, since reading them is what a step waits for; or
// in float32, as they were trained. Numbers in bfloat16 are multiplied as they are where the processor does that (AVX-512 BF16), and
// else widened to float32 in registers. Numbers in int8 are multiplied with inputs rounded to 16
// bits, as products of whole numbers are faster than those of floats. Weights are laid out as
// [outputs / 32, inputs / P, 32, P], P numbers in a word of 32 bits: a vector of words has as many
// outputs as lanes, and P inputs of each.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "decode.h"
#include "vectors.h"

namespace {

// Pictures for which a weight is read once: as many as the registers can hold the sums of.
constexpr int ROWS = LANES == 16 ? 8 : LANES == 8 ? 3 : 2;

// What is read next is fetched into the second-level cache, as the first-level cache can wait for
// only a few lines at a time. The distances are the best of those measured.
constexpr int WEIGHTS_AHEAD = 8192;            // bytes
constexpr int POSITIONS_AHEAD = 2 * TOGETHER;  // of keys and values
void fetch(const char* place) { __builtin_prefetch(place, /*to write*/ 0, /*locality*/ 2); }

// --- rounding -------------------------------------------------------------------------------------

struct Magnitude {
  float largest, sum;  // of |x|
};

Magnitude magnitude(const float* x, int n) {
  Vector largest = {}, sum = {};
  for (int i = 0; i < n; i += LANES) {
    const Vector size = larger(load(x + i), -load(x + i));
    largest = larger(largest, size);
    sum += size;
  }
  return {largest_of(largest) + 1e-30f, sum_of(sum) + 1e-30f};
}

// The largest factor to scale x [n] by before rounding to whole numbers, so that these fit 16 bits,
// and sums of their products with int8 fit 32 bits, whichever way each is rounded.
float units(const float* x, int n) {
  const auto [largest, sum] = magnitude(x, n);
  const float room = float(std::numeric_limits<int32_t>::max() / 128 - n);
  return std::min(32767 / largest, room / sum);
}

// Each of these functions returns a scale: x is about the scale times the numbers that it writes.

template <class Whole>
float round_to(Whole* to, const float* x, int n, float units) {
  for (int i = 0; i < n; i++) to[i] = Whole(x[i] * units + ROUND - ROUND);
  return 1 / units;
}

// x [n] as factors.
float as_factors(const float* x, int n, int16_t* to) { return round_to(to, x, n, units(x, n)); }

template <class Element>
float as_factors(const float* x, int n, Element* to) {
  for (int i = 0; i < n; i += LANES) store(to + i, load(x + i));
  return 1;
}

// Attention weights of n positions, a multiple of 16, as factors. Beside a large weight, many small
// ones may all be about half a unit: neighbours are rounded up from different thresholds, so that
// they do not all go the same way.
float weights_as_factors(const float* x, int n, int16_t* to) {
  const float heights[] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  const float per_weight = units(x, n);
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < 16; j++)
      to[i + j] = int16_t(x[i + j] * per_weight + (heights[j] - 7.5f) / 16 + ROUND - ROUND);
  return 1 / per_weight;
}

template <class Element>
float weights_as_factors(const float* x, int n, Element* to) {
  return as_factors(x, n, to);
}

// x [D] for the cache; returns its scale.
template <class Number>
float round_all(const float* x, int D, Number* to) {
  return as_factors<Number>(x, D, to);
}
float round_all(const float* x, int D, int8_t* to) {
  return round_to(to, x, D, 127 / magnitude(x, D).largest);
}

// --- linear layers -------------------------------------------------------------------------------

// 32 consecutive outputs of a picture.
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

// Inputs to weights in bfloat16 or float32.
template <class Number>
struct Inputs : Rows<Factor<Number>> {
  using Rows<Factor<Number>>::Rows;
  void finish(int /*B*/) {}
  float scale(int) const { return 1; }
};

// Inputs to weights in int8: whole numbers, and a scale for each picture.
template <>
struct Inputs<int8_t> : Rows<float> {
  std::vector<int16_t> whole;
  Floats scales;

  Inputs(int B, int inputs) : Rows<float>(B, inputs), whole(x.size()), scales(B) {}

  const int16_t* row(int picture) const { return &whole[place(picture)]; }
  float scale(int picture) const { return scales[picture]; }

  // To be called when all inputs are set; the team of threads shares the pictures.
  void finish(int B) {
#pragma omp for schedule(static)
    for (int b = 0; b < B; b++) scales[b] = as_factors(&x[place(b)], inputs, &whole[place(b)]);
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

// Prefetches weights, as many as are used meanwhile: 32 words.
void fetch_ahead(const char* panel) {
  for (int line = 0; line < 4 * WIDE; line += 64) fetch(panel + WEIGHTS_AHEAD + line);
}

// 32 outputs of R pictures, not yet scaled.
template <class Number, int R>
void multiply(const char* panel, const Factor<Number>* x, int inputs, Outputs* y) {
  constexpr int V = Outputs::VECTORS, P = PACK<Number>;
  Sum<Number> sums[R][V] = {};
  for (int i = 0; i < inputs; i += P, panel += 4 * WIDE) {
    fetch_ahead(panel);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const auto weights = load<Words>(panel + 4 * LANES * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        sums[r][v] = add_products<Number>(sums[r][v], weights, x + size_t(r) * inputs + i);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) y[r].part[v] = as_floats(sums[r][v]);
}

// The same for up to R pictures.
template <class Number, int R = ROWS>
void multiply_up_to(int rows, const char* panel, const Factor<Number>* x, int inputs, Outputs* y) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_up_to<Number, R - 1>(rows, panel, x, inputs, y);
  }
  multiply<Number, R>(panel, x, inputs, y);
}

// Calls use(picture, output, y) with outputs `output` to `output` + 31 of every picture, for all
// outputs; the team of threads shares the outputs.
template <class Number, class Use>
void apply(const Linear& linear, Inputs<Number>& x, int B, Use use) {
  x.finish(B);
#pragma omp for schedule(static)
  for (int output = 0; output < linear.outputs; output += WIDE) {
    const char* panel = (const char*)linear.weights + size_t(output) * linear.inputs * sizeof(Number);
    for (int b = 0; b < B; b += ROWS) {
      Outputs y[ROWS];
      const int rows = std::min(ROWS, B - b);
      multiply_up_to<Number>(rows, panel, x.row(b), linear.inputs, y);
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
constexpr int IN_LINE = 64 / int(sizeof(Words));  // vectors in a cache line

// The address of position s, `row` bytes each: from `first` on if it is before `end`, and after
// that from `next` on, which is read next.
const char* at_or_after(const char* first, int s, int end, int row, const char* next) {
  return s < end ? first + size_t(s) * row : next + size_t(s - end) * row;
}

template <class Number>
struct Scratch {
  Floats scores, mixed;
  std::vector<Factor<Number>> query, weights;
  std::vector<Number> row;
  Scratch(int S, int D) : scores(S), mixed(D), query(D), weights(S), row(D) {}
};

// Scores of one query [D] with `count` positions, 64 at a time, times their scales, if there are
// any. `next` is what is read after these keys, to be prefetched.
template <class Number>
void score(const Factor<Number>* query, const char* keys, const float* scales, int D, int count,
           const char* next, float* out) {
  constexpr int P = PACK<Number>, GROUP = 16;  // positions that lie together
  const int end = round_up(count, TOGETHER), row = D * sizeof(Number);
  for (int s = 0; s < end; s += TOGETHER) {
    const char* block = keys + size_t(s) * row;
    const char* ahead = at_or_after(keys, s + POSITIONS_AHEAD, end, row, next);
    Sum<Number> sums[SUMS] = {};
    for (int d = 0; d < D; d += P)
#pragma GCC unroll 16
      for (int i = 0; i < SUMS; i++) {
        const int group = i * LANES / GROUP, lane = i * LANES % GROUP;
        const char* place = block + (size_t(group) * D / P + d / P) * 4 * GROUP + 4 * lane;
        if (i % IN_LINE == 0) fetch(ahead + (size_t(d) / P * SUMS + i) * sizeof(Words));
        sums[i] = add_products<Number>(sums[i], load<Words>(place), query + d);
      }
    for (int i = 0; i < SUMS; i++) {
      const int at = s + i * LANES;
      store(out + at, scales ? as_floats(sums[i]) * load(scales + at) : as_floats(sums[i]));
    }
  }
}

// Softmax of scores [count] in place, times `scales`, if there are any, and not yet divided by the
// sum, which is returned; zeros follow, up to a multiple of 64.
float softmax(float* scores, const float* scales, int count, float scale) {
  const int end = round_up(count, TOGETHER);
  std::fill(scores + count, scores + end, -INFINITY);
  Vector best = load(scores), sum = {};
  for (int s = LANES; s < end; s += LANES) best = larger(best, load(scores + s));
  const float slope = scale * LOG2E, offset = largest_of(best) * slope;
  for (int s = 0; s < end; s += LANES) {
    const Vector p = exp2(load(scores + s) * slope - offset);
    sum += p;
    store(scores + s, scales ? p * load(scales + s) : p);
  }
  std::fill(scores + count, scores + end, 0.0f);
  return sum_of(sum);
}

// Values [count, D] mixed with weights [count], 64 dimensions at a time, times a factor. `next` is
// what is read after these values, to be prefetched.
template <class Number>
void mix(const Factor<Number>* weights, const char* values, int D, int count, float factor,
         const char* next, float* out) {
  constexpr int P = PACK<Number>;
  const int end = round_up(count, P), row = D * sizeof(Number);
  for (int d = 0; d < D; d += TOGETHER) {
    const int vectors = std::min(SUMS, (D - d) / LANES);
    Sum<Number> sums[SUMS] = {};
    const auto add_all = [&](int n) {
      for (int s = 0; s < end; s += P) {
        const char* place = values + size_t(s) * row + 4 * d;
        const char* ahead = at_or_after(values, s + POSITIONS_AHEAD, end, row, next) + 4 * d;
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
          if (i % IN_LINE == 0) fetch(ahead + 4 * LANES * i);
          sums[i] = add_products<Number>(sums[i], load<Words>(place + 4 * LANES * i), weights + s);
        }
      }
    };
    if (vectors == SUMS)
      add_all(SUMS);
    else
      add_all(SUMS / 2);  // D is a multiple of 32
    for (int i = 0; i < vectors; i++) store(out + d + i * LANES, as_floats(sums[i]) * factor);
  }
}

// The place in a word of its p-th number (`add_products`).
template <class Number>
int in_word(int p) {
  return IS_WHOLE<Number> ? p % 2 * 2 + p / 2 : p;
}

// Stores the new key and value of a head, the `head`-th over all layers and pictures, then lets its
// query attend to all positions.
template <class Number>
void attend(const float* q, const float* k, const float* v, const Cache& cache, size_t head, int D,
            Scratch<Number>& scratch) {
  constexpr int P = PACK<Number>;
  const int length = cache.length, count = length + 1;
  const size_t first = head * cache.S * D;
  Number *keys = (Number*)cache.keys + first, *values = (Number*)cache.values + first;
  Number* row = scratch.row.data();
  const auto with_new = [&](float* all, float of_new) -> const float* {
    if (!all) return nullptr;
    all[head * cache.S + length] = of_new;
    return all + head * cache.S;
  };
  const float* key_scales = with_new(cache.key_scales, round_all(k, D, row));
  Number* key = keys + size_t(length / 16) * 16 * D + length % 16 * P;
  for (int d = 0; d < D; d++) key[d / P * 16 * P + in_word<Number>(d % P)] = row[d];
  const float* value_scales = with_new(cache.value_scales, round_all(v, D, row));
  Number* value = values + size_t(length / P) * P * D + in_word<Number>(length % P);
  for (int d = 0; d < D; d++) value[d * P] = row[d];
  float* scores = scratch.scores.data();
  Factor<Number> *query = scratch.query.data(), *weights = scratch.weights.data();
  const float query_scale = as_factors(q, D, query);
  score<Number>(query, (const char*)keys, key_scales, D, count, (const char*)values, scores);
  const float sum = softmax(scores, value_scales, count, query_scale / std::sqrt(float(D)));
  const float weight_scale = weights_as_factors(scores, round_up(count, TOGETHER), weights);
  mix<Number>(weights, (const char*)values, D, count, weight_scale / sum,
              (const char*)(keys + size_t(cache.S) * D), scratch.mixed.data());
}

template <class Number>
struct Backend {
  struct Thread {};
  using Inputs = ::Inputs<Number>;
  using Outputs = ::Outputs;
  using Scratch = ::Scratch<Number>;
};

}  // namespace

extern "C" void decode_step(const Model* model, const Cache* cache, float* h, float* logits, int B,
                            int threads) {
  const auto run = model->bytes == 4   ? &step<Backend<float>>
                   : model->bytes == 2 ? &step<Backend<bf16>>
                                       : &step<Backend<int8_t>>;
  run(*model, *cache, h, logits, B, threads);
}
