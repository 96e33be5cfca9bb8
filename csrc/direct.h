// What stays the same from step to step, at an address; and calls that Python makes with tensors
// past torch. For decoding, where what torch does around an operation, for each of its arguments,
// takes several times as long as the operation.
#pragma once

#include <exception>

#include "exchange.h"

extern "C" {

// ft2/native/direct.py declares the same.
struct Ft2Restriction {
  float* bounds;           // (2, requests), lower ones first.
  int64_t* corrected;      // (requests,)
  const uint8_t* counted;  // bool (requests,), or null.
  uint32_t requests;
  int32_t device;
};

struct Ft2Layer {
  const float* against;  // Bounds, (2, parts); or sums of weights, (parts, inputs + 1).
  uint32_t columns;
  uint32_t inputs;
  uint32_t parts;
};

struct Ft2Checks {
  const Ft2Layer* layers;
  uint8_t* flags;
  double roundoffs;
  uint32_t count;
  uint32_t flag_count;
  int32_t format;
  int32_t device;
};

}  // extern "C"

namespace ft2 {

inline Ft2Exchange used_exchange{};

// A builtin function of Python's: whether it was done. What is thrown, or raised in Python, must not
// leave C; the caller asks torch for the same, which says what is wrong.
template <class Run>
void* whether_done(const Run& run) {
  try {
    run();
    return used_exchange.boolean(true);
  } catch (const std::exception&) {
    used_exchange.forget_error();
    return used_exchange.boolean(false);
  }
}

template <class Described>
const Described& described_at(void* number) {
  const void* const address = used_exchange.address(number);
  require(address != nullptr, "there is nothing at this address");
  return *static_cast<const Described*>(address);
}

// Restricts or records, with all but the values as it stands at an address.
template <void (*run)(const Restriction&, int32_t)>
void run_at(const Ft2Restriction& each, const TokenVectors& values, Format format,
            int32_t device) {
  require(device == each.device, "all tensors must be on one device");
  require(shares_evenly(values.count, each.requests),
          "the tokens must be a multiple of the requests");
  Restriction call{};
  call.format = format;
  call.values = values;
  call.bounds = each.bounds;
  call.bounds_parts = call.corrected_parts = each.requests;
  call.corrected = each.corrected;
  call.marks = {each.counted, each.requests, 1, 1, 0};
  if (values.count > 0 && values.columns > 0) {
    run(call, device);
  }
}

inline TokenVectors token_vectors(const DLTensor& tensor) {
  const int64_t elements = adjacent_elements(tensor);
  require(tensor.dimensions > 0, "values must have a dimension");
  TokenVectors vectors{};
  vectors.data = tensor.data;
  vectors.columns = vectors.inner_stride = tensor.sizes[tensor.dimensions - 1];
  vectors.column_stride = 1;
  vectors.count = vectors.inner = small(elements > 0 ? elements / vectors.columns : 0);
  return vectors;
}

// The most values for which a CPU holds the interpreter's lock: some tenths of a millisecond.
constexpr int64_t most_values = 1 << 20;

// With a tensor and the address of a Ft2Restriction.
template <void (*run)(const Restriction&, int32_t)>
void* builtin_at(void* const* arguments, ptrdiff_t count) {
  return whether_done([&] {
    require(count == 2, "a tensor and an address are needed");
    const DLTensor output = describe(used_exchange, arguments[0]);
    const auto& each = described_at<Ft2Restriction>(arguments[1]);
    const TokenVectors values = token_vectors(output);
    const int32_t device = device_of(output);
    require(device >= 0 || values.count * values.columns <= most_values,
            "so many values are left to a call that others need not wait for");
    run_at<run>(each, values, format_of(output), device);
  });
}

// With the address of Ft2Checks, a list of outputs and, where these are looked at, one of inputs.
template <void (*run)(const Checks&, int32_t), bool with_inputs>
void* builtin_check(void* const* arguments, ptrdiff_t count) {
  return whether_done([&] {
    require(count == (with_inputs ? 3 : 2), "an address and lists of tensors are needed");
    const auto& each = described_at<Ft2Checks>(arguments[0]);
    Checks checks;
    checks.format = static_cast<Format>(each.format);
    checks.flags = each.flags;
    checks.flag_count = each.flag_count;
    checks.roundoffs = each.roundoffs;
    checks.all.reserve(each.count);
    const ListedTensors outputs(used_exchange, arguments[1], checks.format, each.device);
    const uint32_t tokens = outputs.vectors(0, each.layers[0].columns);
    require(tokens > 0 && shares_evenly(tokens, each.flag_count),
            "the tokens of an output must be a multiple of the flags");
    for (uint32_t index = 0; index < each.count; ++index) {
      const Ft2Layer& layer = each.layers[index];
      Check check{outputs.matrix(index, tokens, layer.columns), {}, layer.against, layer.parts};
      if constexpr (with_inputs) {
        const ListedTensors inputs(used_exchange, arguments[2], checks.format, each.device);
        check.input = inputs.matrix(index, tokens, layer.inputs);
      } else {
        require(shares_evenly(tokens, layer.parts),
                "the tokens of an output must be a multiple of the requests");
      }
      checks.all.push_back(check);
    }
    run(checks, each.device);
  });
}

}  // namespace ft2

#define FT2_EXPORT extern "C" __attribute__((visibility("default")))

// To be called before all that follow.
FT2_EXPORT void ft2_use_exchange(const Ft2Exchange* exchange) { ft2::used_exchange = *exchange; }

FT2_EXPORT void* ft2_restrict(void*, void* const* arguments, ptrdiff_t count) {
  return ft2::builtin_at<ft2::restrict_values>(arguments, count);
}

FT2_EXPORT void* ft2_record(void*, void* const* arguments, ptrdiff_t count) {
  return ft2::builtin_at<ft2::record_values>(arguments, count);
}

FT2_EXPORT void* ft2_check_bounds(void*, void* const* arguments, ptrdiff_t count) {
  return ft2::builtin_check<ft2::check_bounds, false>(arguments, count);
}

FT2_EXPORT void* ft2_check_products(void*, void* const* arguments, ptrdiff_t count) {
  return ft2::builtin_check<ft2::check_products, true>(arguments, count);
}
