// The operations as torch sees them: schemas, checked calls, registration.
#pragma once

#include "direct.h"

namespace ft2 {

// The version whose conventions for arguments this file follows.
constexpr uint64_t torch_2_10 = (uint64_t{2} << 56) | (uint64_t{10} << 48);

// Calls with no values do nothing, and need not share evenly.
inline Restriction restriction(const Device& device, const Tensor& output, const Tensor& bounds,
                               const Tensor& corrected, const Tensor& counted) {
  device.require_holds(bounds);
  device.require_holds(corrected);
  require_float32(bounds);
  if (counted.given()) {
    device.require_holds(counted);
  }
  Restriction call{};
  call.corrected = counters(corrected);
  call.values = token_vectors(output);
  call.format = format_of(output);
  call.marks = marks(counted);
  if (call.values.count == 0 || call.values.columns == 0) {
    return call;
  }
  const int64_t numbers = bounds.elements();
  call.bounds_parts = small(numbers / 2);
  call.corrected_parts = small(corrected.elements());
  require(numbers % 2 == 0 && shares_evenly(call.values.count, call.bounds_parts),
          "bounds must be (2, n), and the tokens a multiple of n");
  require(shares_evenly(call.values.count, call.corrected_parts),
          "the tokens must be a multiple of the counters");
  require(!counted.given() || shares_evenly(call.values.count, call.marks.count),
          "the tokens must be a multiple of the marks");
  call.bounds = static_cast<float*>(bounds.mutable_data());
  return call;
}

template <void (*run)(const Restriction&, int32_t)>
void boxed_restriction(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor output(stack[0]), bounds(stack[1]), corrected(stack[2]);
  const Tensor counted = optional_tensor(stack[3]);
  const Device device(output);
  const Restriction call = restriction(device, output, bounds, corrected, counted);
  if (call.bounds != nullptr) {
    run(call, device.index);
  }
}

template <void (*run)(const Restriction&, int32_t)>
void boxed_restriction_at(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor output(stack[0]);
  const auto& each = *reinterpret_cast<const Ft2Restriction*>(stack[1]);
  run_at<run>(each, token_vectors(output), format_of(output), output.device_index());
}

// The outputs of a check and its flags; what to check against is added by the caller.
class CheckArguments {
 public:
  CheckArguments(const std::vector<Tensor>& outputs, const Tensor& flags, double roundoffs)
      : outputs_(outputs), device_(flags) {
    static const int32_t uint8 = aoti_torch_dtype_uint8();
    require(flags.type() == uint8 && flags.contiguous(), "flags must be contiguous uint8");
    checks.format = outputs.empty() ? Format::float32 : format_of(outputs[0]);
    checks.flags = static_cast<uint8_t*>(flags.mutable_data());
    checks.flag_count = small(flags.elements());
    checks.roundoffs = roundoffs;
    checks.all.reserve(outputs.size());
  }

  // Null if there is nothing to check. `groups` only has to divide the columns evenly.
  Check* add(size_t index) {
    const Tensor& output = outputs_[index];
    device_.require_holds(output);
    require(format_of(output) == checks.format, "outputs must be of one type");
    const Matrix values = matrix(output);
    if (values.count == 0 || values.columns == 0) {
      return nullptr;
    }
    require(shares_evenly(values.count, checks.flag_count),
            "the tokens of an output must be a multiple of the flags");
    checks.all.push_back(Check{values, {}, nullptr, 1});
    return &checks.all.back();
  }

  const float* float32_data(const Tensor& tensor) const {
    device_.require_holds(tensor);
    require_float32(tensor);
    return static_cast<const float*>(tensor.data());
  }

  void require_format(const Tensor& tensor) const {
    device_.require_holds(tensor);
    require(format_of(tensor) == checks.format, "inputs must be of the outputs' type");
  }

  int32_t device() const { return device_.index; }

  Checks checks;

 private:
  const std::vector<Tensor>& outputs_;
  Device device_;
};

inline void boxed_check_bounds(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList output_list(stack[0]);
  const Tensor bounds(stack[1]), flags(stack[2]);
  const std::vector<Tensor> outputs = output_list.take();
  CheckArguments arguments(outputs, flags, 0);
  const float* const each = arguments.float32_data(bounds);
  if (outputs.empty()) {
    return;
  }
  const int64_t parts = bounds.elements() / 2 / static_cast<int64_t>(outputs.size());
  require(bounds.elements() == 2 * parts * static_cast<int64_t>(outputs.size()),
          "bounds must be (outputs, 2, n)");
  for (size_t index = 0; index < outputs.size(); ++index) {
    if (Check* const check = arguments.add(index)) {
      check->against = each + 2 * parts * static_cast<int64_t>(index);
      check->parts = small(parts);
      require(shares_evenly(check->output.count, check->parts),
              "the tokens of an output must be a multiple of its bounds");
    }
  }
  check_bounds(arguments.checks, arguments.device());
}

inline void boxed_count_outside(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList output_list(stack[0]);
  const Tensor bounds(stack[1]), corrected(stack[2]);
  const Tensor counted = optional_tensor(stack[3]);
  const std::vector<Tensor> outputs = output_list.take();
  const Device device(corrected);
  device.require_holds(bounds);
  require_float32(bounds);
  if (counted.given()) {
    device.require_holds(counted);
  }
  Counts counts{};
  counts.corrected = counters(corrected);
  counts.corrected_parts = small(corrected.elements());
  counts.marks = marks(counted);
  if (outputs.empty()) {
    return;
  }
  counts.format = format_of(outputs[0]);
  const auto* const each = static_cast<const float*>(bounds.data());
  const int64_t parts = bounds.elements() / 2 / static_cast<int64_t>(outputs.size());
  require(bounds.elements() == 2 * parts * static_cast<int64_t>(outputs.size()),
          "bounds must be (outputs, 2, n)");
  for (size_t index = 0; index < outputs.size(); ++index) {
    device.require_holds(outputs[index]);
    require(format_of(outputs[index]) == counts.format, "outputs must be of one type");
    const Matrix values = matrix(outputs[index]);
    if (values.count == 0 || values.columns == 0) {
      continue;
    }
    require(shares_evenly(values.count, small(parts)) &&
                shares_evenly(values.count, counts.corrected_parts),
            "the tokens of an output must be a multiple of its bounds and counters");
    require(!counted.given() || shares_evenly(values.count, counts.marks.count),
            "the tokens must be a multiple of the marks");
    counts.all.push_back(
        Check{values, {}, each + 2 * parts * static_cast<int64_t>(index), small(parts)});
  }
  count_outside(counts, device.index);
}

inline void require_groups(const Check& check) {
  require(shares_evenly(check.output.columns, check.parts),
          "the columns of an output must be a multiple of its groups");
}

inline void boxed_check_sums(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList output_list(stack[0]), expected_list(stack[1]);
  const Tensor flags(stack[2]);
  const std::vector<Tensor> outputs = output_list.take();
  const std::vector<Tensor> expected = expected_list.take();
  require(outputs.size() == expected.size(), "each output needs its expected sums");
  CheckArguments arguments(outputs, flags, real_number(stack[3]));
  for (size_t index = 0; index < outputs.size(); ++index) {
    if (Check* const check = arguments.add(index)) {
      check->against = arguments.float32_data(expected[index]);
      const int64_t sums = expected[index].elements();
      check->parts = small(sums / check->output.count);
      require(sums % check->output.count == 0,
              "expected sums must be (tokens, groups)");
      require_groups(*check);
    }
  }
  check_sums(arguments.checks, arguments.device());
}

inline void boxed_check_products(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList output_list(stack[0]), input_list(stack[1]), weight_list(stack[2]);
  const Tensor flags(stack[3]);
  const std::vector<Tensor> outputs = output_list.take();
  const std::vector<Tensor> inputs = input_list.take();
  const std::vector<Tensor> weights = weight_list.take();
  require(outputs.size() == inputs.size() && outputs.size() == weights.size(),
          "each output needs its input and its summed weights");
  CheckArguments arguments(outputs, flags, real_number(stack[4]));
  for (size_t index = 0; index < outputs.size(); ++index) {
    if (Check* const check = arguments.add(index)) {
      arguments.require_format(inputs[index]);
      check->input = matrix(inputs[index]);
      check->against = arguments.float32_data(weights[index]);
      const int64_t numbers = weights[index].elements();
      const int64_t per_group = int64_t{check->input.columns} + 1;
      check->parts = small(numbers / per_group);
      require(check->input.count == check->output.count, "an output needs one input per token");
      require(numbers % per_group == 0,
              "summed weights must be (groups, inputs + 1)");
      require_groups(*check);
    }
  }
  check_products(arguments.checks, arguments.device());
}

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

struct Operation {
  const char* name;
  const char* schema;
  Boxed boxed;
};

inline constexpr Operation operations[] = {
    {"restrict_",
     "restrict_(Tensor(a!) output, Tensor bounds, Tensor(b!) corrected, Tensor? counted=None)"
     " -> ()",
     boxed_restriction<restrict_values>},
    {"restrict_at", "restrict_at(Tensor(a!) output, int restriction) -> ()",
     boxed_restriction_at<restrict_values>},
    {"count_outside",
     "count_outside(Tensor[] outputs, Tensor bounds, Tensor(a!) corrected, Tensor? counted=None)"
     " -> ()",
     boxed_count_outside},
    {"record_",
     "record_(Tensor(a!) output, Tensor(b!) bounds, Tensor(c!) corrected, Tensor? counted=None)"
     " -> ()",
     boxed_restriction<record_values>},
    {"record_at", "record_at(Tensor(a!) output, int restriction) -> ()",
     boxed_restriction_at<record_values>},
    {"check_bounds", "check_bounds(Tensor[] outputs, Tensor bounds, Tensor(a!) flags) -> ()",
     boxed_check_bounds},
    {"check_sums",
     "check_sums(Tensor[] outputs, Tensor[] expected, Tensor(a!) flags, float roundoffs=8.0)"
     " -> ()",
     boxed_check_sums},
    {"check_products",
     "check_products(Tensor[] outputs, Tensor[] inputs, Tensor[] weights, Tensor(a!) flags,"
     " float roundoffs=8.0) -> ()",
     boxed_check_products},
};

// Returns 0, or what torch returned when it refused; it prints why on stderr. What is registered
// stays so until the process ends.
inline AOTITorchError define_operations() {
  TorchLibraryHandle library;
  AOTITorchError error = aoti_torch_library_init_def("ft2", __FILE__, __LINE__, &library);
  for (const Operation& operation : operations) {
    error = error ? error : aoti_torch_library_def(library, operation.schema);
  }
  return error;
}

inline AOTITorchError implement_operations(const char* dispatch_key) {
  TorchLibraryHandle library;
  AOTITorchError error =
      aoti_torch_library_init_impl("ft2", dispatch_key, __FILE__, __LINE__, &library);
  for (const Operation& operation : operations) {
    error = error ? error
                  : torch_library_impl(library, operation.name, operation.boxed, torch_2_10);
  }
  return error;
}

}  // namespace ft2

#if !defined(FT2_SOURCE_DIGEST)
#error "the build has to say which sources this is built from"
#endif

// Of all files in this folder, so that a checkout can refuse a library of other sources.
FT2_EXPORT const char* ft2_source_digest() { return FT2_SOURCE_DIGEST; }
