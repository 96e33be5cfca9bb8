// What torch hands over: tensors, lists and numbers, unpacked and checked.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "torch_abi.h"

namespace ft2 {

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

inline double real_number(StableIValue value) {
  double number;
  memcpy(&number, &value, sizeof number);
  return number;
}

}  // namespace ft2
