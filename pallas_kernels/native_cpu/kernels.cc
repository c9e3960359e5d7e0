// The calls that XLA makes: checks of what they are given, and the choice of a kernel by type.
#include <cstdlib>
#include <string>

#include "gating.h"
#include "mxfp4.h"
#include "norm.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using namespace jaxinfer;

namespace {

ThreadPool* pool = nullptr;

ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument(message); }

// Which rows of x (T, I) meet which weight (O, I); rows from `real` on meet none.
struct Rows {
  int64_t all, real, outputs, inputs;
  std::vector<int64_t> sizes;  // of each weight's group, in the order of the rows

  // All real ones meet the only weight.
  static Rows together(const ffi::AnyBuffer& x, int64_t count, int64_t outputs) {
    int64_t real = clamp(count, 0, x.dimensions()[0]);
    return {x.dimensions()[0], real, outputs, x.dimensions()[1], {real}};
  }

  // Sizes that are negative, or more than there are rows, are cut.
  static Rows by_expert(const ffi::AnyBuffer& x, const ffi::Buffer<ffi::S32>& group_sizes, int64_t outputs) {
    Rows rows{x.dimensions()[0], 0, outputs, x.dimensions()[1], {}};
    for (size_t e = 0; e < group_sizes.element_count(); ++e) {
      rows.sizes.push_back(clamp(group_sizes.typed_data()[e], 0, rows.all - rows.real));
      rows.real += rows.sizes.back();
    }
    return rows;
  }

  // Those that have rows. w: all weights, one behind the other, with so many elements for an output.
  template <class Weight>
  std::vector<Group<Weight>> groups(const Weight* w, int64_t of_output) const {
    std::vector<Group<Weight>> found;
    int64_t first = 0;
    for (int64_t e = 0; e < static_cast<int64_t>(sizes.size()); first += sizes[e++]) {
      if (sizes[e] > 0) found.push_back({w + e * outputs * of_output, first, sizes[e], e});
    }
    return found;
  }
};

template <class Dot, class X>
void dense(const ffi::AnyBuffer& x, const void* w, const Rows& rows, float* y) {
  using Weight = typename Dot::Weight;
  auto groups = rows.groups(static_cast<const Weight*>(w), rows.inputs);
  float_matmul<Dot>(*pool, static_cast<const X*>(x.untyped_data()), groups.data(), groups.size(), y, rows.all,
                    rows.real, rows.outputs, rows.inputs);
}

ffi::Error any_dense(const ffi::AnyBuffer& x, const ffi::AnyBuffer& w, const Rows& rows, float* y) {
  if (w.element_type() == ffi::BF16 && x.element_type() == ffi::BF16) {
    dense<Bf16Dot, bf16>(x, w.untyped_data(), rows, y);
  } else if (w.element_type() == ffi::F32 && x.element_type() == ffi::F32) {
    dense<Float32Dot, float>(x, w.untyped_data(), rows, y);
  } else {
    return invalid("x and weight must both be float32 or both bfloat16");
  }
  return ffi::Error::Success();
}

ffi::Error any_int8(const ffi::AnyBuffer& x, const int8_t* w, const float* scales, const Rows& rows, float* y) {
  auto groups = rows.groups(w, rows.inputs);
  if (x.element_type() == ffi::BF16) {
    int8_matmul(*pool, static_cast<const bf16*>(x.untyped_data()), groups.data(), groups.size(), scales, y, rows.all,
                rows.real, rows.outputs, rows.inputs);
  } else if (x.element_type() == ffi::F32) {
    int8_matmul(*pool, static_cast<const float*>(x.untyped_data()), groups.data(), groups.size(), scales, y, rows.all,
                rows.real, rows.outputs, rows.inputs);
  } else {
    return invalid("x must be float32 or bfloat16");
  }
  return ffi::Error::Success();
}

ffi::Error any_mxfp4(const ffi::AnyBuffer& x, const uint8_t* w, const uint8_t* scales, const Rows& rows, float* y) {
  if (rows.inputs % kMxBlock != 0) return invalid("the inputs must be a multiple of 32");
  auto groups = rows.groups(w, rows.inputs / 2);
  if (x.element_type() == ffi::BF16) {
    microscaled_matmul<Bf16Dot>(*pool, static_cast<const bf16*>(x.untyped_data()), groups.data(), groups.size(), scales,
                                y, rows.all, rows.real, rows.outputs, rows.inputs);
  } else if (x.element_type() == ffi::F32) {
    microscaled_matmul<Float32Dot>(*pool, static_cast<const float*>(x.untyped_data()), groups.data(), groups.size(),
                                   scales, y, rows.all, rows.real, rows.outputs, rows.inputs);
  } else {
    return invalid("x must be float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// Which of the layers, of `count`, is chosen.
int64_t chosen(const ffi::Buffer<ffi::S32>& layer, size_t count) {
  return clamp(*layer.typed_data(), 0, static_cast<int64_t>(count) - 1);
}

ffi::Error dense_of_layer(const ffi::AnyBuffer& x, const ffi::Buffer<ffi::S32>& layer, const ffi::RemainingArgs& weights,
                          const Rows& rows, float* y) {
  ffi::ErrorOr<ffi::AnyBuffer> w = weights.get<ffi::AnyBuffer>(chosen(layer, weights.size()));
  if (!w.has_value()) return w.error();
  return any_dense(x, *w, rows, y);
}

// parts: values of all layers, then scales of all layers. product: `any_int8` or `any_mxfp4`.
template <ffi::DataType Values, ffi::DataType Scales, class Product>
ffi::Error quantized_of_layer(const ffi::AnyBuffer& x, const ffi::Buffer<ffi::S32>& layer,
                              const ffi::RemainingArgs& parts, const Rows& rows, float* y, const Product& product) {
  size_t layers = parts.size() / 2;
  int64_t index = chosen(layer, layers);
  ffi::ErrorOr<ffi::Buffer<Values>> w = parts.get<ffi::Buffer<Values>>(index);
  ffi::ErrorOr<ffi::Buffer<Scales>> scales = parts.get<ffi::Buffer<Scales>>(layers + index);
  if (!w.has_value()) return w.error();
  if (!scales.has_value()) return scales.error();
  return product(x, w->typed_data(), scales->typed_data(), rows, y);
}

// x (T, I), layer (), count () int32, then the weights (O, I) of each layer: y (T, O) float32.
ffi::Error dense_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> count,
                        ffi::RemainingArgs weights, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::together(x, *count.typed_data(), y->dimensions()[1]);
  return dense_of_layer(x, layer, weights, rows, y->typed_data());
}

// The same with values (O, I) int8 of each layer, then scales (O,) float32 of each.
ffi::Error quantized_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> count,
                            ffi::RemainingArgs parts, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::together(x, *count.typed_data(), y->dimensions()[1]);
  return quantized_of_layer<ffi::S8, ffi::F32>(x, layer, parts, rows, y->typed_data(), any_int8);
}

// The same with values (O, I / 2) and scales (O, I / 32) uint8.
ffi::Error mxfp4_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> count,
                        ffi::RemainingArgs parts, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::together(x, *count.typed_data(), y->dimensions()[1]);
  return quantized_of_layer<ffi::U8, ffi::U8>(x, layer, parts, rows, y->typed_data(), any_mxfp4);
}

// x (R, I), its rows sorted by expert; layer (), group_sizes (E,) int32, then the weights (E, O, I) of each layer: y (R, O).
ffi::Error grouped_dense_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> group_sizes,
                                ffi::RemainingArgs weights, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::by_expert(x, group_sizes, y->dimensions()[1]);
  return dense_of_layer(x, layer, weights, rows, y->typed_data());
}

// The same with values (E, O, I) int8 of each layer, then scales (E, O) float32 of each.
ffi::Error grouped_quantized_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> group_sizes,
                                    ffi::RemainingArgs parts, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::by_expert(x, group_sizes, y->dimensions()[1]);
  return quantized_of_layer<ffi::S8, ffi::F32>(x, layer, parts, rows, y->typed_data(), any_int8);
}

// The same with values (E, O, I / 2) and scales (E, O, I / 32) uint8.
ffi::Error grouped_mxfp4_matmul(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> group_sizes,
                                ffi::RemainingArgs parts, ffi::ResultBuffer<ffi::F32> y) {
  Rows rows = Rows::by_expert(x, group_sizes, y->dimensions()[1]);
  return quantized_of_layer<ffi::U8, ffi::U8>(x, layer, parts, rows, y->typed_data(), any_mxfp4);
}

// gate_up (T, 2, F), count () int32: out (T, F). kind 0: silu, 1: gelu with tanh.
template <class X>
void gate_rows(const void* gate_up, void* out, int64_t rows, int64_t count, int64_t width, int64_t kind) {
  auto* from = static_cast<const X*>(gate_up);
  auto* to = static_cast<X*>(out);
  if (kind == 0) gate<Silu>(*pool, from, to, rows, count, width);
  else gate<GeluTanh>(*pool, from, to, rows, count, width);
}

ffi::Error gating(ffi::AnyBuffer gate_up, ffi::Buffer<ffi::S32> count, ffi::Result<ffi::AnyBuffer> out, int64_t kind) {
  int64_t rows = out->dimensions()[0], width = out->dimensions()[1];
  int64_t real = clamp(*count.typed_data(), 0, rows);
  if (width % kLanes != 0) return invalid("the width must be a multiple of 16");
  if (gate_up.element_type() == ffi::BF16) {
    gate_rows<bf16>(gate_up.untyped_data(), out->untyped_data(), rows, real, width, kind);
  } else if (gate_up.element_type() == ffi::F32) {
    gate_rows<float>(gate_up.untyped_data(), out->untyped_data(), rows, real, width, kind);
  } else {
    return invalid("gate_up must be float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// x (R, D), weight (D,), count () int32: out (R, D).
ffi::Error norm(ffi::AnyBuffer x, ffi::AnyBuffer weight, ffi::Buffer<ffi::S32> count, ffi::Result<ffi::AnyBuffer> out,
                float eps, float offset, int64_t scale_float32) {
  int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  int64_t real = clamp(*count.typed_data(), 0, rows);
  Norm how{eps, offset, scale_float32 != 0};
  if (columns % kLanes != 0) return invalid("the columns must be a multiple of 16");
  if (x.element_type() == ffi::BF16 && weight.element_type() == ffi::BF16) {
    normalize(*pool, how, static_cast<const bf16*>(x.untyped_data()), static_cast<const bf16*>(weight.untyped_data()),
              static_cast<bf16*>(out->untyped_data()), rows, real, columns);
  } else if (x.element_type() == ffi::F32 && weight.element_type() == ffi::F32) {
    normalize(*pool, how, static_cast<const float*>(x.untyped_data()), static_cast<const float*>(weight.untyped_data()),
              static_cast<float*>(out->untyped_data()), rows, real, columns);
  } else {
    return invalid("x and weight must both be float32 or both bfloat16");
  }
  return ffi::Error::Success();
}

// See `Attention`. The pages come in and go out in the same memory. sinks: (N,), or (0,) for none.
ffi::Error attention(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer k_pages,
                     ffi::AnyBuffer v_pages, ffi::Buffer<ffi::S32> query_start_loc, ffi::Buffer<ffi::S32> seq_lens,
                     ffi::Buffer<ffi::S32> page_tables, ffi::Buffer<ffi::S32> slot_mapping,
                     ffi::Buffer<ffi::F32> sinks, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> k_out,
                     ffi::Result<ffi::AnyBuffer> v_out, float scale, int64_t window, float soft_cap) {
  if (k_out->untyped_data() != k_pages.untyped_data() || v_out->untyped_data() != v_pages.untyped_data()) {
    return invalid("the pages must be updated in place");
  }
  Attention a{q.dimensions()[0], seq_lens.dimensions()[0], q.dimensions()[1], k.dimensions()[1], q.dimensions()[2],
              k_pages.dimensions()[2], page_tables.dimensions()[1], k_pages.dimensions()[0],
              query_start_loc.typed_data(), seq_lens.typed_data(), page_tables.typed_data(), slot_mapping.typed_data(),
              sinks.element_count() == 0 ? nullptr : sinks.typed_data(), scale, soft_cap, window};
  if (q.element_type() == ffi::BF16 && k_pages.element_type() == ffi::U16) {
    paged_attention<Bf16Dot>(*pool, a, static_cast<const bf16*>(q.untyped_data()),
                             static_cast<const bf16*>(k.untyped_data()), static_cast<const bf16*>(v.untyped_data()),
                             static_cast<bf16*>(k_out->untyped_data()), static_cast<bf16*>(v_out->untyped_data()),
                             static_cast<bf16*>(out->untyped_data()));
  } else if (q.element_type() == ffi::F32 && k_pages.element_type() == ffi::F32) {
    paged_attention<Float32Dot>(*pool, a, static_cast<const float*>(q.untyped_data()),
                                static_cast<const float*>(k.untyped_data()), static_cast<const float*>(v.untyped_data()),
                                static_cast<float*>(k_out->untyped_data()), static_cast<float*>(v_out->untyped_data()),
                                static_cast<float*>(out->untyped_data()));
  } else {
    return invalid("queries and pages must both be float32, or bfloat16 in pages of uint16");
  }
  return ffi::Error::Success();
}

}  // namespace

// Called once, before any kernel.
extern "C" void jaxinfer_start(int threads) {
  if (pool == nullptr) pool = new ThreadPool(threads);
}

// What all products take: x, the layer, how its rows lie, and the weights' parts.
static auto of_product() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::Buffer<ffi::S32>>()
      .Arg<ffi::Buffer<ffi::S32>>()
      .RemainingArgs()
      .Ret<ffi::Buffer<ffi::F32>>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_dense_matmul, dense_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_quantized_matmul, quantized_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_mxfp4_matmul, mxfp4_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_grouped_dense_matmul, grouped_dense_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_grouped_quantized_matmul, grouped_quantized_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_grouped_mxfp4_matmul, grouped_mxfp4_matmul, of_product());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_paged_attention, attention,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("soft_cap"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_gating, gating,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("kind"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxinfer_norm, norm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps")
                                  .Attr<float>("offset")
                                  .Attr<int64_t>("scale_float32"));
