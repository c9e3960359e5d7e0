// Products with weights in MXFP4: numbers of 4 bits (E2M1) in blocks of 32 inputs, each block with a power of two (E8M0).
//
// Weights are widened into a buffer that stays in a core's caches, in the type of the activations, which holds them exactly;
// from there they go through the products of dense weights. So the result has the bits of a dense product with the same
// weights, and a row's bits do not depend on the rows beside it.
#pragma once

#include "matmul.h"

namespace jaxinfer {

constexpr int64_t kMxBlock = 32;

// -- one block ---------------------------------------------------------------------------------------------------------

// The bits of a number times a scale in bfloat16, for all scales: also below the smallest normal number, and beyond the
// largest, which is infinity. See `pallas_kernels/mxfp4.py`.
inline bf16 decode_one(int code, int scale) {
  if (scale == 255) return 0x7fc0;
  int magnitude = code & 7;
  int sign = (code & 8) << 12;
  if (magnitude == 0) return static_cast<bf16>(sign);
  int mantissa = magnitude > 1 ? (magnitude & 1) << 6 : 0;
  int biased = scale + (magnitude >> 1) - 1;
  int bits = biased >= 1 ? std::min(biased << 7 | mantissa, 0x7f80) : (128 | mantissa) >> (1 - biased);
  return static_cast<bf16>(sign | bits);
}

// Scales with which every number but 0 is a normal one of bfloat16: a difference of exponents is added to its bits.
constexpr int kLeastScale = 2, kLargestScale = 252;

// The 16 numbers times a scale in bfloat16, a table that each byte of a block is looked up in twice.
inline __m256i scaled_numbers(int scale) {
  const __m256i numbers = _mm256_setr_epi16(
      0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
      static_cast<short>(0x8000), static_cast<short>(0xbf00), static_cast<short>(0xbf80), static_cast<short>(0xbfc0),
      static_cast<short>(0xc000), static_cast<short>(0xc040), static_cast<short>(0xc080), static_cast<short>(0xc0c0));
  const __m256i not_zero = _mm256_setr_epi16(0, -1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1);
  const __m256i shift = _mm256_set1_epi16(static_cast<short>((scale - 127) * 128));
  return _mm256_add_epi16(numbers, _mm256_and_si256(not_zero, shift));
}

#if defined(__AVX512F__)
inline void store_block(bf16* to, __m512i numbers) { _mm512_storeu_si512(to, numbers); }
inline void store_block(float* to, __m512i numbers) {
  for (int half = 0; half < 2; ++half) {
    __m256i of_half = half == 0 ? _mm512_castsi512_si256(numbers) : _mm512_extracti64x4_epi64(numbers, 1);
    _mm512_storeu_ps(to + 16 * half, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(of_half), 16)));
  }
}

// The 32 numbers of a block, in the order of the inputs.
template <class W>
inline void decode_block_normal(const uint8_t* block, int scale, W* to) {
  __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
  // A byte in the lower half of each lane and its high number in the upper half. The lowest 5 bits look up, in a table
  // that says everything twice, so that the fifth does not matter.
  __m512i codes = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
  store_block(to, _mm512_permutexvar_epi16(codes, _mm512_broadcast_i64x4(scaled_numbers(scale))));
}
#else
inline void store_eight(bf16* to, __m128i numbers) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), numbers); }
inline void store_eight(float* to, __m128i numbers) {
  _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(numbers), 16)));
}

// The 32 numbers of a block, in the order of the inputs: both bytes of each come from a table of 16 bytes.
template <class W>
inline void decode_block_normal(const uint8_t* block, int scale, W* to) {
  const __m256i table = scaled_numbers(scale);
  const __m256i bytes_of_table =
      _mm256_packus_epi16(_mm256_and_si256(table, _mm256_set1_epi16(255)), _mm256_srli_epi16(table, 8));
  const __m256i low_table = _mm256_permute4x64_epi64(bytes_of_table, 0x88);
  const __m256i high_table = _mm256_permute4x64_epi64(bytes_of_table, 0xdd);
  const __m128i nibble = _mm_set1_epi8(15);
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
  __m128i low = _mm_and_si128(bytes, nibble), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  __m256i codes = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
  __m256i low_bytes = _mm256_shuffle_epi8(low_table, codes), high_bytes = _mm256_shuffle_epi8(high_table, codes);
  __m256i first = _mm256_unpacklo_epi8(low_bytes, high_bytes);  // inputs 0 to 7, and 16 to 23
  __m256i second = _mm256_unpackhi_epi8(low_bytes, high_bytes);
  store_eight(to, _mm256_castsi256_si128(first));
  store_eight(to + 8, _mm256_castsi256_si128(second));
  store_eight(to + 16, _mm256_extracti128_si256(first, 1));
  store_eight(to + 24, _mm256_extracti128_si256(second, 1));
}
#endif

inline void store_one(bf16* to, bf16 value) { *to = value; }
inline void store_one(float* to, bf16 value) { *to = widen(value); }

// `blocks` blocks of one output: 16 bytes each, which hold input 2j in the low half of byte j; their scales. What lies
// `ahead` bytes further on is fetched into the cache.
template <class W>
inline void decode_blocks(const uint8_t* values, const uint8_t* scales, int64_t blocks, W* to, int64_t ahead) {
  for (int64_t b = 0; b < blocks; ++b, values += kMxBlock / 2, to += kMxBlock) {
    int scale = scales[b];
    _mm_prefetch(reinterpret_cast<const char*>(values + ahead), _MM_HINT_T0);
    if (scale >= kLeastScale && scale <= kLargestScale) [[likely]] {
      decode_block_normal(values, scale, to);
      continue;
    }
    for (int i = 0; i < kMxBlock; ++i) store_one(to + i, decode_one(values[i / 2] >> 4 * (i % 2) & 15, scale));
  }
}

// -- the product -------------------------------------------------------------------------------------------------------

// How `matmul_part` (matmul.h) multiplies by the outputs `begin` to `end` - 1 of one group, here of a weight that is widened:
// a span of four outputs at a time where rows are few, else the part of the outputs, so that many tiles find it wide.
// scales: of the group's weight.
template <class Dot, class Store>
void mxfp4_part(const typename Dot::Prepared* all, int64_t x_stride, const Group<uint8_t>& group, const uint8_t* scales,
                int64_t begin, int64_t end, int64_t outputs, int64_t inputs, const Store& store) {
  using Wide = typename Dot::Weight;
  static_assert(kMxBlock % Dot::kStep == 0, "no span ends within a step");
  static thread_local Scratch scratch;
  const int64_t rows = group.rows, blocks = inputs / kMxBlock;
  const typename Dot::Prepared* x = all + group.first_row * x_stride;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t tile = (rows + tiles - 1) / tiles;
  const bool few = tiles <= kFewTiles;
  constexpr int64_t kSpan = kSpanBytes / sizeof(typename Dot::Prepared) / kMxBlock * kMxBlock;
  const int64_t span_inputs = inputs > 3 * kSpan / 2 ? kSpan : inputs;
  const int64_t wide_stride = (few ? span_inputs : inputs) + Dot::kStep;
  Wide* wide = scratch.get<Wide>((few ? 4 : round_up(end - begin, 4)) * wide_stride);
  typename Dot::Sum kept[kPartOutputs * kTileRows];
  // The weights' way from memory takes longest: while four rows are widened the next four come. Their scales are fetched
  // as a whole, being few. (What lies behind the last weight may be fetched too: it is not read.)
  const int64_t ahead = 4 * blocks * (kMxBlock / 2);
  // Outputs past the last one are the last one; who stores leaves them out.
  auto widen_row = [&](int64_t output, int64_t from, int64_t length, Wide* to) {
    const int64_t first = std::min(output, outputs - 1) * blocks + from / kMxBlock;
    _mm_prefetch(reinterpret_cast<const char*>(scales + first + 4 * blocks), _MM_HINT_T0);
    decode_blocks(group.w + first * (kMxBlock / 2), scales + first, length / kMxBlock, to, ahead);
  };
  // Sums of four outputs over the inputs `from` to `to` - 1, which lie wide at `four`.
  auto sum_four = [&](int64_t first, int64_t o, const Wide* four, int64_t from, int64_t to, typename Dot::Sum* unfinished) {
    const int count = static_cast<int>(std::min(tile, rows - first));
    const Wide* w[4] = {four, four + wide_stride, four + 2 * wide_stride, four + 3 * wide_stride};
    const Span span{0, to - from, from == 0, to == inputs};
    __m128 sum[kTileRows];
    dot_rows<Dot>(count, x + first * x_stride + from, x_stride, w, span, {0, 0, 0}, unfinished, sum);
    if (span.last) store(group, group.first_row + first, count, o, sum);
  };
  if (few) {
    for (int64_t o = begin; o < end; o += 4) {
      for (int64_t from = 0; from < inputs; from += span_inputs) {
        const int64_t to = std::min(from + span_inputs, inputs);
        for (int c = 0; c < 4; ++c) widen_row(o + c, from, to - from, wide + c * wide_stride);
        for (int64_t first = 0; first < rows; first += tile) {
          sum_four(first, o, wide, from, to, kept + first / tile * 4 * kTileRows);
        }
      }
    }
    return;
  }
  for (int64_t o = 0; o < round_up(end - begin, 4); ++o) widen_row(begin + o, 0, inputs, wide + o * wide_stride);
  for (int64_t first = 0; first < rows; first += tile) {
    for (int64_t from = 0; from < inputs; from += span_inputs) {
      const int64_t to = std::min(from + span_inputs, inputs);
      for (int64_t o = begin; o < end; o += 4) {
        sum_four(first, o, wide + (o - begin) * wide_stride + from, from, to, kept + (o - begin) * kTileRows);
      }
    }
  }
}

// Groups of values (O, I / 2), of which the scales (O, I / 32) lie one weight behind the other; x (rows, I) of which `count`
// rows are real. y float32.
template <class Dot, class X>
void microscaled_matmul(ThreadPool& pool, const X* x, const Group<uint8_t>* groups, int64_t num_groups,
                        const uint8_t* scales, float* y, int64_t rows, int64_t count, int64_t outputs, int64_t inputs) {
  int64_t most = 0;
  for (int64_t g = 0; g < num_groups; ++g) most = std::max(most, groups[g].rows);
  auto store = [&](const auto&, int64_t row, int tile, int64_t output, const __m128* sum) {
    for (int r = 0; r < tile; ++r) store4(y + (row + r) * outputs, output, outputs, sum[r]);
  };
  if (most > 0) {
    const int64_t part = outputs_of_a_part<Dot>(most, outputs, inputs, pool.size());
    const int64_t parts = (outputs + part - 1) / part, of_scales = outputs * (inputs / kMxBlock);
    with_prepared<Dot>(pool, x, count, inputs, [&](const typename Dot::Prepared* prepared, int64_t stride) {
      pool.run(num_groups * parts, [&](int64_t item) {
        const Group<uint8_t>& group = groups[item / parts];
        const int64_t begin = item % parts * part;
        mxfp4_part<Dot>(prepared, stride, group, scales + group.index * of_scales, begin,
                        std::min(begin + part, outputs), outputs, inputs, store);
      });
    });
  }
  std::memset(y + count * outputs, 0, (rows - count) * outputs * sizeof(float));
}

}  // namespace jaxinfer
