// Dot products of a few rows of activations with a few rows of weights, for each kind of number and instruction set.
//
// Every product of a row with an output is summed in an order that depends on the number of inputs alone: vector lanes
// over the inputs, then the lanes. So a row's bits do not depend on the rows beside it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace jaxinfer {

using bf16 = uint16_t;  // the upper half of a float

inline float widen(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline bf16 round_bf16(float value) {  // to nearest, ties to even; NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<bf16>((bits >> 16) | 64);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// -- vectors of float --------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
using Floats = __m512;
using Ints = __m512i;
constexpr int kLanes = 16;
constexpr int kTileRows = 6;  // rows of activations a tile; with 4 outputs, 24 of the 32 registers are sums
inline Floats zero() { return _mm512_setzero_ps(); }
inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// 16 pairs of bf16 as floats: the even ones, the odd ones.
inline Floats even(Ints pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Floats odd(Ints pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000))); }
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }

// The sums of four vectors, in the same order whatever stands beside them.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  Floats all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline __m128i sums(Ints a, Ints b, Ints c, Ints d) {
  Ints ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  Ints cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  Ints all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#else
using Floats = __m256;
using Ints = __m256i;
constexpr int kLanes = 8;
constexpr int kTileRows = 2;  // 8 of the 16 registers are sums, 4 hold weights
inline Floats zero() { return _mm256_setzero_ps(); }
inline Ints zero_ints() { return _mm256_setzero_si256(); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats even(Ints pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Floats odd(Ints pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000))); }
inline Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  Floats ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  Floats cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  Floats all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
inline __m128i sums(Ints a, Ints b, Ints c, Ints d) {
  Ints ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  Ints cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
  Ints all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
#endif

// -- one kind of product each ----------------------------------------------------------------------------------------
// Weight: as stored. Prepared: an activation as the product wants it, in rows that are padded with zeros to whole steps.
// kStep: inputs that are read at a time, in kParts vectors each. Weights of a last, partial step are copied into a buffer
// first.

struct Float32Dot {
  using Weight = float;
  using Prepared = float;
  using Sum = Floats;
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 2;
  static Sum none() { return zero(); }
  template <int Part> static Floats weights(const Weight* p) { return load(p + Part * kLanes); }
  template <int Part> static Floats inputs(const Prepared* p) { return load(p + Part * kLanes); }
  static Sum add(Sum sum, Floats w, Floats x) { return multiply_add(w, x, sum); }
  static void prepare(const float* x, Prepared* to, int64_t inputs) { std::memcpy(to, x, inputs * sizeof(float)); }
};

#if defined(__AVX512BF16__)
struct Bf16Dot {
  using Weight = bf16;
  using Prepared = bf16;
  using Sum = Floats;
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 1;
  static Sum none() { return zero(); }
  template <int Part> static Ints weights(const Weight* p) { return load_ints(p); }
  template <int Part> static Ints inputs(const Prepared* p) { return load_ints(p); }
  static Sum add(Sum sum, Ints w, Ints x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
  static void prepare(const bf16* x, Prepared* to, int64_t inputs) { std::memcpy(to, x, inputs * sizeof(bf16)); }
};
#else
// Weights are widened in registers, the even ones of a step and then the odd ones; activations lie in that order, wide.
struct Bf16Dot {
  using Weight = bf16;
  using Prepared = float;
  using Sum = Floats;
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 2;
  static Sum none() { return zero(); }
  template <int Part> static Floats weights(const Weight* p) { return Part == 0 ? even(load_ints(p)) : odd(load_ints(p)); }
  template <int Part> static Floats inputs(const Prepared* p) { return load(p + Part * kLanes); }
  static Sum add(Sum sum, Floats w, Floats x) { return multiply_add(w, x, sum); }
  static void prepare(const bf16* x, Prepared* to, int64_t inputs) {
    for (int64_t i = 0; i < inputs; ++i) {
      int64_t in_step = i % kStep;
      to[i - in_step + (in_step & 1) * kLanes + in_step / 2] = widen(x[i]);
    }
  }
};
#endif

// int8 by int8, exact in int32: with up to 66,000 inputs nothing overflows.
struct Int8Dot {
  using Weight = int8_t;
  using Prepared = int8_t;
  using Sum = Ints;
  static Sum none() { return zero_ints(); }
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  // The instruction multiplies unsigned by signed. Weights are read as w + 128; 128 times the sum of the row's
  // activations is taken off at the end.
  static constexpr int kStep = 4 * kLanes;
  static constexpr int kParts = 1;
  static constexpr int kShift = 128;
  template <int Part> static Ints inputs(const Prepared* p) { return load_ints(p); }
#if defined(__AVX512VNNI__)
  template <int Part> static Ints weights(const Weight* p) { return _mm512_xor_si512(load_ints(p), _mm512_set1_epi8(-128)); }
  static Sum add(Sum sum, Ints w, Ints x) {
    // The intrinsic says the same; written out, GCC 12 keeps 24 sums in registers.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
#else
  template <int Part> static Ints weights(const Weight* p) { return _mm256_xor_si256(load_ints(p), _mm256_set1_epi8(-128)); }
  static Sum add(Sum sum, Ints w, Ints x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#endif
#elif defined(__AVX512F__)
  // As 16-bit numbers, whose pairs are multiplied and added exactly.
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 1;
  static constexpr int kShift = 0;
  template <int Part> static Ints weights(const Weight* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <int Part> static Ints inputs(const Prepared* p) { return weights<Part>(p); }
  static Sum add(Sum sum, Ints w, Ints x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
#else
  // |w| times x with w's sign: unsigned by signed, whose pairs stay below 2 * 128 * 127 and so within 16 bits.
  static constexpr int kStep = 4 * kLanes;
  static constexpr int kParts = 1;
  static constexpr int kShift = 0;
  template <int Part> static Ints weights(const Weight* p) { return load_ints(p); }
  template <int Part> static Ints inputs(const Prepared* p) { return load_ints(p); }
  static Sum add(Sum sum, Ints w, Ints x) {
    Ints pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
};

// Adds part `Part` of one step of 4 rows of weights and `Rows` rows of activations to their sums.
template <class Dot, int Part, int Rows>
inline __attribute__((always_inline)) void add_step(typename Dot::Sum sum[][4], const typename Dot::Weight* const w[4],
                                                    const typename Dot::Prepared* x, int64_t x_stride) {
  decltype(Dot::template weights<Part>(w[0])) four[4];
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) four[c] = Dot::template weights<Part>(w[c]);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    auto row = Dot::template inputs<Part>(x + r * x_stride);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) sum[r][c] = Dot::add(sum[r][c], four[c], row);
  }
  if constexpr (Part + 1 < Dot::kParts) add_step<Dot, Part + 1, Rows>(sum, w, x, x_stride);
}

// How far a tile is summed in one go. Sums of a part of the inputs are kept as they are, vectors whose lanes have not been
// added up, so that going on with them gives the bits of one go.
struct Span {
  int64_t from, to;  // inputs
  bool first, last;  // of all inputs
};

// What is fetched into the cache beside the sums: of the rows of weights that lie `distance` weights further on the part
// from `from` on, one input for 2^shift that are summed. distance 0: nothing.
struct Ahead {
  int64_t distance, from;
  int shift;
};

// Sums of `Rows` rows of activations with 4 rows of weights over a span of inputs: after the last one those of row r are
// out[r]; between spans they are in `kept`.
template <class Dot, int Rows, class Lanes4>
inline void dot_tile(const typename Dot::Prepared* x, int64_t x_stride, const typename Dot::Weight* const w[4],
                     const Span& span, const Ahead& ahead, typename Dot::Sum* kept, Lanes4* out) {
  typename Dot::Sum sum[Rows][4];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) sum[r][c] = span.first ? Dot::none() : kept[4 * r + c];
  const typename Dot::Weight *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  int64_t i = span.from;
  const int64_t distance = ahead.distance == 0 ? 0 : ahead.distance + ahead.from;
  const int shift = ahead.shift;
  for (; i + Dot::kStep <= span.to; i += Dot::kStep) {
    const typename Dot::Weight* at[4] = {w0 + i, w1 + i, w2 + i, w3 + i};
    if (distance) {
      int64_t place = distance + (i >> shift);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) _mm_prefetch(reinterpret_cast<const char*>(w[c] + place), _MM_HINT_T0);
    }
    add_step<Dot, 0, Rows>(sum, at, x + i, x_stride);
  }
  if (i < span.to) {  // the last span alone ends within a step
    typename Dot::Weight rest[4][Dot::kStep] = {};
    for (int c = 0; c < 4; ++c) std::memcpy(rest[c], w[c] + i, (span.to - i) * sizeof(rest[0][0]));
    const typename Dot::Weight* at[4] = {rest[0], rest[1], rest[2], rest[3]};
    add_step<Dot, 0, Rows>(sum, at, x + i, x_stride);
  }
  if (span.last) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) out[r] = sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    return;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) kept[4 * r + c] = sum[r][c];
}

}  // namespace jaxinfer
