// The gate of an MLP: activation(gate) times up, of which the first is rounded before it meets the second.
#pragma once

#include "attention.h"

namespace jaxinfer {

// x times the logistic function of z. e^-|z| cannot overflow; NaN stays.
inline Floats times_logistic(Floats x, Floats z) {
  Floats e = exponential(sub(zero(), magnitude(z)));
  return div(mul(x, pick_negative(z, e, all(1.0f))), add(all(1.0f), e));
}

struct Silu {
  static Floats apply(Floats x) { return times_logistic(x, x); }
};

// x / 2 * (1 + tanh(u)) is x times the logistic function of 2 u.
struct GeluTanh {
  static Floats apply(Floats x) {
    Floats cube = mul(mul(x, x), x);
    return times_logistic(x, mul(all(1.5957691216f), multiply_add(all(0.044715f), cube, x)));  // 2 sqrt(2 / pi)
  }
};

// gate_up (T, 2, F), out (T, F): `count` real rows, the others zero. F is a multiple of the lanes.
template <class Activation, class X>
void gate(ThreadPool& pool, const X* gate_up, X* out, int64_t rows, int64_t count, int64_t width) {
  int64_t together = std::max<int64_t>(1, 8192 / width);  // rows: a few microseconds of work
  pool.run((count + together - 1) / together, [&](int64_t part) {
    for (int64_t t = part * together; t < std::min(count, (part + 1) * together); ++t) {
      const X *gates = gate_up + 2 * t * width, *ups = gates + width;
      for (int64_t i = 0; i < width; i += kLanes) {
        Floats activated = rounded_like(gates, Activation::apply(load_wide(gates + i)));
        store_like(out + t * width + i, mul(activated, load_wide(ups + i)));
      }
    }
  });
  std::memset(out + count * width, 0, (rows - count) * width * sizeof(X));
}

}  // namespace jaxinfer
