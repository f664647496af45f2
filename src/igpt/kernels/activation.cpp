// quick_gelu, x sigmoid(1.702 x), of bfloat16 and its gradient, computed in float32.
//
// PyTorch's exponential is exact to float32's last bit, which costs more than all the rest here.

#include <algorithm>

#include "wide.h"

namespace {

constexpr float SLOPE = 1.702f;
constexpr int64_t CHUNK = 8192;  // elements that a thread takes at a time

__m512 load(const bf16* x, __mmask16 lanes) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

void store(bf16* to, __mmask16 lanes, __m512 x) { _mm256_mask_storeu_epi16(to, lanes, to_bf16(x)); }

__m512 sigmoid(__m512 x) {
  const __m512 power = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-SLOPE * LOG2E)));
  const __m512 one = _mm512_set1_ps(1);
  return _mm512_div_ps(one, _mm512_add_ps(one, power));
}

// Calls use(place, lanes) for every 16 of n elements, shared by the threads.
template <class Use>
void for_each(int64_t n, int threads, Use use) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < n; start += CHUNK)
    for (int64_t i = start; i < std::min(n, start + CHUNK); i += 16)
      use(i, lanes_below(0, int(std::min<int64_t>(n - i, 16))));
}

}  // namespace

extern "C" {

void quick_gelu_forward(const bf16* x, bf16* y, int64_t n, int threads) {
  for_each(n, threads, [=](int64_t i, __mmask16 lanes) {
    const __m512 value = load(x + i, lanes);
    store(y + i, lanes, _mm512_mul_ps(value, sigmoid(value)));
  });
}

// dx = dy s (1 + 1.702 x (1 - s)), s being the sigmoid.
void quick_gelu_backward(const bf16* x, const bf16* dy, bf16* dx, int64_t n, int threads) {
  const __m512 one = _mm512_set1_ps(1), slope = _mm512_set1_ps(SLOPE);
  for_each(n, threads, [=](int64_t i, __mmask16 lanes) {
    const __m512 value = load(x + i, lanes), s = sigmoid(value);
    const __m512 rest = _mm512_mul_ps(_mm512_mul_ps(slope, value), _mm512_sub_ps(one, s));
    const __m512 gradient = _mm512_mul_ps(s, _mm512_add_ps(one, rest));
    store(dx + i, lanes, _mm512_mul_ps(load(dy + i, lanes), gradient));
  });
}
}
