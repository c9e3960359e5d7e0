// Activations in vectors: widened, searched for their largest magnitude, rounded to int8.
#pragma once

#include <algorithm>
#include <cmath>

#include "dots.h"

namespace jaxinfer {

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return widen(x); }

#if defined(__AVX512F__)
inline Floats load_wide(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load_wide(const bf16* p) {
  __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Ints largest_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints bits(Floats x) { return _mm512_castps_si512(x); }
inline int32_t largest_int(Ints x) { return _mm512_reduce_max_epi32(x); }
inline int32_t sum_ints(Ints x) { return _mm512_reduce_add_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints round_to_ints(Floats x, float inverse) {  // ties to even
  Floats scaled = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
  scaled = _mm512_min_ps(_mm512_max_ps(scaled, _mm512_set1_ps(-127)), _mm512_set1_ps(127));
  return _mm512_cvtps_epi32(scaled);
}
inline void store_bytes(int8_t* to, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x)); }
#else
inline Floats load_wide(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load_wide(const bf16* p) {
  __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline Floats magnitude(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Ints largest_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Ints bits(Floats x) { return _mm256_castps_si256(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline int32_t largest_int(Ints x) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x);
  return *std::max_element(lanes, lanes + 8);
}
inline int32_t sum_ints(Ints x) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x);
  int32_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}
inline Ints round_to_ints(Floats x, float inverse) {
  Floats scaled = _mm256_mul_ps(x, _mm256_set1_ps(inverse));
  scaled = _mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(-127)), _mm256_set1_ps(127));
  return _mm256_cvtps_epi32(scaled);
}
inline void store_bytes(int8_t* to, Ints x) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}
#endif

// -- rounding to the activations' type ---------------------------------------------------------------------------------

// To nearest, ties to even, in the upper half of each lane; NaN keeps its sign and stays NaN.
inline Ints rounded_bits(Floats x) {
#if defined(__AVX512F__)
  Ints whole = bits(x);
  Ints lowest = _mm512_and_si512(_mm512_srli_epi32(whole, 16), _mm512_set1_epi32(1));
  Ints rounded = _mm512_add_epi32(whole, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, whole, _mm512_set1_epi32(0x400000));
#else
  Ints whole = bits(x);
  Ints lowest = _mm256_and_si256(_mm256_srli_epi32(whole, 16), _mm256_set1_epi32(1));
  Ints rounded = _mm256_add_epi32(whole, _mm256_add_epi32(lowest, _mm256_set1_epi32(0x7fff)));
  Ints nan = bits(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(whole, _mm256_set1_epi32(0x400000)), nan);
#endif
}

// x rounded to the type of the first argument, wide again.
inline Floats rounded_like(const float*, Floats x) { return x; }
inline Floats rounded_like(const bf16*, Floats x) { return odd(rounded_bits(x)); }

inline void store_like(float* to, Floats x) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, x);
#else
  _mm256_storeu_ps(to, x);
#endif
}
inline void store_like(bf16* to, Floats x) {
  Ints rounded = rounded_bits(x);
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#else
  Ints halves = _mm256_srli_epi32(rounded, 16);
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
#endif
}

// The largest magnitude of a row. Magnitudes of floats are in the order of their bits, NaN last: so NaN is found too.
template <class X>
float largest_magnitude(const X* x, int64_t count) {
  Ints largest = zero_ints();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) largest = largest_ints(largest, bits(magnitude(load_wide(x + i))));
  int32_t found = largest_int(largest);
  for (; i < count; ++i) {
    float value = std::fabs(to_float(x[i]));
    int32_t of_value;
    std::memcpy(&of_value, &value, 4);
    found = std::max(found, of_value);
  }
  float result;
  std::memcpy(&result, &found, 4);
  return result;
}

}  // namespace jaxinfer
