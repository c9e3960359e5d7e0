// Products of activations with the weights of one layer of several: y[t, o] = sum over i of x[t, i] * w[o, i]; or of groups
// of rows, each with the weight of its expert.
//
// T rows of which the first `count` are real, O outputs, I inputs. Weights are read once whatever T is; where rows are few
// that is what takes the time. Rows are cut into tiles of a few, outputs into parts that fit a core's cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dots.h"
#include "rounding.h"
#include "threads.h"

namespace jaxinfer {

constexpr int64_t kPartBytes = 64 << 10;  // of weights: leaves room for activations in a core's second cache
constexpr int64_t kPartOutputs = 64;
constexpr int64_t kFewestOutputs = 16;  // so often each of many activations is used when it comes from a far cache
constexpr int64_t kFewTiles = 4;
constexpr int64_t kSpanBytes = 2 << 10;  // of a row of activations: a tile of them and four rows of weights are 20 KB

inline int64_t clamp(int64_t value, int64_t low, int64_t high) { return std::min(std::max(value, low), high); }

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows of whole steps, and one more: with a power of two all rows would share the same few places of the cache.
inline int64_t padded_stride(int64_t inputs, int64_t step) { return round_up(inputs, step) + step; }

// Memory that a thread keeps between calls, aligned for whole vectors.
class Scratch {
 public:
  template <class T>
  T* get(int64_t count) {
    int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    if (bytes > size_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(64, bytes);
      size_ = bytes;
    }
    return static_cast<T*>(memory_);
  }
  ~Scratch() { std::free(memory_); }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

template <class Dot, class Lanes4>
inline void dot_rows(int rows, const typename Dot::Prepared* x, int64_t x_stride,
                     const typename Dot::Weight* const w[4], const Span& span, const Ahead& ahead, typename Dot::Sum* kept, Lanes4* out) {
  switch (rows) {
    case 1: return dot_tile<Dot, 1>(x, x_stride, w, span, ahead, kept, out);
    case 2: return dot_tile<Dot, 2>(x, x_stride, w, span, ahead, kept, out);
#if defined(__AVX512F__)
    case 3: return dot_tile<Dot, 3>(x, x_stride, w, span, ahead, kept, out);
    case 4: return dot_tile<Dot, 4>(x, x_stride, w, span, ahead, kept, out);
    case 5: return dot_tile<Dot, 5>(x, x_stride, w, span, ahead, kept, out);
    case 6: return dot_tile<Dot, 6>(x, x_stride, w, span, ahead, kept, out);
#endif
  }
}

// Rows first_row to first_row + rows - 1 of x, which are multiplied by one of several weights (O, I): w.
template <class Weight>
struct Group {
  const Weight* w;
  int64_t first_row, rows, index;  // index: which of the weights
};

// How outputs are cut for products of at most `rows` rows.
template <class Dot>
int64_t outputs_of_a_part(int64_t rows, int64_t outputs, int64_t inputs, int64_t threads) {
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  int64_t row_bytes = inputs * sizeof(typename Dot::Weight);
  int64_t part = std::clamp<int64_t>(kPartBytes / row_bytes / 4 * 4, tiles > kFewTiles ? kFewestOutputs : 4, kPartOutputs);
  return std::min(part, std::max<int64_t>(4, round_up(outputs / (4 * threads), 4)));
}

// Outputs `begin` to `end` - 1 of one group. Runs `store(group, first row, rows, output, sums)` for every tile: four sums
// a row (the last four may reach past the outputs).
template <class Dot, class Lanes4, class Store>
void matmul_part(const typename Dot::Prepared* all, int64_t x_stride, const Group<typename Dot::Weight>& group,
                 int64_t begin, int64_t end, int64_t outputs, int64_t inputs, const Store& store) {
  int64_t rows = group.rows;
  const typename Dot::Prepared* x = all + group.first_row * x_stride;
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  int64_t tile = (rows + tiles - 1) / tiles;  // rows a tile, evenly
  // Several tiles are summed over spans of inputs that stay in the first cache.
  constexpr int64_t kSpan = kSpanBytes / sizeof(typename Dot::Prepared) / Dot::kStep * Dot::kStep;
  int64_t span_inputs = inputs > 3 * kSpan / 2 ? kSpan : inputs;
  // Sums over the spans so far, of four outputs and all tiles where these are few, else of the part and one tile.
  typename Dot::Sum kept[kPartOutputs * kTileRows];
  auto sum_four = [&](int64_t first, int64_t o, const Span& span, const Ahead& ahead, typename Dot::Sum* unfinished) {
    int count = static_cast<int>(std::min(tile, rows - first));
    const typename Dot::Weight* four[4];
    for (int c = 0; c < 4; ++c) four[c] = group.w + std::min(o + c, outputs - 1) * inputs;
    Lanes4 sum[kTileRows];
    dot_rows<Dot>(count, x + first * x_stride, x_stride, four, span, ahead, unfinished, sum);
    if (span.last) store(group, group.first_row + first, count, o, sum);
  };
  if (tiles <= kFewTiles) {
    // The weights' way from memory takes longest: four rows of them meet all activations, while the next ones come.
    int shift = tiles < 2 ? 0 : tiles < 4 ? 1 : 2;  // 2^shift tiles fetch their share of them
    for (int64_t o = begin; o < end; o += 4) {
      int64_t distance = o + 8 <= outputs ? 4 * inputs : 0;
      const int64_t length = tiles < 2 ? inputs : span_inputs;
      for (int64_t from = 0; from < inputs; from += length) {
        Span span{from, std::min(from + length, inputs), from == 0, from + length >= inputs};
        for (int64_t first = 0; first < rows; first += tile) {
          int64_t index = first / tile;
          Ahead ahead{index >> shift == 0 ? distance : 0, (index * inputs) >> shift, shift};
          sum_four(first, o, span, ahead, kept + index * 4 * kTileRows);
        }
      }
    }
    return;
  }
  for (int64_t first = 0; first < rows; first += tile) {
    for (int64_t from = 0; from < inputs; from += span_inputs) {
      Span span{from, std::min(from + span_inputs, inputs), from == 0, from + span_inputs >= inputs};
      for (int64_t o = begin; o < end; o += 4) sum_four(first, o, span, {0, 0, 0}, kept + (o - begin) * kTileRows);
    }
  }
}

// Groups that have rows, each by its weight; see `matmul_part` for `store`.
template <class Dot, class Lanes4, class Store>
void matmul(ThreadPool& pool, const typename Dot::Prepared* x, int64_t x_stride,
            const Group<typename Dot::Weight>* groups, int64_t count, int64_t outputs, int64_t inputs,
            const Store& store) {
  int64_t most = 0;
  for (int64_t g = 0; g < count; ++g) most = std::max(most, groups[g].rows);
  if (most == 0) return;
  int64_t part = outputs_of_a_part<Dot>(most, outputs, inputs, pool.size());
  int64_t parts = (outputs + part - 1) / part;
  pool.run(count * parts, [&](int64_t item) {
    int64_t begin = item % parts * part;
    matmul_part<Dot, Lanes4>(x, x_stride, groups[item / parts], begin, std::min(begin + part, outputs), outputs, inputs,
                             store);
  });
}

inline void store4(float* y, int64_t output, int64_t outputs, __m128 values) {
  if (output + 4 <= outputs) { _mm_storeu_ps(y + output, values); return; }
  alignas(16) float four[4];
  _mm_store_ps(four, values);
  std::memcpy(y + output, four, (outputs - output) * sizeof(float));
}

// Calls `use(prepared, stride)` with `count` rows of activations as the product wants them.
template <class Dot, class X, class Use>
void with_prepared(ThreadPool& pool, const X* x, int64_t count, int64_t inputs, const Use& use) {
  static thread_local Scratch scratch;
  int64_t stride = padded_stride(inputs, Dot::kStep);
  typename Dot::Prepared* prepared = scratch.get<typename Dot::Prepared>(count * stride);
  pool.run(count > 8 ? count : 1, [&](int64_t part) {
    for (int64_t t = count > 8 ? part : 0; t < (count > 8 ? part + 1 : count); ++t) {
      std::memset(prepared + t * stride, 0, stride * sizeof(*prepared));
      Dot::prepare(x + t * inputs, prepared + t * stride, inputs);
    }
  });
  use(prepared, stride);
}

// Weights of floats, x of the same type: y float32. groups: of the first `count` rows of `rows`, which are real.
template <class Dot, class X>
void float_matmul(ThreadPool& pool, const X* x, const Group<typename Dot::Weight>* groups, int64_t num_groups, float* y,
                  int64_t rows, int64_t count, int64_t outputs, int64_t inputs) {
  auto store = [&](const auto&, int64_t row, int tile, int64_t output, const __m128* sum) {
    for (int r = 0; r < tile; ++r) store4(y + (row + r) * outputs, output, outputs, sum[r]);
  };
  with_prepared<Dot>(pool, x, count, inputs, [&](const typename Dot::Prepared* prepared, int64_t stride) {
    matmul<Dot, __m128>(pool, prepared, stride, groups, num_groups, outputs, inputs, store);
  });
  std::memset(y + count * outputs, 0, (rows - count) * outputs * sizeof(float));
}

inline __m128 load4(const float* from, int64_t output, int64_t outputs) {
  if (output + 4 <= outputs) return _mm_loadu_ps(from + output);
  alignas(16) float four[4] = {};
  std::memcpy(four, from + output, (outputs - output) * sizeof(float));
  return _mm_load_ps(four);
}

// One row of activations rounded to int8, its largest magnitude becoming 127, in the steps of `qtensor.quantize`; NaN and
// infinity give a scale that is neither finite. Returns the scale, and the sum of the rounded numbers in `total`.
template <class X>
float round_row(const X* x, int8_t* to, int64_t inputs, int32_t* total) {
  float largest = largest_magnitude(x, inputs);
  constexpr float kTiny = 1.17549435e-38f;
  float scale = largest * static_cast<float>(1 / 127.0);
  float inverse = scale >= kTiny ? 1.0f / scale : 0.0f;
  int32_t sum = 0;
  int64_t i = 0;
  Ints sum_of_lanes = zero_ints();
  for (; i + kLanes <= inputs; i += kLanes) {
    Ints rounded = round_to_ints(load_wide(x + i), inverse);
    sum_of_lanes = add_ints(sum_of_lanes, rounded);
    store_bytes(to + i, rounded);
  }
  for (; i < inputs; ++i) {
    float scaled = std::min(std::max(to_float(x[i]) * inverse, -127.0f), 127.0f);
    to[i] = static_cast<int8_t>(std::nearbyint(scaled));
    sum += to[i];
  }
  *total = sum + sum_ints(sum_of_lanes);
  return scale;
}

// Weights int8 with a scale for each output, those of a group's weight from its index * outputs on; x is rounded to int8
// row by row. y float32. groups, count: as in `float_matmul`.
template <class X>
void int8_matmul(ThreadPool& pool, const X* x, const Group<int8_t>* groups, int64_t num_groups, const float* scales,
                 float* y, int64_t rows, int64_t count, int64_t outputs, int64_t inputs) {
  static thread_local Scratch scratch, row_scratch;
  int64_t stride = padded_stride(inputs, Int8Dot::kStep);
  int8_t* prepared = scratch.get<int8_t>(count * stride);
  float* row_scales = row_scratch.get<float>(2 * count);
  int32_t* totals = reinterpret_cast<int32_t*>(row_scales + count);
  int64_t together = std::max<int64_t>(1, 8192 / inputs);
  pool.run((count + together - 1) / together, [&](int64_t part) {
    for (int64_t t = part * together; t < std::min(count, (part + 1) * together); ++t) {
      std::memset(prepared + t * stride, 0, stride);
      row_scales[t] = round_row(x + t * inputs, prepared + t * stride, inputs, &totals[t]);
    }
  });
  auto store = [&](const Group<int8_t>& group, int64_t row, int tile, int64_t output, const __m128i* sum) {
    __m128 of_outputs = load4(scales + group.index * outputs, output, outputs);
    for (int r = 0; r < tile; ++r) {
      __m128i exact = _mm_sub_epi32(sum[r], _mm_set1_epi32(Int8Dot::kShift * totals[row + r]));
      __m128 scaled = _mm_mul_ps(_mm_mul_ps(_mm_cvtepi32_ps(exact), _mm_set1_ps(row_scales[row + r])), of_outputs);
      store4(y + (row + r) * outputs, output, outputs, scaled);
    }
  };
  matmul<Int8Dot, __m128i>(pool, prepared, stride, groups, num_groups, outputs, inputs, store);
  std::memset(y + count * outputs, 0, (rows - count) * outputs * sizeof(float));
}

}  // namespace jaxinfer
