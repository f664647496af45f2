// One step of the decoder for B pictures: from the embedded last pixels to the next one's logits.
//
// A step reads every weight and the whole cache once and computes little, so all is laid out in the
// order in which it is read. One team of threads computes the whole step. A picture's result does
// not depend on the others beside it.
//
// Each implementation ("backend") has its own products and attention: for matrix tiles
// (`decode_tiles.cpp`), or for the vectors of any processor (`decode_vectors.cpp`).

#pragma once

#include <cstddef>
#include <vector>

#include "numbers.h"

extern "C" {

// y = W x: W [outputs, inputs], both padded to multiples of 32, in the backend's layout. In int8 there
// are scales [outputs].
struct Linear {
  const void* weights;
  const float* scales;
  int outputs, inputs;
};

struct Layer {
  const float *norm_1, *norm_2;  // gains [d]
  Linear qkv, proj, fc, out;
};

struct Model {
  int n_layer, d, n_head;
  int bytes;  // of a weight: 4 in float32, 2 in bfloat16, 1 in int8
  float eps;  // of the norms
  const Layer* layers;
  const float* norm_f;
  Linear head;
};

// Keys [L, B, H, S / 16, D / P, 16, P] and values [L, B, H, S / P, D, P], where P numbers make 32
// bits: one in float32, two in bfloat16 or, where there are scales [L, B, H, S], four in int8, with
// the second and third swapped. `length` positions are filled, and the step adds one. S, the positions that there
// is room for, is a multiple of 64, and D of 32.
struct Cache {
  void *keys, *values;
  float *key_scales, *value_scales;
  int S, length;
};
}

namespace {

constexpr int WIDE = 32;      // outputs that are computed together
constexpr int TOGETHER = 64;  // positions whose scores are computed side by side

using Floats = std::vector<float>;

// h [B, d] has the embedded pixels at position `cache.length`, and is overwritten; logits are [B,
// outputs of the head]. A backend's `Outputs` are 32 of one picture; its `Inputs` [B, n] are filled 32
// at a time.
template <class Backend>
void step(const Model& m, const Cache& cache, float* h, float* logits, int B, int threads) {
  using Outputs = typename Backend::Outputs;
  const int d = m.d, H = m.n_head, D = d / H;
  Floats qkv(size_t(B) * 3 * d);
  typename Backend::Inputs narrow(B, d), mixed(B, d), wide(B, 4 * d);
#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] const typename Backend::Thread thread;
    typename Backend::Scratch scratch(cache.S, D);
    const auto normalise = [&](const float* gain) {
#pragma omp for schedule(static)
      for (int b = 0; b < B; b++)
        set_normalised(h + size_t(b) * d, gain, d, m.eps, b, narrow);
    };
    for (int l = 0; l < m.n_layer; l++) {
      const Layer& layer = m.layers[l];
      normalise(layer.norm_1);
      apply(layer.qkv, narrow, B, [&](int b, int output, const Outputs& y) {
        store(&qkv[size_t(b) * 3 * d + output], y);
      });
#pragma omp for schedule(static)
      for (int i = 0; i < B * H; i++) {
        const int b = i / H, first = i % H * D;
        const float* q = &qkv[size_t(b) * 3 * d + first];
        attend(q, q + d, q + 2 * d, cache, size_t(l) * B * H + i, D, scratch);
        for (int at = 0; at < D; at += WIDE)
          mixed.set(b, first + at, Outputs::load(&scratch.mixed[at]));
      }
      apply(layer.proj, mixed, B, [&](int b, int output, const Outputs& y) {
        add(h + size_t(b) * d + output, y);
      });
      normalise(layer.norm_2);
      apply(layer.fc, narrow, B, [&](int b, int output, const Outputs& y) {
        wide.set(b, output, quick_gelu(y));
      });
      apply(layer.out, wide, B, [&](int b, int output, const Outputs& y) {
        add(h + size_t(b) * d + output, y);
      });
    }
    normalise(m.norm_f);
    apply(m.head, narrow, B, [&](int b, int output, const Outputs& y) {
      store(logits + size_t(b) * m.head.outputs + output, y);
    });
  }
}

}  // namespace
