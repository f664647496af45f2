// Tensors [B, H, T, D] as Python hands them over; their last dimension is contiguous.

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
