// The operations on CUDA devices.

#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "checksum.h"
#include "operations.h"
#include "range_restriction.h"

namespace ft2 {
namespace {

constexpr uint32_t threads = 256;
constexpr uint32_t warp = 32;
constexpr unsigned everyone = 0xffffffff;
constexpr uint32_t most_blocks_across = 65535;  // In the second dimension of a grid.

// What one load fetches.
template <class Format>
struct alignas(16) Pack {
  static constexpr uint32_t size = 16 / sizeof(typename Format::Bits);
  typename Format::Bits values[size];
};

template <class Format>
__device__ bool in_packs(const typename Format::Bits* values, int64_t count) {
  return reinterpret_cast<uintptr_t>(values) % 16 == 0 && count % Pack<Format>::size == 0;
}

// Calls work(value) on adjacent values, first, first + step, ... in units of a load.
template <class Format, class Work>
__device__ void for_each(const typename Format::Bits* values, uint32_t count, uint32_t first,
                         uint32_t step, const Work& work) {
  if (in_packs<Format>(values, count)) {
    const auto* const packs = reinterpret_cast<const Pack<Format>*>(values);
#pragma unroll 4
    for (uint32_t index = first; index < count / Pack<Format>::size; index += step) {
      const Pack<Format> pack = packs[index];
#pragma unroll
      for (uint32_t place = 0; place < Pack<Format>::size; ++place) {
        work(pack.values[place]);
      }
    }
    return;
  }
#pragma unroll 8
  for (uint32_t index = first; index < count; index += step) {
    work(values[index]);
  }
}

// Replaces each value of a vector by change(value), and stores only where that differs.
template <class Format, class Change>
__device__ void change_each(const TokenVectors& vectors, uint32_t vector, const Change& change) {
  using Bits = typename Format::Bits;
  Bits* const values = static_cast<Bits*>(vectors.data) + vectors.offset(vector);
  const int64_t first = int64_t{blockIdx.x} * threads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * threads;
  if (vectors.column_stride == 1 && in_packs<Format>(values, vectors.columns)) {
    auto* const packs = reinterpret_cast<Pack<Format>*>(values);
    for (int64_t index = first; index < vectors.columns / Pack<Format>::size; index += step) {
      Pack<Format> pack = packs[index];
      bool changed = false;
#pragma unroll
      for (uint32_t place = 0; place < Pack<Format>::size; ++place) {
        const Bits value = pack.values[place];
        pack.values[place] = change(value);
        changed |= pack.values[place] != value;
      }
      if (changed) {
        packs[index] = pack;
      }
    }
    return;
  }
  for (int64_t index = first; index < vectors.columns; index += step) {
    Bits& place = values[index * vectors.column_stride];
    const Bits value = place;
    const Bits result = change(value);
    if (result != value) {
      place = result;
    }
  }
}

template <class Number>
__device__ Number sum_of_warp(Number number) {
  for (uint32_t distance = warp / 2; distance > 0; distance /= 2) {
    number += __shfl_xor_sync(everyone, number, distance);
  }
  return number;
}

// Adds what the threads of a warp counted; all of them must come here.
__device__ void count_corrections(const Restriction& call, uint32_t vector, uint32_t wrong) {
  if (!__any_sync(everyone, wrong != 0)) {
    return;
  }
  const uint32_t total = sum_of_warp(wrong);
  if (threadIdx.x % warp == 0 && call.marks.counted(vector, call.values.count)) {
    int64_t* const counter = call.corrected + vector / (call.values.count / call.corrected_parts);
    atomicAdd(reinterpret_cast<unsigned long long*>(counter), total);
  }
}

template <class Format>
__global__ void __launch_bounds__(threads) restrict_kernel(const Restriction call) {
  const uint32_t per_bounds = call.values.count / call.bounds_parts;
  for (uint32_t vector = blockIdx.y; vector < call.values.count; vector += gridDim.y) {
    const uint32_t part = vector / per_bounds;
    const Bounds<Format> bounds(call.bounds[part], call.bounds[call.bounds_parts + part]);
    uint32_t wrong = 0;
    change_each<Format>(call.values, vector, [&](typename Format::Bits value) {
      const auto restricted = bounds.restricted(value);
      wrong += differ<Format>(value, restricted);
      return restricted;
    });
    count_corrections(call, vector, wrong);
  }
}

// Neither number is NaN or -0, so that as integers those above 0 are ordered as they are and those
// below 0 the other way round. Nearly all calls end at the first line.
__device__ void lower_to(float* number, float candidate) {
  if (!(candidate < *static_cast<volatile float*>(number))) {
    return;
  }
  if (candidate >= 0) {
    atomicMin(reinterpret_cast<int*>(number), __float_as_int(candidate));
  } else {
    atomicMax(reinterpret_cast<unsigned*>(number), __float_as_uint(candidate));
  }
}

__device__ void raise_to(float* number, float candidate) {
  if (!(candidate > *static_cast<volatile float*>(number))) {
    return;
  }
  if (candidate >= 0) {
    atomicMax(reinterpret_cast<int*>(number), __float_as_int(candidate));
  } else {
    atomicMin(reinterpret_cast<unsigned*>(number), __float_as_uint(candidate));
  }
}

template <class Format>
__global__ void __launch_bounds__(threads) record_kernel(const Restriction call) {
  using Rank = typename Format::Rank;
  const uint32_t per_bounds = call.values.count / call.bounds_parts;
  for (uint32_t vector = blockIdx.y; vector < call.values.count; vector += gridDim.y) {
    Span<Format> span;
    uint32_t wrong = 0;
    change_each<Format>(call.values, vector, [&](typename Format::Bits value) {
      const auto finite = made_finite<Format>(value);
      wrong += !is_finite<Format>(value);
      if ((value & Format::magnitude) != Format::infinity) {
        span.add(rank_of<Format>(finite));
      }
      return finite;
    });
    count_corrections(call, vector, wrong);
    for (uint32_t distance = warp / 2; distance > 0; distance /= 2) {
      const int lowest = __shfl_xor_sync(everyone, static_cast<int>(span.lowest), distance);
      const int highest = __shfl_xor_sync(everyone, static_cast<int>(span.highest), distance);
      span.lowest = lowest < span.lowest ? static_cast<Rank>(lowest) : span.lowest;
      span.highest = highest > span.highest ? static_cast<Rank>(highest) : span.highest;
    }
    if (threadIdx.x % warp == 0 && span.lowest <= span.highest &&
        call.marks.counted(vector, call.values.count)) {
      float* const low = call.bounds + vector / per_bounds;
      lower_to(low, learned_bound<Format>(span.lowest));
      raise_to(low + call.bounds_parts, learned_bound<Format>(span.highest));
    }
  }
}

// The list of a launch's outputs is its argument: nothing is copied, and a CUDA graph keeps it.
// Arguments above 4 KB need CUDA 12.1 and, for every GPU that is built for, Volta: so CUDA 13.
#if CUDART_VERSION >= 13000
constexpr uint32_t most_checks = 480;
constexpr uint32_t many_checks = 240;
#else
constexpr uint32_t most_checks = 56;
constexpr uint32_t many_checks = 56;
#endif
constexpr uint32_t few_checks = 56;

// Calls run with the capacity of the smallest table that holds so many checks, or of the largest:
// what a launch costs grows with its argument.
template <class Run>
void with_capacity(size_t checks, const Run& run) {
  if (checks <= few_checks) {
    return run(std::integral_constant<uint32_t, few_checks>{});
  }
  if (checks <= many_checks) {
    return run(std::integral_constant<uint32_t, many_checks>{});
  }
  return run(std::integral_constant<uint32_t, most_checks>{});
}

template <uint32_t capacity>
struct Table {
  Check checks[capacity];
  uint8_t* flags;
  uint32_t flag_count;
  double tolerance;
};

// The flags that one launch sets are of one kind, so that it does not matter who writes last.
template <class Table>
__device__ void flag_vector(const Table& table, const Check& check, uint32_t vector, uint8_t kind) {
  uint8_t* const flag = table.flags + vector / (check.output.count / table.flag_count);
  *static_cast<volatile uint8_t*>(flag) = *static_cast<volatile uint8_t*>(flag) | kind;
}

template <class Bits>
__device__ const Bits* row(const Matrix& matrix, uint32_t vector) {
  return static_cast<const Bits*>(matrix.data) + vector * matrix.stride;
}

template <class Format, uint32_t capacity>
__global__ void __launch_bounds__(threads)
    check_bounds_kernel(const __grid_constant__ Table<capacity> table) {
  using Bits = typename Format::Bits;
  const Check& check = table.checks[blockIdx.y];
  for (uint32_t vector = blockIdx.x; vector < check.output.count; vector += gridDim.x) {
    const uint32_t part = vector / (check.output.count / check.parts);
    const Bounds<Format> bounds(check.against[part], check.against[check.parts + part]);
    bool outside = false;
    for_each<Format>(row<Bits>(check.output, vector), check.output.columns, threadIdx.x, threads,
                     [&](Bits value) { outside |= !bounds.hold(value); });
    if (__syncthreads_or(outside) && threadIdx.x == 0) {
      flag_vector(table, check, vector, outside_bounds_flag);
    }
  }
}

// As the table of checks, for counting.
template <uint32_t capacity>
struct CountTable {
  Check checks[capacity];
  int64_t* corrected;
  uint32_t corrected_parts;
  Marks marks;
};

template <class Format, uint32_t capacity>
__global__ void __launch_bounds__(threads)
    count_outside_kernel(const __grid_constant__ CountTable<capacity> table) {
  using Bits = typename Format::Bits;
  const Check& check = table.checks[blockIdx.y];
  const uint32_t count = check.output.count;
  for (uint32_t vector = blockIdx.x; vector < count; vector += gridDim.x) {
    const uint32_t part = vector / (count / check.parts);
    const Bounds<Format> bounds(check.against[part], check.against[check.parts + part]);
    uint32_t wrong = 0;
    for_each<Format>(row<Bits>(check.output, vector), check.output.columns, threadIdx.x, threads,
                     [&](Bits value) { wrong += differ<Format>(value, bounds.restricted(value)); });
    if (__any_sync(everyone, wrong != 0) && table.marks.counted(vector, count)) {
      const uint32_t total = sum_of_warp(wrong);
      if (threadIdx.x % warp == 0) {
        int64_t* const counter = table.corrected + vector / (count / table.corrected_parts);
        atomicAdd(reinterpret_cast<unsigned long long*>(counter), total);
      }
    }
  }
}

// Sums over the whole block, for thread 0.
__device__ double sum_of_block(double number, double* shared) {
  const double mine = sum_of_warp(number);
  __syncthreads();
  if (threadIdx.x % warp == 0) {
    shared[threadIdx.x / warp] = mine;
  }
  __syncthreads();
  double total = 0;
  for (uint32_t index = 0; threadIdx.x == 0 && index < threads / warp; ++index) {
    total += shared[index];
  }
  return total;
}

// One team of threads sums a group of columns: the block if there is one group, else a warp, or a
// single thread where groups are narrow and their sums are given.
template <class Format, bool products, uint32_t capacity>
__global__ void __launch_bounds__(threads)
    check_sums_kernel(const __grid_constant__ Table<capacity> table) {
  using Bits = typename Format::Bits;
  __shared__ double shared[threads / warp];
  const Check& check = table.checks[blockIdx.y];
  const uint32_t columns = check.output.columns / check.parts;
  const uint32_t inputs = check.input.columns;
  const uint32_t team = check.parts == 1 ? threads : products || columns > 64 ? warp : 1;
  const uint32_t member = threadIdx.x % team;
  for (uint32_t vector = blockIdx.x; vector < check.output.count; vector += gridDim.x) {
    const Bits* const output = row<Bits>(check.output, vector);
    bool wrong = false;
    for (uint32_t group = threadIdx.x / team; group < check.parts; group += threads / team) {
      ColumnSums sums;
      for_each<Format>(output + int64_t{group} * columns, columns, member, team,
                       [&](Bits value) { sums.add(to_float<Format>(value)); });
      double expected = 0;
      if constexpr (products) {
        const Bits* const input = row<Bits>(check.input, vector);
        const float* const weights = check.against + int64_t{group} * (inputs + 1);
#pragma unroll 8
        for (uint32_t index = member; index < inputs; index += team) {
          expected += static_cast<double>(to_float<Format>(input[index])) * weights[index];
        }
        expected += member == 0 ? weights[inputs] : 0;
      } else if (member == 0) {
        expected = check.against[int64_t{vector} * check.parts + group];
      }
      if (team == threads) {
        sums.sum = sum_of_block(sums.sum, shared);
        sums.squares = sum_of_block(sums.squares, shared);
        expected = products ? sum_of_block(expected, shared) : expected;
      } else if (team == warp) {
        sums.sum = sum_of_warp(sums.sum);
        sums.squares = sum_of_warp(sums.squares);
        expected = products ? sum_of_warp(expected) : expected;
      }
      wrong |= member == 0 && !sums.agree(expected, table.tolerance);
    }
    if (__syncthreads_or(wrong) && threadIdx.x == 0) {
      flag_vector(table, check, vector, wrong_sum_flag);
    }
  }
}

// Makes a device current, as launching on one of its streams asks for.
class CurrentDevice {
 public:
  explicit CurrentDevice(int32_t device) {
    void* stream;
    require(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "the device has no stream");
    this->stream = static_cast<cudaStream_t>(stream);
    int current;
    // Nearly always it is current already, and a guard is another allocation.
    if (cudaGetDevice(&current) != cudaSuccess || current != device) {
      require(aoti_torch_create_cuda_guard(device, &guard_) == 0, "no such device");
    }
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (guard_ != nullptr) {
      aoti_torch_delete_cuda_guard(guard_);
    }
  }

  cudaStream_t stream;

 private:
  CUDAGuardHandle guard_ = nullptr;
};

void require_launched() {
  const cudaError_t error = cudaGetLastError();
  require(error == cudaSuccess, cudaGetErrorString(error));
}

template <class Format>
dim3 grid_over(const TokenVectors& vectors) {
  const int64_t per_block = int64_t{threads} * Pack<Format>::size;
  const int64_t blocks = (vectors.columns + per_block - 1) / per_block;
  return {static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX)),
          std::min(vectors.count, most_blocks_across)};
}

// Calls launch(table, grid, stream) on as many copies of the table as the checks fill.
template <uint32_t capacity, class Table, class Launch>
void in_tables(const std::vector<Check>& checks, Table& table, int32_t device,
               const Launch& launch) {
  const CurrentDevice current(device);
  for (size_t begin = 0; begin < checks.size(); begin += capacity) {
    const size_t count = std::min<size_t>(capacity, checks.size() - begin);
    uint32_t most = 0;
    for (size_t index = 0; index < count; ++index) {
      table.checks[index] = checks[begin + index];
      most = std::max(most, table.checks[index].output.count);
    }
    launch(table, dim3(most, static_cast<unsigned>(count)), current.stream);
    require_launched();
  }
}

template <uint32_t capacity, class Launch>
void check_in_tables(const Checks& checks, double tolerance, int32_t device,
                     const Launch& launch) {
  Table<capacity> table;
  table.flags = checks.flags;
  table.flag_count = checks.flag_count;
  table.tolerance = tolerance;
  in_tables<capacity>(checks.all, table, device, launch);
}

template <class Launch>
void in_few_launches(const Checks& checks, double tolerance, int32_t device, const Launch& launch) {
  with_capacity(checks.all.size(), [&](auto capacity) {
    check_in_tables<decltype(capacity)::value>(checks, tolerance, device, launch);
  });
}

template <uint32_t capacity>
void count_in_tables(const Counts& counts, int32_t device) {
  CountTable<capacity> table;
  table.corrected = counts.corrected;
  table.corrected_parts = counts.corrected_parts;
  table.marks = counts.marks;
  with_format(counts.format, [&](auto format) {
    in_tables<capacity>(counts.all, table, device,
                        [](const auto& filled, dim3 grid, cudaStream_t stream) {
                          count_outside_kernel<decltype(format)>
                              <<<grid, threads, 0, stream>>>(filled);
                        });
  });
}

template <bool products>
void check_column_sums(const Checks& checks, int32_t device) {
  with_format(checks.format, [&](auto format) {
    using Type = decltype(format);
    in_few_launches(checks, tolerance_of<Type>(checks.roundoffs), device,
                    [](const auto& table, dim3 grid, cudaStream_t stream) {
                      check_sums_kernel<Type, products><<<grid, threads, 0, stream>>>(table);
                    });
  });
}

}  // namespace

void restrict_values(const Restriction& call, int32_t device) {
  const CurrentDevice current(device);
  with_format(call.format, [&](auto format) {
    using Type = decltype(format);
    restrict_kernel<Type><<<grid_over<Type>(call.values), threads, 0, current.stream>>>(call);
  });
  require_launched();
}

void record_values(const Restriction& call, int32_t device) {
  const CurrentDevice current(device);
  with_format(call.format, [&](auto format) {
    using Type = decltype(format);
    record_kernel<Type><<<grid_over<Type>(call.values), threads, 0, current.stream>>>(call);
  });
  require_launched();
}

void count_outside(const Counts& counts, int32_t device) {
  with_capacity(counts.all.size(), [&](auto capacity) {
    count_in_tables<decltype(capacity)::value>(counts, device);
  });
}

void check_bounds(const Checks& checks, int32_t device) {
  with_format(checks.format, [&](auto format) {
    using Type = decltype(format);
    in_few_launches(checks, 0, device, [](const auto& table, dim3 grid, cudaStream_t stream) {
      check_bounds_kernel<Type><<<grid, threads, 0, stream>>>(table);
    });
  });
}

void check_sums(const Checks& checks, int32_t device) { check_column_sums<false>(checks, device); }

void check_products(const Checks& checks, int32_t device) {
  check_column_sums<true>(checks, device);
}

}  // namespace ft2

FT2_EXPORT int32_t ft2_register() { return ft2::implement_operations("CUDA"); }
