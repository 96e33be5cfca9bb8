// Reads the tensors of a Python list as torch tells of them in C: by DLPack's exchange interface
// (dlpack.h, major version 1), and by a function of Python's stable interface.
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
};

}  // extern "C"

namespace ft2 {

// Tensors of one type on one device, all of whose values are adjacent.
class ListedTensors {
 public:
  // The device is -1 for the CPU, else a CUDA device's index.
  ListedTensors(const Ft2Exchange& exchange, void* list, Format format, int32_t device)
      : exchange_(exchange), list_(list), format_(format), device_(device) {}

  // How many vectors of so many columns one of them has.
  uint32_t vectors(uint32_t index, uint32_t columns) const {
    const int64_t elements = elements_of(tensor(index));
    require(columns > 0 && elements % columns == 0, "an output has another width");
    return small(elements / columns);
  }

  Matrix matrix(uint32_t index, uint32_t vectors, uint32_t columns) const {
    const DLTensor found = tensor(index);
    require(elements_of(found) == static_cast<int64_t>(vectors) * columns,
            "a tensor has another size");
    require(found.data != nullptr, "a tensor is nowhere");
    return {static_cast<const char*>(found.data) + found.byte_offset, vectors, columns, columns};
  }

 private:
  DLTensor tensor(uint32_t index) const {
    void* const object = exchange_.item(list_, static_cast<ptrdiff_t>(index));
    require(object != nullptr, "a list is too short");
    DLTensor found;
    require(exchange_.functions->tensor_from_object(object, &found) == 0,
            "torch could not describe a tensor");
    require(is_of_the_type(found.type), "a tensor has another type");
    require(is_on_the_device(found.device), "a tensor is on another device");
    return found;
  }

  bool is_of_the_type(const DLDataType& type) const {
    constexpr uint8_t ieee = 2, brain = 4;
    return type.lanes == 1 && type.code == (format_ == Format::bfloat16 ? brain : ieee) &&
           type.bits == (format_ == Format::float32 ? 32 : 16);
  }

  bool is_on_the_device(const DLDevice& device) const {
    constexpr int32_t cpu = 1, cuda = 2;
    return device_ < 0 ? device.type == cpu : device.type == cuda && device.index == device_;
  }

  static int64_t elements_of(const DLTensor& tensor) {
    int64_t elements = 1;
    for (int32_t at = tensor.dimensions - 1; at >= 0; --at) {
      require(tensor.strides == nullptr || tensor.sizes[at] == 1 ||
                  tensor.strides[at] == elements,
              "the values of a tensor are not adjacent");
      elements *= tensor.sizes[at];
    }
    return elements;
  }

  const Ft2Exchange& exchange_;
  void* list_;
  Format format_;
  int32_t device_;
};

}  // namespace ft2
