// Root mean square norm of rows.
#pragma once

#include "attention.h"

namespace jaxinfer {

struct Norm {
  float eps, offset;   // the weight is weight + offset
  bool scale_float32;  // one rounding, after the scale; else one before it as well
};

// The sum of squares, in an order that depends on the number of columns alone.
template <class X>
float sum_of_squares(const X* x, int64_t columns) {
  Floats sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0, turn = 0; i < columns; i += kLanes, ++turn) {
    Floats wide = load_wide(x + i);
    sum[turn % 4] = multiply_add(wide, wide, sum[turn % 4]);
  }
  Floats total = add(add(sum[0], sum[1]), add(sum[2], sum[3]));
  return _mm_cvtss_f32(sums(total, zero(), zero(), zero()));
}

// x and out (rows, columns), weight (columns,): `count` real rows, the others zero. Columns are a multiple of the lanes.
template <class X>
void normalize(ThreadPool& pool, const Norm& norm, const X* x, const X* weight, X* out, int64_t rows, int64_t count,
               int64_t columns) {
  int64_t together = std::max<int64_t>(1, 16384 / columns);  // rows: a few microseconds of work
  pool.run((count + together - 1) / together, [&](int64_t part) {
    for (int64_t t = part * together; t < std::min(count, (part + 1) * together); ++t) {
      const X* row = x + t * columns;
      float mean = sum_of_squares(row, columns) / static_cast<float>(columns);
      Floats factor = all(1.0f / std::sqrt(mean + norm.eps));
      for (int64_t i = 0; i < columns; i += kLanes) {
        Floats scaled = mul(load_wide(row + i), factor), w = load_wide(weight + i);
        if (norm.offset != 0) w = add(w, all(norm.offset));
        if (!norm.scale_float32) {
          scaled = rounded_like(row, scaled);
          w = rounded_like(row, w);
        }
        store_like(out + t * columns + i, mul(scaled, w));
      }
    }
  });
  std::memset(out + count * columns, 0, (rows - count) * columns * sizeof(X));
}

}  // namespace jaxinfer
