// Vectors of any processor, by the compiler's own vector types.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "numbers.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // of a vector
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));
typedef int16_t Halves __attribute__((vector_size(4 * LANES)));

// Numbers in a word: two in bfloat16, four in int8.
template <class Number>
constexpr int PACK = 4 / sizeof(Number);

template <class To = Vector>
To load(const void* from) {
  To x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

// To the nearest bfloat16, ties to even.
void store(bf16* to, Vector x) {
  typedef bf16 Narrow __attribute__((vector_size(2 * LANES)));
  const auto bits = (Words)x;
  const auto halves = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Narrow);
  std::memcpy(to, &halves, sizeof halves);
}

// The i-th number of each word.
template <class Number>
Vector number(Words words, int i) {
  if constexpr (std::is_same_v<Number, int8_t>)
    return __builtin_convertvector((words << (24 - 8 * i)) >> 24, Vector);
  else
    return (Vector)(i == 0 ? words << 16 : words & int32_t(0xffff0000));
}

// sum + both products of a word's halves with those of `pair`.
Words add_products(Words sum, Words halves, Words pair) {
#if defined(__AVX512VNNI__)
  return (Words)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)halves, (__m512i)pair);
#elif defined(__AVX512BW__)
  return sum + (Words)_mm512_madd_epi16((__m512i)halves, (__m512i)pair);
#elif defined(__AVX2__)
  return sum + (Words)_mm256_madd_epi16((__m256i)halves, (__m256i)pair);
#else
  return sum + ((halves << 16) >> 16) * ((pair << 16) >> 16) + (halves >> 16) * (pair >> 16);
#endif
}

// What numbers of the cache or the weights are multiplied with: in bfloat16 if they are and the
// processor takes it, else in float32.
#if defined(__AVX512BF16__)
template <class Number>
using Factor = std::conditional_t<std::is_same_v<Number, bf16>, bf16, float>;
#else
template <class Number>
using Factor = float;
#endif

// sum + the products of each word's numbers with as many factors, which all words share.
template <class Number>
Vector add_products(Vector sum, Words words, const Factor<Number>* factors) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Number, bf16>) {
    const auto pair = (__m512bh)(Words{} + load<int32_t>(factors));
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)words, pair);
  } else
#endif
  {
#pragma GCC unroll 4
    for (int p = 0; p < PACK<Number>; p++) sum += number<Number>(words, p) * factors[p];
    return sum;
  }
}

float sum_of(Vector x) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

Vector larger(Vector a, Vector b) { return a > b ? a : b; }

constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: of a sum with it, the last bit is worth one

// 2^x of x between -126 and 126, and of the nearer of these outside; 2.4e-6 relative: Taylor's series
// to the fifth power on [-1/2, 1/2].
Vector exp2(Vector x) {
  const Vector end = Vector{} + 126.0f;
  x = larger(x, -end);
  x = x < end ? x : end;
  const Vector shifted = x + ROUND, f = x - (shifted - ROUND);
  Vector y = f * 0.00133335581f + 0.00961812911f;
  y = y * f + 0.0555041087f;
  y = y * f + 0.240226507f;
  y = y * f + 0.693147181f;
  y = y * f + 1.0f;
  return (Vector)((Words)y + ((Words)shifted << 23));
}

}  // namespace
