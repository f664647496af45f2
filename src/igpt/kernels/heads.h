// Tensors [B, H, T, D] as Python hands them over, whose last dimension is contiguous, and how their
// heads are divided among threads.

#pragma once

#include <cstdint>

// A head of one picture.
template <class Number>
struct HeadOf {
  Number* data;
  long row;  // elements from one token to the next
};

// Address, and elements from one picture, head and token to the next.
template <class Number>
struct StridedOf {
  Number* data;
  int64_t picture, head, token;
  HeadOf<Number> at(int b, int h) const { return {data + b * picture + h * head, token}; }
};

// `compute(picture, head, number of the head among all)` for every head.
template <class Compute>
void for_each_head(int B, int H, int threads, Compute compute) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int i = 0; i < B * H; i++) compute(i / H, i % H, i);
}
