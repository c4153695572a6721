/* Vectors of VL floats: what one build can do at once. Included once for each build. */
#define vf OWN(vf)
#define vl OWN(vl)
#define vi OWN(vi)
#define vu OWN(vu)
#define vd OWN(vd)
#define vb OWN(vb)
#define dup OWN(dup)
#define dupi OWN(dupi)
#define vm OWN(vm)
#define over OWN(over)
#define same OWN(same)
#define same_i OWN(same_i)
#define sel OWN(sel)
#define sel_i OWN(sel_i)
#define any OWN(any)
#define lanes OWN(lanes)
#define top_of OWN(top_of)
#define low_of OWN(low_of)
#define transpose OWN(transpose)
#define next_lanes OWN(next_lanes)
#define exp2_of OWN(exp2_of)
#define scaled OWN(scaled)
#define tanh_of OWN(tanh_of)

#if VL == 8
#define MR 4 /* 16 registers: MR × NV scores, NV queries, one key */
#else
#define MR 8
#endif
#define NV 3
#define ROWS (VL * NV)

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef float vl __attribute__((vector_size(VL * 4), aligned(4), may_alias)); /* at any place */
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef uint8_t vb __attribute__((vector_size(VL * 4), aligned(1), may_alias));
typedef double vd __attribute__((vector_size(VL * 8), may_alias));
#define wide(x) __builtin_convertvector(x, vd)
#define at_(base, x, v) (*(vf *)((base) + (x) * ROWS + (v) * VL)) /* vector v of line x */

INLINE vf dup(float x) { return x - (vf){}; }
INLINE vi dupi(int32_t x) { return x - (vi){}; }

/* Conditions of lanes: bits of a mask register, or lanes of ones. `&`, `|` and `~` work on both. */
#if VL == 16
typedef __mmask16 vm;
INLINE vm over(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE vm same(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE vm same_i(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vf sel(vm c, vf a, vf b) { return (vf)_mm512_mask_blend_ps(c, (__m512)b, (__m512)a); }
INLINE vi sel_i(vm c, vi a, vi b) {
  return (vi)_mm512_mask_blend_epi32(c, (__m512i)b, (__m512i)a);
}
INLINE int any(vm c) { return c != 0; }
INLINE vm lanes(uint64_t bits) { return (vm)bits; } /* one bit for each lane */
#else
typedef vi vm;
INLINE vm over(vf a, vf b) { return a > b; }
INLINE vm same(vf a, vf b) { return a == b; }
INLINE vm same_i(vi a, vi b) { return a == b; }
INLINE vf sel(vm c, vf a, vf b) { return (vf)(((vi)a & c) | ((vi)b & ~c)); }
INLINE vi sel_i(vm c, vi a, vi b) { return (a & c) | (b & ~c); }
INLINE int any(vm c) {
#if VL == 8
  return _mm256_movemask_ps((__m256)c) != 0;
#else
  int32_t found = 0;
  for (int x = 0; x < VL; x++) found |= c[x];
  return found != 0;
#endif
}
INLINE vm lanes(uint64_t bits) {
  vu bit;
  for (int x = 0; x < VL; x++) bit[x] = 1u << x;
  return ((vu)dupi((int32_t)bits) & bit) != 0;
}
#endif

INLINE vf top_of(vf a, vf b) { /* the maximum; b where one of them is NaN */
#if VL == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VL == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return sel(over(a, b), a, b);
#endif
}
INLINE vf low_of(vf a, vf b) {
#if VL == 16
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif VL == 8
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return sel(over(b, a), a, b);
#endif
}
/* Turn row y, lane x into row x, lane y: blocks of half the size change places, then their halves. */
INLINE void transpose(vf part[VL]) {
#if VL == 16
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s), \
                   F(8, s), F(9, s), F(10, s), F(11, s), F(12, s), F(13, s), F(14, s), F(15, s)
#elif VL == 8
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s)
#else
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s)
#endif
#define LEFT(x, s) ((x) & (s) ? VL + (x) - (s) : (x))
#define RIGHT(x, s) ((x) & (s) ? VL + (x) : (x) + (s))
#define SWAP(s)                                                \
  for (int y = 0; y < VL; y++) {                               \
    if (y & (s)) continue;                                     \
    vf a = part[y], b = part[y + (s)];                         \
    part[y] = __builtin_shufflevector(a, b, EACH(LEFT, s));    \
    part[y + (s)] = __builtin_shufflevector(a, b, EACH(RIGHT, s)); \
  }
#if VL == 16
  SWAP(8)
#endif
#if VL >= 8
  SWAP(4)
#endif
  SWAP(2)
  SWAP(1)
}

/* x moved on by a lane; the first is the last one of `before`. */
INLINE vf next_lanes(vf before, vf x) {
#define NEXT(x, s) ((x) + (s))
  return __builtin_shufflevector(before, x, EACH(NEXT, VL - 1));
#undef NEXT
}

/* 2^x for x < 128, within 3·2⁻²⁴; 0 far below, NaN for NaN. The polynomial is a minimax fit of 2^f
 * on |f| ≤ ½ with a constant term of 1, so that 2^0 is 1. */
INLINE vf exp2_of(vf x) {
#if VL == 16
  vf n = (vf)_mm512_roundscale_ps((__m512)x, 8);
#else
  vi gone = x < dup(-126);
  x = top_of(dup(-126), x);
  vf t = x + dup(12582912.0f), n = t - dup(12582912.0f); /* 1.5·2²³: n is the nearest integer */
#endif
  vf f = x - n;
  vf p = dup(0x1.5bbbdp-10f);
  p = p * f + dup(0.009671512991189957f);
  p = p * f + dup(0.05550733581185341f);
  p = p * f + dup(0.24022242426872253f);
  p = p * f + dup(0.6931470036506653f);
  p = p * f + dup(1.0f);
#if VL == 16
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return (vf)((vi)((vu)p + ((vu)t << 23)) & ~gone);
#endif
}

/* Logits in units of ln 2. */
INLINE vf scaled(vf t, const int bent) {
  if (bent) t *= (float)LOG2E;
  return t;
}

/* tanh(x) within 4·2⁻²⁴ of its size: x + x³·P(x²) near 0, 1 − 2/(e^2x + 1) elsewhere. */
INLINE vf tanh_of(vf x) {
  vm below = over(dup(0), x);
  vf a = sel(below, -x, x), y = x * x;
  vf p = dup(-0.005704974289983511f);
  p = p * y + dup(0.020639074966311455f);
  p = p * y + dup(-0.05373971164226532f);
  p = p * y + dup(0.13331441581249237f);
  p = p * y + dup(-0.3333328068256378f);
  vf near_0 = p * y * x + x;
  vf e = exp2_of(low_of(dup(40), a * dup((float)(2 * LOG2E))));
  vf far = 1 - 2 / (e + 1);
  far = sel(below, -far, far);
  return sel(over(dup(0.625f), a), near_0, sel(same(x, x), far, x));
}
