// Number types and helpers that all kernels share.

#pragma once

#include <cstdint>

using bf16 = uint16_t;

constexpr float LOG2E = 1.44269504088896340736f;

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
