// Element-wise operations and norms of one row.
#ifndef FORERUN_CPP_OPS_CPU_ROW_KERNELS_H_
#define FORERUN_CPP_OPS_CPU_ROW_KERNELS_H_

#include "cpp/ops/cpu/kernels.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// Lane i sums the squares of x[i], x[i + 16], ...; then a fixed tree.
inline void RmsNorm(const float* x, const float* weight, int n, float eps, float* out) {
  V16 squares = Zero();
  EachVector(
      n,
      [&](int i) {
        const V16 value = Load(x + i);
        squares = Fma(value, value, squares);
      },
      [&](int i, int count) {
        const V16 value = LoadPartial(x + i, count);
        squares = Fma(value, value, squares);
      });
  const float mean = ReduceAdd(squares) / static_cast<float>(n);
  const V16 inverse = Set(1.0f / __builtin_sqrtf(mean + eps));
  EachVector(
      n, [&](int i) { Store(out + i, Mul(Mul(Load(x + i), inverse), Load(weight + i))); },
      [&](int i, int count) {
        const V16 scaled = Mul(LoadPartial(x + i, count), inverse);
        StorePartial(out + i, Mul(scaled, LoadPartial(weight + i, count)), count);
      });
}

inline void Rope(float* x, int head_dim, const float* cos_sin) {
  const int half = head_dim / 2;
  const float* sine = cos_sin + half;
  float* second = x + half;
  EachVector(
      half,
      [&](int i) {
        const V16 a = Load(x + i), b = Load(second + i);
        const V16 c = Load(cos_sin + i), s = Load(sine + i);
        Store(x + i, Sub(Mul(a, c), Mul(b, s)));
        Store(second + i, Add(Mul(b, c), Mul(a, s)));
      },
      [&](int i, int count) {
        const V16 a = LoadPartial(x + i, count), b = LoadPartial(second + i, count);
        const V16 c = LoadPartial(cos_sin + i, count), s = LoadPartial(sine + i, count);
        StorePartial(x + i, Sub(Mul(a, c), Mul(b, s)), count);
        StorePartial(second + i, Add(Mul(b, c), Mul(a, s)), count);
      });
}

struct SiluOf {
  FORERUN_INLINE V16 operator()(V16 x) const { return Div(x, Add(Set(1.0f), Exp(Sub(Zero(), x)))); }
};

struct SigmoidOf {
  FORERUN_INLINE V16 operator()(V16 x) const {
    return Div(Set(1.0f), Add(Set(1.0f), Exp(Sub(Zero(), x))));
  }
};

struct GeluTanhOf {
  FORERUN_INLINE V16 operator()(V16 x) const {
    const V16 cube = Mul(Mul(x, x), x);
    const V16 inner = Mul(Set(0.797884561f), Fma(Set(0.044715f), cube, x));
    return Mul(Mul(Set(0.5f), x), Add(Set(1.0f), Tanh(inner)));
  }
};

struct GeluOf {
  FORERUN_INLINE V16 operator()(V16 x) const {
    return Mul(Mul(Set(0.5f), x), Add(Set(1.0f), Erf(Mul(x, Set(0.707106781f)))));
  }
};

template <class Function>
inline void GateWith(const float* gate, const float* up, int n, float* out) {
  const Function function;
  EachVector(
      n, [&](int i) { Store(out + i, Mul(function(Load(gate + i)), Load(up + i))); },
      [&](int i, int count) {
        const V16 value = function(LoadPartial(gate + i, count));
        StorePartial(out + i, Mul(value, LoadPartial(up + i, count)), count);
      });
}

inline void Gate(const float* gate, const float* up, int n, Activation kind, float* out) {
  switch (kind) {
    case Activation::kSilu:
      return GateWith<SiluOf>(gate, up, n, out);
    case Activation::kGeluTanh:
      return GateWith<GeluTanhOf>(gate, up, n, out);
    case Activation::kGelu:
      return GateWith<GeluOf>(gate, up, n, out);
    case Activation::kSigmoid:
      return GateWith<SigmoidOf>(gate, up, n, out);
  }
}

inline void AddRow(const float* y, int n, float* x) {
  for (int i = 0; i < n; ++i) x[i] += y[i];
}

inline void ScaleRow(float factor, int n, float* x) {
  for (int i = 0; i < n; ++i) x[i] *= factor;
}

// cap * tanh(x / cap)
FORERUN_INLINE V16 CapSoftly(V16 x, float cap) { return Mul(Set(cap), Tanh(Div(x, Set(cap)))); }

inline void SoftCap(float* x, int n, float cap) {
  EachVector(
      n, [&](int i) { Store(x + i, CapSoftly(Load(x + i), cap)); },
      [&](int i, int count) {
        StorePartial(x + i, CapSoftly(LoadPartial(x + i, count), cap), count);
      });
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ROW_KERNELS_H_
