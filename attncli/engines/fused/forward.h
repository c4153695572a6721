/* Output and running sums of some query rows. Included once for each build. */
#define State OWN(State)
#define Block OWN(Block)
#define decay OWN(decay)
#define raise OWN(raise)
#define add OWN(add)
#define add_but_anchor OWN(add_but_anchor)
#define most OWN(most)
#define least OWN(least)
#define second_most OWN(second_most)
#define enter OWN(enter)
#define lead OWN(lead)
#define centre_at OWN(centre_at)
#define softmax OWN(softmax)
#define weigh_full OWN(weigh_full)
#define weigh_some OWN(weigh_some)
#define weigh_bent OWN(weigh_bent)
#define sum_full OWN(sum_full)
#define sum_some OWN(sum_some)
#define sum_bent OWN(sum_bent)
#define flush OWN(flush)
#define granule OWN(granule)
#define granule_3 OWN(granule_3)
#define dot OWN(dot)
#define exact_row OWN(exact_row)
#define open_block OWN(open_block)
#define write_sums OWN(write_sums)
#define close_block OWN(close_block)
#define bytes_of OWN(bytes_of)
#define walk OWN(walk)
#define run OWN(run)

typedef struct {
  vf m[NV], t1[NV], t2[NV];              /* the shift; the two largest logits */
  vi j1[NV], j2[NV], n[NV];              /* their keys; visible keys */
  vf low[NV], centre[NV], first[NV];     /* the lowest score, or −max|s| if bent */
  vf e1[NV], es[NV], e2[NV], e3[NV], s1[NV], s2[NV]; /* of this granule, less the anchor */
  vd E1[NV], ES[NV], E2[NV], E3[NV], S1[NV], S2[NV]; /* of the granules before */
} State;
typedef struct {
  State S;
  int64_t i0, n; /* n rows from i0 on */
  int centred;   /* bit v: all rows of vector v have a centre */
  int8_t states[AHEAD];
  float *qt, *ot; /* (d, ROWS), (dv, ROWS) */
} Block;

INLINE void decay(State *S, int v, vf f, vf step) { /* the shift grew by −step, f = e^step */
  vd F = wide(f), D = wide(step);
  S->es[v] = f * (S->es[v] + step * S->e1[v]);
  S->e1[v] *= f, S->e2[v] *= f * f, S->e3[v] *= f * f * f;
  S->ES[v] = F * (S->ES[v] + D * S->E1[v]);
  S->E1[v] *= F, S->E2[v] *= F * F, S->E3[v] *= F * F * F;
}

/* Move the shift of vector v to `top` where it is above, with all that was summed by it: the
 * output, and lines p0:p1 of weights that wait for their values. */
RARE void raise(Block *B, int v, vf top, float *p, int64_t p0, int64_t p1, int64_t dv, int bent) {
  State *S = &B->S;
  vf old = S->m[v], now = top_of(old, top);
  vm fresh = same(old, dup(-INFINITY));
  vf step = sel(fresh, dup(0), top_of(dup(-300), old - now));
  vf f = sel(fresh, dup(0), exp2_of(scaled(step, bent)));
  S->m[v] = now;
  for (int64_t x = 0; x < dv; x++) at_(B->ot, x, v) *= f;
  for (int64_t x = p0; x < p1; x++) at_(p, x, v) *= f;
  decay(S, v, f, step);
}

INLINE void add(State *S, int v, vf e, vf t) {
  vf square = e * e;
  S->e1[v] += e, S->es[v] += e * t, S->e2[v] += square, S->e3[v] += square * e;
}

/* Add the weights e of logits z, where the shift has moved from `old`: the key at the new one is
 * the anchor and stays out, the one at the old joins the rest. */
RARE void add_but_anchor(State *S, int v, const vf *z, const vf *e, vf old, int bent) {
  vf m = S->m[v];
  vm look = (vm)~same(m, old);
  for (int u = 0; u < MR; u++) {
    vm anchor = look & same(z[u], m) & over(e[u], dup(0));
    look &= ~anchor;
    vf some = sel(anchor, dup(0), e[u]);
    add(S, v, some, sel(over(some, dup(0)), z[u] - m, some));
  }
  vm joins = over(m, old) & over(old, dup(-INFINITY));
  vf step = sel(joins, old - m, dup(-300));
  add(S, v, exp2_of(scaled(step, bent)), step);
}

/* The largest of MR logits, and the smallest. */
INLINE vf most(const vf *z) {
  vf y[MR];
  UNROLL for (int u = 0; u < MR; u++) y[u] = z[u];
  UNROLL for (int half = MR / 2; half; half /= 2)
    UNROLL for (int u = 0; u < half; u++) y[u] = top_of(y[u], y[u + half]);
  return y[0];
}
INLINE vf least(const vf *z) {
  vf y[MR];
  UNROLL for (int u = 0; u < MR; u++) y[u] = z[u];
  UNROLL for (int half = MR / 2; half; half /= 2)
    UNROLL for (int u = 0; u < half; u++) y[u] = low_of(y[u], y[u + half]);
  return y[0];
}

/* The second largest of MR logits: the largest again where two are. */
INLINE vf second_most(const vf *z) {
  vf top[MR], next[MR / 2];
  UNROLL for (int u = 0; u < MR / 2; u++) {
    top[u] = top_of(z[u], z[u + MR / 2]), next[u] = low_of(z[u], z[u + MR / 2]);
  }
  UNROLL for (int half = MR / 4; half; half /= 2)
    UNROLL for (int u = 0; u < half; u++) {
      vf lower = low_of(top[u], top[u + half]);
      top[u] = top_of(top[u], top[u + half]);
      next[u] = top_of(lower, top_of(next[u], next[u + half]));
    }
  return next[0];
}

/* Put the first of logits z of keys j… that is `top` among the two largest; return which it is. */
INLINE vi enter(State *S, int v, const vf *z, vf top, int64_t j) {
  vf t1 = S->t1[v], t2 = S->t2[v];
  vi first = dupi(0);
  UNROLL for (int u = MR; u--;) first = sel_i(same(z[u], top), dupi(u), first);
  vm beats = over(top, t1), next = over(top, t2); /* in a tie the earlier key is first */
  vi name = first + dupi((int32_t)j);
  S->j2[v] = sel_i(beats, S->j1[v], sel_i(next, name, S->j2[v]));
  S->j1[v] = sel_i(beats, name, S->j1[v]);
  S->t2[v] = sel(beats, t1, sel(next, top, t2));
  S->t1[v] = sel(beats, top, t1);
  return first;
}

/* Put the logits z of keys j… among the two largest; `top` is their maximum. */
INLINE void lead(State *S, int v, const vf *z, vf top, int64_t j) {
  vi first = enter(S, v, z, top, j);
  vf next = second_most(z), left[MR];
  if (!any(over(next, S->t2[v]))) return;
  UNROLL for (int u = 0; u < MR; u++)
    left[u] = sel(same_i(first, dupi(u)), dup(-INFINITY), z[u]);
  enter(S, v, left, next, j);
}

/* Choose the centre of moments where a row sees its first scores: their mean. */
RARE void centre_at(Block *B, int v, const vf *s, const uint64_t *see) {
  State *S = &B->S;
  vf sum = {}, n = {};
  for (int u = 0; u < MR; u++) {
    vm sees = lanes(see ? see[u] >> v * VL : ~0ull);
    sum += sel(sees, s[u], dup(0));
    n += sel(sees, dup(1), dup(0));
  }
  vm none = same_i(S->n[v], dupi(0));
  S->centre[v] = sel(none & over(n, dup(0)), sum / n, S->centre[v]);
  if (!any(none & same(n, dup(0)))) B->centred |= 1 << v;
}

/* Turn scores s of keys j…, `line`… of the granule, into weights, and sum. `from`: the first line
 * that waits for its values. Known when compiled: stats, mixed (some rows see only some of the
 * keys) and bent (always mixed). */
INLINE void softmax(vf s[NV][MR], Block *B, const Shared *T, int64_t from, int64_t line, int64_t j,
                    int64_t dv, int nv, const int stats, const int mixed, const int bent) {
  State *S = &B->S;
  float *p = T->p;
  for (int v = 0; v < nv; v++) {
    vf z[MR], e[MR];
    vm sees[MR];
    UNROLL for (int u = 0; u < MR; u++) {
      z[u] = s[v][u];
      if (bent && T->cap > 0) z[u] = dup(T->cap) * tanh_of(z[u] * dup(T->per_cap));
      if (bent && T->bias) z[u] += at_(T->bias, line + u, v);
      sees[u] = lanes(mixed ? T->see[line + u] >> v * VL : ~0ull);
      if (mixed) z[u] = sel(sees[u], z[u], dup(-INFINITY));
    }
    vf top = most(z), old = S->m[v];
    const int moved = any(over(top, old + dup(SLACK)));
    if (__builtin_expect(moved, 0)) raise(B, v, top, p, from, line, dv, bent);
    if (stats) {
      vf score[MR];
      UNROLL for (int u = 0; u < MR; u++) {
        if (bent) score[u] = sel(sees[u], low_of(s[v][u], -s[v][u]), dup(0));
        else score[u] = mixed ? sel(sees[u], z[u], dup(INFINITY)) : z[u];
      }
      S->low[v] = low_of(S->low[v], least(score));
      if (any(over(top, S->t2[v]))) lead(S, v, z, top, j);
      if (__builtin_expect(!(B->centred >> v & 1), 0))
        centre_at(B, v, s[v], mixed ? T->see + line : NULL);
      if (j == 0) S->first[v] = z[0];
    }
    vf m = S->m[v], c = S->centre[v], e1 = {}, es = {}, e2 = {}, e3 = {}, s1 = {}, s2 = {};
    UNROLL for (int u = 0; u < MR; u++) {
      vf t = z[u] - m;
      e[u] = exp2_of(mixed ? top_of(dup(-300), scaled(t, bent)) : t);
      if (mixed) e[u] = sel(sees[u], e[u], dup(0));
      at_(p, line + u, v) = e[u];
      e1 += e[u];
      if (stats) {
        vf away = s[v][u] - c, square = e[u] * e[u];
        if (mixed) away = sel(sees[u], away, dup(0)), t = sel(sees[u], t, dup(0));
        if (bent) t = top_of(dup(-1e30f), t); /* 0 · ∞ would not be 0 */
        s1 += away, s2 += away * away, es += e[u] * t, e2 += square, e3 += square * e[u];
      }
    }
    if (stats) {
      S->s1[v] += s1, S->s2[v] += s2;
      if (!mixed) S->n[v] += dupi(MR);
      for (int u = 0; mixed && u < MR; u++) S->n[v] += sel_i(sees[u], dupi(1), dupi(0));
      if (__builtin_expect(moved, 0)) {
        vf logit[MR], weight[MR]; /* arrays whose address is taken leave the registers */
        for (int u = 0; u < MR; u++) logit[u] = z[u], weight[u] = e[u];
        add_but_anchor(S, v, logit, weight, old, bent);
        continue;
      }
      S->es[v] += es, S->e2[v] += e2, S->e3[v] += e3;
    }
    S->e1[v] += e1;
  }
}

#define SOFTMAX(name, stats, mixed, bent)                                                       \
  RARE void name(vf s[NV][MR], Block *B, const Shared *T, int64_t from, int64_t line, int64_t j, \
                 int64_t dv, int nv) {                                                           \
    softmax(s, B, T, from, line, j, dv, nv, stats, mixed, bent);                                 \
  }
SOFTMAX(weigh_full, 0, 0, 0)
SOFTMAX(weigh_some, 0, 1, 0)
SOFTMAX(weigh_bent, 0, 1, 1)
SOFTMAX(sum_full, 1, 0, 0)
SOFTMAX(sum_some, 1, 1, 0)
SOFTMAX(sum_bent, 1, 1, 1)
#undef SOFTMAX

INLINE void flush(State *S, const int nv, const int stats) {
  for (int v = 0; v < nv; v++) {
#define FLUSH(A, a) S->A[v] += wide(S->a[v]), S->a[v] = (vf){}
    FLUSH(E1, e1);
    if (stats) FLUSH(ES, es), FLUSH(E2, e2), FLUSH(E3, e3), FLUSH(S1, s1), FLUSH(S2, s2);
  }
}

/* Keys a:z, a granule or less, against one block. see[x] is what sees key a + x where `masked`. */
INLINE void granule(const Job *J, Block *B, const Shared *T, const float *k, const float *val,
                    int64_t a, int64_t z, int masked, const int nv) {
  const int64_t d = J->d, dv = J->dv;
  const int bent = bends(J), stats = J->sums != NULL;
  const uint64_t whole = (1ull << B->n) - 1;
  int64_t from = 0; /* lines from:line have weights, and wait for their values */
  for (int64_t line = 0; a + line < z; line += MR) {
    uint64_t all = ~0ull, none = 0;
    for (int u = 0; masked && u < MR; u++) all &= T->see[line + u], none |= T->see[line + u];
    if (masked && !none) { /* nobody sees these keys */
      if (from < line) product(B->ot, T->p + from * ROWS, val + from * dv, dv, line - from, nv);
      from = line + MR;
      continue;
    }
    vf s[NV][MR];
    scores(s, B->qt, whole_tile(J, T, k + line * d, a + line, d), d, nv);
    (bent ? stats ? sum_bent : weigh_bent
     : masked && (all & whole) != whole ? stats ? sum_some : weigh_some
     : stats ? sum_full : weigh_full)(s, B, T, from, line, a + line, dv, nv);
  }
  flush(&B->S, nv, stats);
  if (from < z - a) product(B->ot, T->p + from * ROWS, val + from * dv, dv, z - a - from, nv);
}

RARE void granule_3(const Job *J, Block *B, const Shared *T, const float *k, const float *val,
                    int64_t a, int64_t z, int masked) {
  if (B->n > 2 * VL) granule(J, B, T, k, val, a, z, masked, 3);
  else if (B->n > VL) granule(J, B, T, k, val, a, z, masked, 2);
  else granule(J, B, T, k, val, a, z, masked, 1);
}

static double dot(const float *a, const float *b, int64_t d) {
  vd sum = {};
  int64_t x = 0;
  for (; x + VL <= d; x += VL) {
    vf left, right;
    memcpy(&left, a + x, sizeof left), memcpy(&right, b + x, sizeof right);
    sum += wide(left) * wide(right);
  }
  double total = 0;
  for (int y = 0; y < VL; y++) total += sum[y];
  for (; x < d; x++) total += (double)a[x] * b[x];
  return total;
}

/* Sum a row in double: all but its first key, and moments about that key's score. */
RARE void exact_row(const Job *J, int64_t n, int64_t i, int64_t j1, double *o, int64_t plane) {
  const float *q = J->q + (n * J->lq + i) * J->d, *k = J->k + n / J->group * J->lk * J->d;
  double base = 0, peak = 0, rest = 0, es = 0, e2 = 0, e3 = 0, s1 = 0, s2 = 0, count = 0;
  for (int64_t at = -1; at < J->j1 - J->j0; at++) {
    int64_t j = at < 0 ? j1 : J->j0 + at; /* the first key comes first */
    if (at >= 0 && (j == j1 || !sees(J, i, j))) continue;
    double s = J->scale * dot(q, k + j * J->d, J->d), z = s;
    if (J->cap > 0) z = J->cap * tanh(s / J->cap);
    if (J->bias) z += J->bias[(i - J->i0) * J->bias_row + (j - J->j0) * J->bias_key];
    count += 1;
    if (at < 0) {
      base = s, peak = z;
      continue;
    }
    double t = z - peak, e = exp(t), away = s - base;
    if (e > 0) rest += e, es += e * t, e2 += e * e, e3 += e * e * e;
    s1 += away, s2 += away * away;
  }
  o[REST * plane] = rest, o[ES * plane] = es, o[REST2 * plane] = e2, o[REST3 * plane] = e3;
  o[MEAN * plane] = base + s1 / count, o[M2 * plane] = fmax(0, s2 - s1 / count * s1);
}

static void open_block(const Job *J, Block *B, int64_t n, int64_t i0, int64_t rows) {
  const float *q = J->q + (n * J->lq + i0) * J->d;
  double unit = J->scale * (bends(J) ? 1 : LOG2E);
  B->i0 = i0, B->n = rows, B->centred = 0;
  lift(B->qt, q, rows, J->d, unit);
  memset(B->ot, 0, J->dv * ROWS * 4);
  memset(&B->S, 0, sizeof B->S);
  for (int v = 0; v < NV; v++) {
    B->S.m[v] = B->S.t1[v] = B->S.t2[v] = B->S.first[v] = dup(-INFINITY);
    B->S.low[v] = dup(bends(J) ? 0 : INFINITY);
    B->S.j1[v] = B->S.j2[v] = dupi(-1);
  }
}

/* Write the sums of row r, relative to its largest logit and in natural units. */
static void write_sums(const Job *J, const Block *B, int64_t n, int64_t r) {
  const State *S = &B->S;
  const int v = (int)(r / VL), y = (int)(r % VL), bent = bends(J);
  const double unit = bent ? 1 : LN2, none = -INFINITY;
  const int64_t at = n * J->lq + B->i0 + r, plane = J->all * J->lq;
  double *o = J->sums + at, m = S->m[v][y], t1 = S->t1[v][y], t2 = S->t2[v][y];
  const int64_t count = S->n[v][y];
  double e1 = S->E1[v][y], es = S->ES[v][y], e2 = S->E2[v][y], e3 = S->E3[v][y];
  if (t1 > m) { /* the anchor joins, the first key leaves */
    double step = (m - t1), f = exp(step * unit);
    es = f * (es + step * (e1 + 1)), e1 = f * (e1 + 1) - 1;
    e2 = f * f * (e2 + 1) - 1, e3 = f * f * f * (e3 + 1) - 1;
  }
  double mean = count ? S->S1[v][y] / count : 0, s2 = S->S2[v][y], m2 = s2 - count * mean * mean;
  double low = S->low[v][y], amax = bent || -low > t1 ? -low : t1;
  J->count[at] = count, J->top_j[2 * at] = S->j1[v][y], J->top_j[2 * at + 1] = S->j2[v][y];
  J->top_z[2 * at] = t1 * unit, J->top_z[2 * at + 1] = t2 * unit;
  o[M * plane] = t1 * unit, o[FIRST * plane] = S->first[v][y] * unit;
  o[REST * plane] = fmax(0, e1), o[ES * plane] = es * unit;
  o[REST2 * plane] = fmax(0, e2), o[REST3 * plane] = fmax(0, e3);
  o[AMAX * plane] = count ? fabs(amax) * unit : 0; /* −0 is 0 */
  int alike = !bent && low == t1;
  if (alike) mean = low - S->centre[v][y], m2 = 0;
  o[MEAN * plane] = count ? (mean + S->centre[v][y]) * unit : 0;
  o[M2 * plane] = fmax(0, m2) * unit * unit;
  int far = t2 > none && (t1 - t2) * unit > FAR * LN2;
  int lost = !alike && !(m2 > 0.01 * s2 && s2 > count * 1e-24 && s2 < 1e34);
  if (count > 1 && t1 < INFINITY && (far || lost)) exact_row(J, n, B->i0 + r, S->j1[v][y], o, plane);
}

/* Write output, lse and sums; return how many rows are not finite. */
static int64_t close_block(const Job *J, Block *B, int64_t n) {
  const State *S = &B->S;
  const double unit = bends(J) ? 1 : LN2, sink = J->sink ? J->sink[n % J->heads] : -INFINITY;
  vf inverse[NV] = {};
  float *out = J->out + (n * J->lq + B->i0) * J->dv;
  vf odd[NV] = {};
  int64_t found = 0;
  for (int64_t r = 0; r < B->n; r++) {
    int v = (int)(r / VL), y = (int)(r % VL);
    double m = S->m[v][y] * unit, e1 = S->E1[v][y] + (J->sums && m > -INFINITY), lse = sink;
    inverse[v][y] = e1 != 0 ? (float)(1 / e1) : 0;
    if (e1 != 0 && sink == -INFINITY) lse = m + log(e1);
    else if (e1 != 0) { /* or NaN */
      double top = sink > m ? sink : m;
      lse = top + log(e1 * exp(m - top) + exp(sink - top));
      inverse[v][y] = (float)exp(m - lse);
    }
    J->lse[n * J->lq + B->i0 + r] = (float)lse;
    if (!(e1 < INFINITY && m < INFINITY)) odd[v][y] = NAN;
    if (J->sums && !(S->low[v][y] > -INFINITY)) odd[v][y] = NAN;
    if (J->sums) write_sums(J, B, n, r);
  }
  for (int64_t x = 0; x < J->dv; x++)
    for (int v = 0; v < NV; v++) odd[v] += at_(B->ot, x, v) * 0;
  for (int64_t r = 0; r < B->n; r++) found += odd[r / VL][r % VL] != 0;
  lower(out, B->ot, B->n, J->dv, inverse);
  return found;
}

static int64_t bytes_of(int64_t d, int64_t dv) {
  int64_t nb = together(ROWS, d, dv);
  return bytes_shared(d) + nb * ((int64_t)sizeof(Block) + 3 * LINE + (d + dv) * ROWS * 4);
}

/* Some blocks of one head, rows i0:i1, walk over the keys together. */
static int64_t walk(const Job *J, Block *blocks, Shared *T, int64_t n, int64_t i0, int64_t i1) {
  const float *key = J->k + n / J->group * J->lk * J->d;
  const float *value = J->v + n / J->group * J->lk * J->dv;
  const int bent = bends(J);
  int64_t count = 0, odd = 0;
  for (int64_t i = i0; i < i1; i += ROWS)
    open_block(J, blocks + count++, n, i, i1 - i < ROWS ? i1 - i : ROWS);
  for (int64_t a = J->j0; a < J->j1; a += GRAIN) {
    const int64_t z = J->j1 - a < GRAIN ? J->j1 : a + GRAIN;
    const int64_t nth = (a - J->j0) / GRAIN % AHEAD;
    if (!nth)
      for (Block *B = blocks; B < blocks + count; B++) survey(J, B->i0, B->n, a, B->states);
    if (state_at(J, a) == EMPTY) continue;
    const float *k = key + a * J->d, *val = value + a * J->dv;
    for (Block *B = blocks; B < blocks + count; B++) {
      const int state = B->states[nth], masked = state == MIXED || bent || (z - a) % MR;
      if (state == EMPTY) continue;
      if (masked) look(J, T, B->i0, B->n, a, z, state);
      if (J->bias) lay(J, T, B->i0, B->n, a, z);
      granule_3(J, B, T, k, val, a, z, masked);
    }
  }
  for (Block *B = blocks; B < blocks + count; B++) odd += close_block(J, B, n);
  return odd;
}

static int64_t run(const Job *J) {
  const int64_t nb = together(ROWS, J->d, J->dv);
  char *from = J->scratch;
  Shared T = share(J, &from, J->d);
  Block *blocks = carve(&from, nb * (int64_t)sizeof(Block));
  for (int64_t x = 0; x < nb; x++) {
    blocks[x].qt = carve(&from, J->d * ROWS * 4);
    blocks[x].ot = carve(&from, J->dv * ROWS * 4);
  }
  int64_t odd = 0;
  for (int64_t n = J->n0; n < J->n1; n++)
    for (int64_t i = J->i0; i < J->i1; i += nb * ROWS)
      odd += walk(J, blocks, &T, n, i, J->i1 - i < nb * ROWS ? J->i1 : i + nb * ROWS);
  return odd;
}
