// Vectors that any processor has, by the compiler's own vector types.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "numbers.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // float32 numbers in a vector
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));
typedef int16_t Halves __attribute__((vector_size(4 * LANES)));

// Numbers in a word of 32 bits: one in float32, two in bfloat16, four in int8.
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

// sum + both products of a word's halves with those of `pair`.
Words add_pair(Words sum, Words halves, Words pair) {
#if defined(__AVX512VNNI__)
  return (Words)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)halves, (__m512i)pair);
#elif defined(__AVX512BW__)
  return sum + (Words)_mm512_madd_epi16((__m512i)halves, (__m512i)pair);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sum + (Words)_mm256_madd_epi16((__m256i)halves, (__m256i)pair);
#elif defined(__SSE2__) && !defined(__AVX__)
  return sum + (Words)_mm_madd_epi16((__m128i)halves, (__m128i)pair);
#else
  return sum + ((halves << 16) >> 16) * ((pair << 16) >> 16) + (halves >> 16) * (pair >> 16);
#endif
}

// Factor: what numbers of the cache or the weights are multiplied with; Sum: what the products are
// added in. Those in int8 meet whole numbers of 16 bits and are added in whole numbers. Those in
// bfloat16 meet bfloat16 if the processor does that, else float32, and are added in float32.
#if defined(__AVX512BF16__)
using FactorOfBf16 = bf16;
#else
using FactorOfBf16 = float;
#endif
template <class Number>
constexpr bool IS_WHOLE = std::is_same_v<Number, int8_t>;
template <class Number>
constexpr bool IS_BF16 = std::is_same_v<Number, bf16>;
template <class Number>
using Factor = std::conditional_t<IS_WHOLE<Number>, int16_t,
                                  std::conditional_t<IS_BF16<Number>, FactorOfBf16, float>>;
template <class Number>
using Sum = std::conditional_t<IS_WHOLE<Number>, Words, Vector>;

// sum + the products of each word's numbers with as many factors, which all words share. Of four
// numbers in int8 the first two are in a word's even bytes and the others in its odd ones, so that a
// shift or two makes halves of either pair.
template <class Number>
Sum<Number> add_products(Sum<Number> sum, Words words, const Factor<Number>* factors) {
  if constexpr (IS_WHOLE<Number>) {
    const auto bytes = (Halves)words;
    sum = add_pair(sum, (Words)((bytes << 8) >> 8), Words{} + load<int32_t>(factors));
    return add_pair(sum, (Words)(bytes >> 8), Words{} + load<int32_t>(factors + 2));
  } else if constexpr (IS_BF16<Number>) {
#if defined(__AVX512BF16__)
    const auto pair = (__m512bh)(Words{} + load<int32_t>(factors));
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)words, pair);
#else
    return sum + (Vector)(words << 16) * factors[0] + (Vector)(words & int32_t(0xffff0000)) * factors[1];
#endif
  } else {
    return sum + (Vector)words * factors[0];
  }
}

Vector as_floats(Vector x) { return x; }
Vector as_floats(Words x) { return __builtin_convertvector(x, Vector); }

float sum_of(Vector x) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

Vector larger(Vector a, Vector b) { return a > b ? a : b; }

float largest_of(Vector x) {
  float top = x[0];
  for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
  return top;
}

// 1.5 * 2^23: adding it rounds to a whole number, since the last bit of the sum is worth one.
constexpr float ROUND = 12582912.0f;

// 2^x, with x limited to [-126, 126], NaN of NaN; relative error 1.6e-7, of which the polynomial makes 0.9e-7:
// the best of the fifth degree on [-1/2, 1/2] that is 1 at 0.
Vector exp2(Vector x) {
  const Vector end = Vector{} + 126.0f;
  x = x < -end ? -end : x;  // which keeps NaN
  x = x > end ? end : x;
  const Vector shifted = x + ROUND, f = x - (shifted - ROUND);
  Vector y = f * 0.00132647271f + 0.00967151265f;
  y = y * f + 0.0555073374f;
  y = y * f + 0.240222421f;
  y = y * f + 0.693146978f;
  y = y * f + 1.0f;
  return (Vector)((Words)y + ((Words)shifted << 23));
}

}  // namespace
