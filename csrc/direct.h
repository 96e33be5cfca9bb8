// What stays the same from step to step, at an address; and checks that ctypes calls with Python's
// lists of tensors. For decoding, where what torch does around an operation, for each of its
// arguments, takes longer than the operation.
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

constexpr int32_t done = 0;
constexpr int32_t refused = 1;

// What is thrown must not leave C; the caller asks torch for the same, which says what is wrong.
template <class Run>
int32_t refuse_exceptions(const Run& run) {
  try {
    run();
    return done;
  } catch (const std::exception&) {
    return refused;
  }
}

// The `inputs` are null where only outputs are looked at.
template <void (*run)(const Checks&, int32_t)>
int32_t check_at(const Ft2Checks& each, const Ft2Exchange& exchange, void* outputs, void* inputs) {
  return refuse_exceptions([&] {
    Checks checks;
    checks.format = static_cast<Format>(each.format);
    checks.flags = each.flags;
    checks.flag_count = each.flag_count;
    checks.roundoffs = each.roundoffs;
    checks.all.reserve(each.count);
    const ListedTensors put_out(exchange, outputs, checks.format, each.device);
    const ListedTensors given(exchange, inputs, checks.format, each.device);
    const uint32_t tokens = put_out.vectors(0, each.layers[0].columns);
    require(tokens > 0 && shares_evenly(tokens, each.flag_count),
            "the tokens of an output must be a multiple of the flags");
    for (uint32_t index = 0; index < each.count; ++index) {
      const Ft2Layer& layer = each.layers[index];
      Check check{put_out.matrix(index, tokens, layer.columns), {}, layer.against, layer.parts};
      if (inputs != nullptr) {
        check.input = given.matrix(index, tokens, layer.inputs);
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

FT2_EXPORT int32_t ft2_check_bounds(const Ft2Checks* each, const Ft2Exchange* exchange,
                                    void* outputs) {
  return ft2::check_at<ft2::check_bounds>(*each, *exchange, outputs, nullptr);
}

FT2_EXPORT int32_t ft2_check_products(const Ft2Checks* each, const Ft2Exchange* exchange,
                                      void* outputs, void* inputs) {
  return ft2::check_at<ft2::check_products>(*each, *exchange, outputs, inputs);
}
