// Reads Python's tensors as torch tells of them in C: by DLPack's exchange interface (dlpack.h, major
// version 1), and by a few functions of Python's stable interface.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arguments.h"

extern "C" {

struct DLDevice {
  int32_t type;
  int32_t index;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t dimensions;
  DLDataType type;
  const int64_t* sizes;
  const int64_t* strides;  // Null where values are adjacent.
  uint64_t byte_offset;
};

struct DLPackExchange {
  uint32_t major;
  uint32_t minor;
  const DLPackExchange* older;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*tensor_from_object)(void* object, DLTensor* tensor);
  void* current_stream;
};

// ft2/native/exchange.py declares the same.
struct Ft2Exchange {
  const DLPackExchange* functions;
  void* (*item)(void* list, ptrdiff_t index);  // PyList_GetItem.
  void* (*address)(void* number);              // PyLong_AsVoidPtr.
  void* (*boolean)(long number);               // PyBool_FromLong.
  void (*forget_error)();                      // PyErr_Clear.
};

}  // extern "C"

namespace ft2 {

inline DLTensor describe(const Ft2Exchange& exchange, void* object) {
  DLTensor found;
  require(object != nullptr && exchange.functions->tensor_from_object(object, &found) == 0,
          "torch could not describe a tensor");
  found.data = static_cast<char*>(found.data) + found.byte_offset;
  return found;
}

inline Format format_of(const DLTensor& tensor) {
  constexpr uint8_t ieee = 2, brain = 4;
  const DLDataType& type = tensor.type;
  require(type.lanes == 1, "a tensor has another type");
  if (type.code == ieee && type.bits == 32) {
    return Format::float32;
  }
  require(type.bits == 16 && (type.code == ieee || type.code == brain),
          "a tensor has another type");
  return type.code == ieee ? Format::half : Format::bfloat16;
}

// A CUDA device's index, or -1 for the CPU.
inline int32_t device_of(const DLTensor& tensor) {
  constexpr int32_t cpu = 1, cuda = 2;
  require(tensor.device.type == cpu || tensor.device.type == cuda, "a tensor is elsewhere");
  return tensor.device.type == cpu ? -1 : tensor.device.index;
}

// How many values it has, all of which must be adjacent.
inline int64_t adjacent_elements(const DLTensor& tensor) {
  int64_t elements = 1;
  for (int32_t at = 0; at < tensor.dimensions; ++at) {
    if (tensor.sizes[at] == 0) {
      return 0;
    }
  }
  for (int32_t at = tensor.dimensions - 1; at >= 0; --at) {
    require(tensor.strides == nullptr || tensor.sizes[at] == 1 || tensor.strides[at] == elements,
            "the values of a tensor are not adjacent");
    elements *= tensor.sizes[at];
  }
  require(tensor.data != nullptr, "a tensor has no values");
  return elements;
}

// Tensors of a list, all of one type on one device.
class ListedTensors {
 public:
  ListedTensors(const Ft2Exchange& exchange, void* list, Format format, int32_t device)
      : exchange_(exchange), list_(list), format_(format), device_(device) {}

  // How many vectors of so many columns one of them has.
  uint32_t vectors(uint32_t index, uint32_t columns) const {
    const int64_t elements = adjacent_elements(tensor(index));
    require(columns > 0 && elements % columns == 0, "an output has another width");
    return small(elements / columns);
  }

  Matrix matrix(uint32_t index, uint32_t vectors, uint32_t columns) const {
    const DLTensor found = tensor(index);
    require(adjacent_elements(found) == int64_t{vectors} * columns, "a tensor has another size");
    return {found.data, vectors, columns, columns};
  }

 private:
  DLTensor tensor(uint32_t index) const {
    const DLTensor found = describe(exchange_, exchange_.item(list_, index));
    require(format_of(found) == format_, "a tensor has another type");
    require(device_of(found) == device_, "a tensor is on another device");
    return found;
  }

  const Ft2Exchange& exchange_;
  void* list_;
  Format format_;
  int32_t device_;
};

}  // namespace ft2
