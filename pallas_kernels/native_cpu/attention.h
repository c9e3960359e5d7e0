// Paged attention: writes a step's keys and values to their pages, then attends causally over each row's sequence.
//
// The work is cut into tiles: a few tokens of one row with all query heads that share a KV head. A tile walks its keys in
// blocks of 64, cut at fixed positions of the sequence, and folds each into an online softmax (Milakov and Gimelshein,
// 2018). A query's operations and their order depend on its own position alone: its bits do not depend on its tile.
#pragma once

#include <limits>

#include "matmul.h"

namespace jaxinfer {

constexpr int kBlock = 64;        // keys
constexpr int kTileQueries = 32;  // query vectors of a tile, about

struct Attention {
  int64_t tokens, rows, heads, kv_heads, head_dim, page_size, pages_per_row, num_pages;
  const int32_t *query_start_loc, *seq_lens, *page_tables, *slot_mapping;
  const float* sinks;  // of each query head, or null
  float scale, soft_cap;  // soft_cap 0: none
  int64_t window;         // 0: none
};

// -- vectors -----------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline float largest_lane(Floats x) { return _mm512_reduce_max_ps(x); }
inline Floats times_power_of_2(Floats x, Floats n) {  // n whole numbers from -126 to 127
  return _mm512_mul_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)));
}
inline Floats pick_negative(Floats z, Floats negative, Floats other) {  // by the sign of z
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(z)), other, negative);
}
inline Floats zero_below(Floats x, Floats border, Floats value) {  // value where not x < border; NaN keeps the value
  return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(x, border, _CMP_LT_OQ), _mm512_setzero_ps());
}
#else
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats nearest(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
inline float largest_lane(Floats x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return std::max(_mm_cvtss_f32(half), _mm_cvtss_f32(_mm_shuffle_ps(half, half, 1)));
}
inline Floats times_power_of_2(Floats x, Floats n) {
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
inline Floats pick_negative(Floats z, Floats negative, Floats other) { return _mm256_blendv_ps(other, negative, z); }
inline Floats zero_below(Floats x, Floats border, Floats value) {
  return _mm256_andnot_ps(_mm256_cmp_ps(x, border, _CMP_LT_OQ), value);
}
#endif

// e to the power of x <= 0, to about a unit in the last place; 0 below the smallest normal number, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series, whose next term is below 2^-26 there.
inline Floats exponential(Floats x) {
  const Floats lowest = all(-87.0f);
  Floats bounded = larger(lowest, x);  // the second operand where one is NaN
  Floats n = nearest(mul(bounded, all(1.44269504f)));
  Floats r = multiply_add(n, all(-0.693359375f), bounded);  // ln 2 in two parts: the first is exact times n
  r = multiply_add(n, all(2.12194440e-4f), r);
  Floats sum = all(1.0f / 5040);
  for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = multiply_add(sum, r, all(term));
  return zero_below(x, lowest, times_power_of_2(sum, n));
}

// -- one tile ------------------------------------------------------------------------------------------------------------

// sums (Rows, 4 * lanes or Columns * lanes) += weights (Rows, keys) times values, key by key.
template <class Value, int Rows, int Columns>
inline void weigh_tile(const float* weights, const Value* const* values, int from, int to, int64_t column, float* sums,
                       int64_t sums_stride) {
  Floats sum[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) sum[r][c] = load(sums + r * sums_stride + column + c * kLanes);
  for (int key = from; key < to; ++key) {
    Floats value[Columns];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) value[c] = load_wide(values[key] + column + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      Floats weight = all(weights[r * kBlock + key]);
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c) sum[r][c] = multiply_add(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) jaxinfer::store(sums + r * sums_stride + column + c * kLanes, sum[r][c]);
}

template <class Value, int Columns>
inline void weigh_columns(const float* weights, const Value* const* values, int from, int to, int64_t queries,
                          int64_t column, float* sums, int64_t head_dim) {
  constexpr int kRows = kLanes == 16 ? 4 : 2;
  int64_t m = 0;
  for (; m + kRows <= queries; m += kRows) {
    weigh_tile<Value, kRows, Columns>(weights + m * kBlock, values, from, to, column, sums + m * head_dim, head_dim);
  }
  for (; m < queries; ++m) {
    weigh_tile<Value, 1, Columns>(weights + m * kBlock, values, from, to, column, sums + m * head_dim, head_dim);
  }
}

template <class Value>
void weigh(const float* weights, const Value* const* values, int from, int to, int64_t queries, float* sums,
           int64_t head_dim) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= head_dim; column += 4 * kLanes) {
    weigh_columns<Value, 4>(weights, values, from, to, queries, column, sums, head_dim);
  }
  for (; column < head_dim; column += kLanes) {
    weigh_columns<Value, 1>(weights, values, from, to, queries, column, sums, head_dim);
  }
}

// Scores of one query with a block's keys, which become weights; keys outside [from, to) have none.
struct Softmax {
  float highest, total;

  // Returns what earlier sums are multiplied by.
  float fold(float* scores, int from, int to, float scale, float soft_cap) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    Floats most = all(kNone);
    for (int i = 0; i < kBlock; ++i) scores[i] = i >= from && i < to ? scores[i] * scale : kNone;
    if (soft_cap != 0) {
      for (int i = from; i < to; ++i) scores[i] = soft_cap * std::tanh(scores[i] / soft_cap);
    }
    for (int i = 0; i < kBlock; i += kLanes) most = larger(most, load(scores + i));
    float before = highest;
    highest = std::max(before, largest_lane(most));
    Floats sum = zero();
    for (int i = 0; i < kBlock; i += kLanes) {
      Floats weight = exponential(sub(load(scores + i), all(highest)));
      store(scores + i, weight);
      sum = add(sum, weight);
    }
    Floats nothing = zero();
    float keep = before == highest ? 1.0f : first_lane(exponential(all(before - highest)));
    total = total * keep + _mm_cvtss_f32(sums(sum, nothing, nothing, nothing));
    return keep;
  }

 private:
  static float first_lane(Floats x) {
    alignas(64) float lanes[kLanes];
    jaxinfer::store(lanes, x);
    return lanes[0];
  }
  static void store(float* to, Floats x) { jaxinfer::store(to, x); }
};

template <class X>
inline void write_out(const float* from, float divisor, X* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store_like(to + i, div(load(from + i), all(divisor)));
}

// Brings a block's keys and values into the first cache. Loads that nothing waits for come from memory side by side, which
// halves the time of a long sequence's token; the processor foresees little where a page ends, and prefetch instructions
// changed nothing.
template <class Stored>
inline void fetch(const Stored* const* keys, const Stored* const* values, int from, int to, int64_t head_dim) {
  for (int i = from; i < to; ++i) {
    auto* key = reinterpret_cast<const volatile char*>(keys[i]);
    auto* value = reinterpret_cast<const volatile char*>(values[i]);
    for (int64_t at = 0; at < head_dim * static_cast<int64_t>(sizeof(Stored)); at += 64) {
      (void)key[at];
      (void)value[at];
    }
  }
}

// Attention of `count` tokens from `first` on, of row `row`, with KV head `kv`.
template <class Dot, class X, class Stored>
void attend_tile(const Attention& a, const X* q, const Stored* k_pages, const Stored* v_pages, X* out, int64_t row,
                 int64_t first, int64_t count, int64_t kv) {
  static thread_local Scratch query_scratch, sum_scratch, score_scratch;
  int64_t group = a.heads / a.kv_heads, queries = count * group, head_dim = a.head_dim;
  int64_t stride = round_up(head_dim, Dot::kStep);
  auto* prepared = query_scratch.get<typename Dot::Prepared>(queries * stride);
  float* sum = sum_scratch.get<float>(queries * head_dim);
  float* scores = score_scratch.get<float>(queries * (kBlock + 2));
  Softmax* softmax = reinterpret_cast<Softmax*>(scores + queries * kBlock);
  std::memset(prepared, 0, queries * stride * sizeof(*prepared));
  std::memset(sum, 0, queries * head_dim * sizeof(float));
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  for (int64_t m = 0; m < queries; ++m) {
    int64_t head = kv * group + m % group;
    Dot::prepare(q + ((first + m / group) * a.heads + head) * head_dim, prepared + m * stride, head_dim);
    bool sink = a.sinks != nullptr;
    softmax[m].highest = sink ? std::max(a.sinks[head], kLowest) : kLowest;
    softmax[m].total = sink && a.sinks[head] > -std::numeric_limits<float>::infinity() ? 1.0f : 0.0f;
  }
  // Position of the tile's first token, and the keys that some query of it sees.
  int64_t position = a.seq_lens[row] - a.query_start_loc[row + 1] + first;
  int64_t end = position + count;
  int64_t begin = a.window == 0 ? 0 : std::max<int64_t>(0, position - a.window + 1);
  const int32_t* table = a.page_tables + row * a.pages_per_row;
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    int from = static_cast<int>(std::max(begin, block) - block);
    int to = static_cast<int>(std::min(end, block + kBlock) - block);
    const Stored *keys[kBlock], *values[kBlock];
    int64_t page = (block + from) / a.page_size, offset = (block + from) % a.page_size;
    for (int i = from; i < to;) {
      int64_t place = ((clamp(table[page], 0, a.num_pages - 1) * a.kv_heads + kv) * a.page_size + offset) * head_dim;
      for (; i < to && offset < a.page_size; ++i, ++offset, place += head_dim) {
        keys[i] = k_pages + place;
        values[i] = v_pages + place;
      }
      ++page;
      offset = 0;
    }
    fetch(keys, values, from, to, head_dim);
    // Keys are read in aligned fours; the scores of what is too much are not used.
    int first_key = from / 4 * 4;
    for (int i = first_key; i < from; ++i) keys[i] = keys[from];
    for (int i = to; i % 4 != 0; ++i) keys[i] = keys[to - 1];
    for (int64_t m = 0; m < queries; m += kTileRows) {
      int some = static_cast<int>(std::min<int64_t>(kTileRows, queries - m));
      for (int i = first_key; i < to; i += 4) {
        __m128 four[kTileRows];
        dot_rows<Dot>(some, prepared + m * stride, stride, keys + i, Span{0, head_dim, true, true}, Ahead{0, 0, 0}, nullptr, four);
        for (int r = 0; r < some; ++r) _mm_storeu_ps(scores + (m + r) * kBlock + i, four[r]);
      }
    }
    for (int64_t m = 0; m < queries; ++m) {
      int64_t at = position + m / group;
      int seen_to = static_cast<int>(clamp(at + 1 - block, 0, kBlock));
      int seen_from = a.window == 0 ? 0 : static_cast<int>(clamp(at + 1 - a.window - block, 0, kBlock));
      float keep = softmax[m].fold(scores + m * kBlock, seen_from, seen_to, a.scale, a.soft_cap);
      if (keep != 1.0f) {
        for (int64_t h = 0; h < head_dim; h += kLanes) {
          jaxinfer::store(sum + m * head_dim + h, mul(load(sum + m * head_dim + h), all(keep)));
        }
      }
    }
    weigh<Stored>(scores, values, from, to, queries, sum, head_dim);
  }
  for (int64_t m = 0; m < queries; ++m) {
    float total = softmax[m].total > 0 || std::isnan(softmax[m].total) ? softmax[m].total : 1.0f;
    write_out(sum + m * head_dim, total, out + ((first + m / group) * a.heads + kv * group + m % group) * head_dim,
              head_dim);
  }
}

inline void copy_vector(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }
inline void copy_vector(const bf16* from, bf16* to, int64_t count) { std::memcpy(to, from, count * sizeof(bf16)); }

// q (T, N, H), k and v (T, K, H), pages (P, K, page_size, H), out (T, N, H): zero for padding tokens.
template <class Dot, class X>
void paged_attention(ThreadPool& pool, const Attention& a, const X* q, const X* k, const X* v, X* k_pages, X* v_pages,
                     X* out) {
  int64_t real = clamp(a.query_start_loc[a.rows], 0, a.tokens), slots = a.num_pages * a.page_size;
  for (int64_t t = 0; t < real; ++t) {
    int64_t slot = a.slot_mapping[t];
    if (slot < 0 || slot >= slots) continue;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      int64_t place = ((slot / a.page_size * a.kv_heads + head) * a.page_size + slot % a.page_size) * a.head_dim;
      copy_vector(k + (t * a.kv_heads + head) * a.head_dim, k_pages + place, a.head_dim);
      copy_vector(v + (t * a.kv_heads + head) * a.head_dim, v_pages + place, a.head_dim);
    }
  }
  struct Tile { int32_t row, first, count; };
  static thread_local std::vector<Tile> tiles;
  tiles.clear();
  int64_t most = std::max<int64_t>(1, kTileQueries / (a.heads / a.kv_heads));
  for (int64_t row = 0; row < a.rows; ++row) {
    int64_t begin = clamp(a.query_start_loc[row], 0, real), end = clamp(a.query_start_loc[row + 1], begin, real);
    for (int64_t first = begin; first < end; first += most) {
      tiles.push_back({static_cast<int32_t>(row), static_cast<int32_t>(first), static_cast<int32_t>(std::min(most, end - first))});
    }
  }
  const std::vector<Tile>& work = tiles;
  pool.run(static_cast<int64_t>(work.size()) * a.kv_heads, [&](int64_t i) {
    const Tile& tile = work[work.size() - 1 - i / a.kv_heads];  // a long prompt's last tiles take longest
    attend_tile<Dot>(a, q, k_pages, v_pages, out, tile.row, tile.first, tile.count, i % a.kv_heads);
  });
  std::memset(out + real * a.heads * a.head_dim, 0, (a.tokens - real) * a.heads * a.head_dim * sizeof(X));
}

}  // namespace jaxinfer
