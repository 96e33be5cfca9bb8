// The operations as torch sees them: schemas, unpacked and checked arguments, registration.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "torch_abi.h"

namespace ft2 {

// The version whose conventions for arguments this file follows.
constexpr uint64_t torch_2_10 = (uint64_t{2} << 56) | (uint64_t{10} << 48);

inline void require(bool condition, const char* what) {
  if (!condition) {
    throw std::runtime_error(std::string("ft2: ") + what);
  }
}

inline void require_success(AOTITorchError error) {
  require(error == 0, "torch could not describe an argument");
}

// A tensor argument, which the callee owns.
class Tensor {
 public:
  explicit Tensor(StableIValue value) : handle_(reinterpret_cast<AtenTensorHandle>(value)) {}
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle_ != nullptr) {
      aoti_torch_delete_tensor_object(handle_);
    }
  }

  bool given() const { return handle_ != nullptr; }

  // What an operation returns is the caller's.
  StableIValue release() {
    AtenTensorHandle handle = handle_;
    handle_ = nullptr;
    return reinterpret_cast<StableIValue>(handle);
  }

  // A new tensor like this one, its values not set.
  Tensor empty_like() const {
    AtenTensorHandle handle;
    require_success(aoti_torch_empty_strided(dimensions(), sizes(), strides(), type(),
                                             device_type(), device_index(), &handle));
    return Tensor(reinterpret_cast<StableIValue>(handle));
  }

  int64_t dimensions() const { return number(aoti_torch_get_dim); }
  int64_t elements() const { return number(aoti_torch_get_numel); }

  const int64_t* sizes() const {
    int64_t* sizes;
    require_success(aoti_torch_get_sizes(handle_, &sizes));
    return sizes;
  }

  const int64_t* strides() const {
    int64_t* strides;
    require_success(aoti_torch_get_strides(handle_, &strides));
    return strides;
  }

  int32_t type() const {
    int32_t type;
    require_success(aoti_torch_get_dtype(handle_, &type));
    return type;
  }

  int32_t device_type() const {
    int32_t type;
    require_success(aoti_torch_get_device_type(handle_, &type));
    return type;
  }

  int32_t device_index() const {
    int32_t index;
    require_success(aoti_torch_get_device_index(handle_, &index));
    return index;
  }

  bool contiguous() const {
    bool contiguous;
    require_success(aoti_torch_is_contiguous(handle_, &contiguous));
    return contiguous;
  }

  const void* data() const {
    const void* data;
    require_success(torch_get_const_data_ptr(handle_, &data));
    return data;
  }

  void* mutable_data() const {
    void* data;
    require_success(torch_get_mutable_data_ptr(handle_, &data));
    return data;
  }

 private:
  int64_t number(AOTITorchError (*get)(AtenTensorHandle, int64_t*)) const {
    int64_t number;
    require_success(get(handle_, &number));
    return number;
  }

  AtenTensorHandle handle_;
};

// None is a null pointer; anything else lies on the heap, and the callee frees it.
inline Tensor optional_tensor(StableIValue value) {
  auto* boxed = reinterpret_cast<StableIValue*>(value);
  const StableIValue tensor = boxed == nullptr ? 0 : *boxed;
  delete boxed;
  return Tensor(tensor);
}

// A list of tensors, which the callee owns.
class TensorList {
 public:
  explicit TensorList(StableIValue value) : list_(reinterpret_cast<StableListHandle>(value)) {}
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;
  ~TensorList() { torch_delete_list(list_); }

  // Each element may be taken once only: it is owned from then on.
  std::vector<Tensor> take() const {
    size_t size;
    require_success(torch_list_size(list_, &size));
    std::vector<Tensor> tensors;
    tensors.reserve(size);
    for (size_t index = 0; index < size; ++index) {
      StableIValue element;
      require_success(torch_list_get_item(list_, index, &element));
      tensors.emplace_back(element);
    }
    return tensors;
  }

 private:
  StableListHandle list_;
};

inline Format format_of(const Tensor& tensor) {
  static const int32_t half = aoti_torch_dtype_float16();
  static const int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  static const int32_t float32 = aoti_torch_dtype_float32();
  const int32_t type = tensor.type();
  require(type == half || type == bfloat16 || type == float32,
          "values must be float16, bfloat16 or float32");
  return type == half ? Format::half : type == bfloat16 ? Format::bfloat16 : Format::float32;
}

inline void require_float32(const Tensor& tensor) {
  static const int32_t float32 = aoti_torch_dtype_float32();
  require(tensor.type() == float32, "bounds, sums and weights must be float32");
  require(tensor.contiguous(), "bounds, sums and weights must be contiguous");
}

// All tensors of a call lie on the device of the first.
class Device {
 public:
  explicit Device(const Tensor& tensor)
      : type_(tensor.device_type()), index(tensor.device_index()) {}

  void require_holds(const Tensor& tensor) const {
    // There is but one CPU, without a number.
    require(tensor.device_type() == type_ && (index < 0 || tensor.device_index() == index),
            "all tensors must be on one device");
  }

 private:
  int32_t type_;

 public:
  const int32_t index;
};

// Tokens, and whatever is shared among them, are counted in 32 bits: division is several times
// faster there.
inline uint32_t small(int64_t number) {
  require(0 <= number && number <= INT32_MAX, "a tensor is too large");
  return static_cast<uint32_t>(number);
}

inline TokenVectors token_vectors(const Tensor& tensor) {
  const int64_t dimensions = tensor.dimensions();
  require(dimensions >= 1, "values must have a dimension");
  const int64_t* sizes = tensor.sizes();
  const int64_t* strides = tensor.strides();
  TokenVectors vectors{};
  vectors.data = tensor.mutable_data();
  if (dimensions > 3) {
    require(tensor.contiguous(), "values of more than three dimensions must be contiguous");
    vectors.columns = vectors.inner_stride = sizes[dimensions - 1];
    vectors.column_stride = 1;
    vectors.count = vectors.inner =
        small(vectors.columns == 0 ? 0 : tensor.elements() / vectors.columns);
    return vectors;
  }
  vectors.columns = sizes[dimensions - 1];
  vectors.column_stride = strides[dimensions - 1];
  vectors.inner = small(dimensions > 1 ? sizes[dimensions - 2] : 1);
  vectors.inner_stride = dimensions > 1 ? strides[dimensions - 2] : 0;
  vectors.count = small(vectors.inner * (dimensions > 2 ? sizes[0] : 1));
  vectors.outer_stride = dimensions > 2 ? strides[0] : 0;
  return vectors;
}

inline Marks marks(const Tensor& tensor) {
  if (!tensor.given()) {
    return {};
  }
  static const int32_t boolean = aoti_torch_dtype_bool();
  require(tensor.type() == boolean, "marks must be bool");
  const int64_t dimensions = tensor.dimensions();
  require(dimensions == 1 || dimensions == 2, "marks must be (rows,) or (rows, tokens)");
  const int64_t* sizes = tensor.sizes();
  const int64_t* strides = tensor.strides();
  Marks marks{};
  marks.data = static_cast<const uint8_t*>(tensor.data());
  marks.count = small(tensor.elements());
  marks.inner = small(sizes[dimensions - 1]);
  marks.inner_stride = strides[dimensions - 1];
  marks.outer_stride = dimensions > 1 ? strides[0] : 0;
  return marks;
}

inline Matrix matrix(const Tensor& tensor) {
  const int64_t dimensions = tensor.dimensions();
  require(dimensions >= 1, "outputs and inputs must have a dimension");
  const int64_t* sizes = tensor.sizes();
  const int64_t* strides = tensor.strides();
  const int64_t columns = sizes[dimensions - 1];
  int64_t count = 1;
  int64_t stride = columns;
  bool regular = columns <= 1 || strides[dimensions - 1] == 1;
  for (int64_t dimension = dimensions - 2; dimension >= 0; --dimension) {
    if (sizes[dimension] == 1) {
      continue;
    }
    if (count == 1) {
      stride = strides[dimension];
    } else {
      regular = regular && strides[dimension] == count * stride;
    }
    count *= sizes[dimension];
  }
  require(regular || count == 0, "outputs and inputs must be rows of adjacent columns");
  return {tensor.data(), small(count), small(columns), stride};
}

inline bool shares_evenly(uint32_t vectors, uint32_t parts) {
  return parts > 0 && vectors % parts == 0;
}

inline int64_t* counters(const Tensor& corrected) {
  static const int32_t int64 = aoti_torch_dtype_int64();
  require(corrected.type() == int64 && corrected.contiguous(),
          "counters must be contiguous int64");
  return static_cast<int64_t*>(corrected.mutable_data());
}

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

inline bool same_shape(const Tensor& one, const Tensor& other) {
  const int64_t dimensions = one.dimensions();
  return other.dimensions() == dimensions &&
         memcmp(one.sizes(), other.sizes(), static_cast<size_t>(dimensions) * sizeof(int64_t)) == 0;
}

template <void (*run)(const Combination&, int32_t)>
void boxed_combination(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor output(stack[0]), other(stack[1]), bounds(stack[2]), corrected(stack[3]);
  const Tensor counted = optional_tensor(stack[4]);
  const Device device(output);
  device.require_holds(other);
  require(output.type() == other.type() && same_shape(output, other) && output.contiguous() &&
              other.contiguous(),
          "both operands must be contiguous, of one shape and one type");
  Combination call{};
  call.restriction = restriction(device, output, bounds, corrected, counted);
  Tensor result = output.empty_like();
  if (call.restriction.bounds != nullptr) {
    call.other = other.data();
    call.result = result.mutable_data();
    run(call, device.index);
  }
  stack[0] = result.release();
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

inline double real_number(StableIValue value) {
  double number;
  memcpy(&number, &value, sizeof number);
  return number;
}

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
    {"restrict_and_add",
     "restrict_and_add(Tensor(a!) output, Tensor other, Tensor bounds, Tensor(b!) corrected,"
     " Tensor? counted=None) -> Tensor",
     boxed_combination<restrict_and_add>},
    {"restrict_and_multiply",
     "restrict_and_multiply(Tensor(a!) output, Tensor other, Tensor bounds, Tensor(b!) corrected,"
     " Tensor? counted=None) -> Tensor",
     boxed_combination<restrict_and_multiply>},
    {"count_outside",
     "count_outside(Tensor[] outputs, Tensor bounds, Tensor(a!) corrected, Tensor? counted=None)"
     " -> ()",
     boxed_count_outside},
    {"record_",
     "record_(Tensor(a!) output, Tensor(b!) bounds, Tensor(c!) corrected, Tensor? counted=None)"
     " -> ()",
     boxed_restriction<record_values>},
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

#define FT2_EXPORT extern "C" __attribute__((visibility("default")))

// Of all files in this folder, so that a checkout can refuse a library of other sources.
FT2_EXPORT const char* ft2_source_digest() { return FT2_SOURCE_DIGEST; }
