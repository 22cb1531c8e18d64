// The expert kernels of fastops.cpp with bfloat16 operands on the AMX tile units (float32 sums).
// Same interface and same meaning; roughly three times faster on a CPU that has amx_bf16.
#include <cmath>
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <torch/extension.h>
#include <unistd.h>
#include <vector>
using std::vector;
using torch::Tensor;
typedef uint16_t bf;
static const int CHUNK = 512, NT = 2;

static bool permit()
{
    static bool ok = syscall(SYS_arch_prctl, 0x1023, 18) == 0; // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return ok;
}
struct Tiles { // all eight tiles 16 rows x 64 bytes
    Tiles()
    {
        alignas(64) uint8_t c[64] = {0};
        c[0] = 1;
        for (int i = 0; i < 8; i++) {
            ((uint16_t *)(c + 16))[i] = 64;
            c[48 + i] = 16;
        }
        _tile_loadconfig(c);
    }
    ~Tiles()
    {
        _tile_release();
    }
};

// C (M x N, float, ldc) = A (bf16 row major, M padded to 32 rows, K multiple of 32) * B (packed);
// only rows < m are written.
static void mm(int m, int N, int K, const bf *A, int lda, const bf *B, float *C, int ldc)
{
    int kb = K / 32;
    alignas(64) float tmp[16 * 16];
    for (int i = 0; i < m; i += 32)
        for (int j = 0; j < N; j += 32) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            const bf *a0 = A + (size_t)i * lda, *a1 = a0 + (size_t)16 * lda;
            const bf *b0 = B + (size_t)(j / 16) * kb * 512, *b1 = b0 + (size_t)kb * 512;
            for (int k = 0; k < kb; k++) {
                _tile_loadd(4, a0 + k * 32, lda * 2);
                _tile_loadd(6, b0 + k * 512, 64);
                _tile_loadd(5, a1 + k * 32, lda * 2);
                _tile_loadd(7, b1 + k * 512, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
#define PUT(t, r, c)                                                         \
    if (i + r + 16 <= m)                                                     \
        _tile_stored(t, C + (size_t)(i + r) * ldc + j + c, ldc * 4);         \
    else if (i + r < m) {                                                    \
        _tile_stored(t, tmp, 64);                                            \
        for (int q = 0; q < m - i - r; q++)                                  \
            memcpy(C + (size_t)(i + r + q) * ldc + j + c, tmp + q * 16, 64); \
    }
            PUT(0, 0, 0) PUT(1, 0, 16) PUT(2, 16, 0) PUT(3, 16, 16)
        }
}

static inline void narrow(const float *s, bf *d, int n)
{ // n multiple of 16
    for (int i = 0; i < n; i += 16)
        _mm256_storeu_si256((__m256i *)(d + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(s + i)));
}
// B for C = A * W^T with W (N x K) row-major bf16: 16x16 transposes of bf16 pairs
static void pack_t(const bf *W, int N, int K, bf *out)
{
    const uint32_t *w = (const uint32_t *)W;
    uint32_t *o = (uint32_t *)out;
    int k2 = K / 2;
    for (int n = 0; n < N; n += 16)
        for (int k = 0; k < k2; k += 16, o += 256)
            for (int c = 0; c < 16; c++)
                for (int r = 0; r < 16; r++)
                    o[r * 16 + c] = w[(size_t)(n + c) * k2 + k + r];
}
// B for C = A * W with W (K x N) row-major bf16 (K multiple of 32): interleave row pairs
static void pack_n(const bf *W, int K, int N, bf *out)
{
    bf *o = out;
    for (int n = 0; n < N; n += 16)
        for (int k = 0; k < K; k += 32, o += 512)
            for (int r = 0; r < 16; r++) {
                __m512i a = _mm512_cvtepu16_epi32(
                    _mm256_loadu_si256((const __m256i *)(W + (size_t)(k + 2 * r) * N + n)));
                __m512i b = _mm512_cvtepu16_epi32(
                    _mm256_loadu_si256((const __m256i *)(W + (size_t)(k + 2 * r + 1) * N + n)));
                _mm512_storeu_si512(o + r * 32, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
            }
}
static void transpose(const bf *s, int R, int C, bf *d)
{ // (R x C) -> (C x R), blocks of 32
    for (int i = 0; i < R; i += 32)
        for (int j = 0; j < C; j += 32)
            for (int c = j; c < j + 32; c++)
                for (int r = i; r < i + 32; r++)
                    d[(size_t)c * R + r] = s[(size_t)r * C + c];
}

struct Task {
    int e, start, n;
};
static vector<Task> plan(const Tensor &idx, int T, int K, int E, vector<int> &tok, vector<int> &src,
                         vector<int> &where)
{
    int R = E - 1, base = T * K;
    const int64_t *ix = idx.data_ptr<int64_t>();
    vector<int> off(R + 1, 0);
    for (int i = 0; i < base; i++)
        off[ix[i] + 1]++;
    for (int e = 0; e < R; e++)
        off[e + 1] += off[e];
    vector<Task> tasks;
    for (int s = 0; s < T; s += CHUNK)
        tasks.push_back({R, base + s, std::min(CHUNK, T - s)});
    for (int e = 0; e < R; e++)
        if (off[e + 1] > off[e])
            tasks.push_back({e, off[e], off[e + 1] - off[e]});
    tok.resize(base + T);
    src.resize(base);
    where.resize(base);
    vector<int> at(off.begin(), off.end());
    for (int i = 0; i < base; i++) {
        int s = at[ix[i]]++;
        tok[s] = i / K;
        src[s] = i;
        where[i] = s;
    }
    for (int t = 0; t < T; t++)
        tok[base + t] = t;
    return tasks;
}
static vector<bf> halve(const float *p, size_t n)
{
    vector<bf> v(n);
#pragma omp parallel for num_threads(NT)
    for (size_t i = 0; i < n; i += 256)
        narrow(p + i, &v[i], 256);
    return v;
}

vector<Tensor> moe_fwd(Tensor x, Tensor idx, Tensor w, Tensor wgu, Tensor wd)
{
    TORCH_CHECK(permit(), "no AMX");
    int T = x.size(0), H = x.size(1), K = idx.size(1), E = wgu.size(0), I = wd.size(2), N = T * (K + 1);
    vector<int> tok, src, where;
    auto tasks = plan(idx, T, K, E, tok, src, where);
    auto gu = torch::empty({N, 2 * I}, x.options());
    auto y = torch::empty({N, H}, x.options());
    auto out = torch::empty({T, H}, x.options());
    const float *pw = w.data_ptr<float>(), *pg = wgu.data_ptr<float>(), *pd = wd.data_ptr<float>();
    float *G = gu.data_ptr<float>(), *Y = y.data_ptr<float>(), *O = out.data_ptr<float>();
    auto xb = halve(x.data_ptr<float>(), (size_t)T * H);
#pragma omp parallel num_threads(NT)
    {
        Tiles tiles;
        vector<bf> X, A, W(2 * I * H), B(2 * I * H);
#pragma omp for schedule(dynamic)
        for (int t = 0; t < (int)tasks.size(); t++) {
            auto k = tasks[t];
            int np = (k.n + 31) / 32 * 32;
            X.resize((size_t)np * H);
            A.resize((size_t)np * I);
            for (int i = 0; i < k.n; i++)
                memcpy(&X[(size_t)i * H], &xb[(size_t)tok[k.start + i] * H], H * 2);
            float *g = G + (size_t)k.start * 2 * I;
            narrow(pg + (size_t)k.e * 2 * I * H, W.data(), 2 * I * H);
            pack_t(W.data(), 2 * I, H, B.data());
            mm(k.n, 2 * I, H, X.data(), H, B.data(), g, 2 * I);
            alignas(64) float row[512];
            for (int i = 0; i < k.n; i++) {
                const float *a = g + (size_t)i * 2 * I, *u = a + I;
                for (int j = 0; j < I; j++)
                    row[j] = a[j] / (1.f + expf(-a[j])) * u[j];
                narrow(row, &A[(size_t)i * I], I);
            }
            narrow(pd + (size_t)k.e * H * I, W.data(), H * I);
            pack_t(W.data(), H, I, B.data());
            mm(k.n, H, I, A.data(), I, B.data(), Y + (size_t)k.start * H, H);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < T; t++) {
            float *o = O + (size_t)t * H;
            memcpy(o, Y + (size_t)(T * K + t) * H, H * 4);
            for (int k = 0; k < K; k++) {
                const float *r = Y + (size_t)where[t * K + k] * H;
                float c = pw[t * K + k];
                for (int j = 0; j < H; j++)
                    o[j] += c * r[j];
            }
        }
    }
    return {out, gu};
}

// Gradients of experts that no token chose.
static void zero_unused(const vector<Task> &tasks, int E, float *grad, size_t n)
{
    vector<char> used(E, 0);
    for (auto &k : tasks)
        used[k.e] = 1;
    for (int e = 0; e < E - 1; e++)
        if (!used[e])
            memset(grad + e * n, 0, n * 4);
}

// The shared expert's gradient: one part per chunk of tokens.
static void sum_chunks(const vector<float> &parts, int n_parts, float *grad, size_t n)
{
    memcpy(grad, parts.data(), n * 4);
    for (int c = 1; c < n_parts; c++)
        for (size_t j = 0; j < n; j++)
            grad[j] += parts[c * n + j];
}

vector<Tensor> moe_bwd(Tensor dout, Tensor x, Tensor idx, Tensor w, Tensor wgu, Tensor wd, Tensor gu,
                       Tensor dwgu, Tensor dwd)
{
    TORCH_CHECK(permit(), "no AMX");
    int T = x.size(0), H = x.size(1), K = idx.size(1), E = wgu.size(0), I = wd.size(2), N = T * (K + 1),
        nsh = (T + CHUNK - 1) / CHUNK;
    vector<int> tok, src, where;
    auto tasks = plan(idx, T, K, E, tok, src, where);
    auto dxs = torch::empty({N, H}, x.options());
    auto dx = torch::empty({T, H}, x.options());
    auto dw = torch::empty({T, K}, x.options());
    size_t sg = 2 * I * H, sd = H * I;
    vector<float> Sg(nsh * sg), Sd(nsh * sd);
    const float *pw = w.data_ptr<float>(), *pg = wgu.data_ptr<float>(), *pd = wd.data_ptr<float>(),
                *G = gu.data_ptr<float>();
    float *DX = dxs.data_ptr<float>(), *O = dx.data_ptr<float>(), *DW = dw.data_ptr<float>(),
          *Dg = dwgu.data_ptr<float>(), *Dd = dwd.data_ptr<float>();
    zero_unused(tasks, E, Dg, sg);
    zero_unused(tasks, E, Dd, sd);
    auto xb = halve(x.data_ptr<float>(), (size_t)T * H), gb = halve(dout.data_ptr<float>(), (size_t)T * H);
#pragma omp parallel num_threads(NT)
    {
        Tiles tiles;
        vector<bf> X, D, A, dG, W(2 * I * H), B, Tr;
        vector<float> dA;
#pragma omp for schedule(dynamic)
        for (int t = 0; t < (int)tasks.size(); t++) {
            auto k = tasks[t];
            bool shared = k.e == E - 1;
            int np = (k.n + 31) / 32 * 32;
            X.resize((size_t)np * H);
            D.resize((size_t)np * H);
            A.resize((size_t)np * I);
            dG.resize((size_t)np * 2 * I);
            dA.resize((size_t)np * I);
            B.resize((size_t)std::max(np, 2 * I) * H);
            Tr.resize((size_t)np * H);
            for (int i = 0; i < k.n; i++) {
                size_t r = (size_t)tok[k.start + i] * H;
                memcpy(&X[(size_t)i * H], &xb[r], H * 2);
                memcpy(&D[(size_t)i * H], &gb[r], H * 2);
            }
            size_t pad = np - k.n;
            if (pad) {
                memset(&X[(size_t)k.n * H], 0, pad * H * 2);
                memset(&D[(size_t)k.n * H], 0, pad * H * 2);
                memset(&A[(size_t)k.n * I], 0, pad * I * 2);
                memset(&dG[(size_t)k.n * 2 * I], 0, pad * 2 * I * 2);
            }
            narrow(pd + k.e * sd, W.data(), H * I);
            pack_n(W.data(), H, I, B.data());
            mm(k.n, I, H, D.data(), H, B.data(), dA.data(), I);
            alignas(64) float act[256], dg[512];
            for (int i = 0; i < k.n; i++) {
                const float *a = G + (size_t)(k.start + i) * 2 * I, *u = a + I, *da = &dA[(size_t)i * I];
                float dot = 0, c = shared ? 1.f : pw[src[k.start + i]];
                for (int j = 0; j < I; j++) {
                    float s = 1.f / (1.f + expf(-a[j])), si = a[j] * s, ac = si * u[j], e = da[j];
                    dot += e * ac;
                    e *= c;
                    act[j] = ac * c;
                    dg[j] = e * u[j] * (s + si * (1.f - s));
                    dg[j + I] = e * si;
                }
                narrow(act, &A[(size_t)i * I], I);
                narrow(dg, &dG[(size_t)i * 2 * I], 2 * I);
                if (!shared)
                    DW[src[k.start + i]] = dot;
            }
            float *og = shared ? &Sg[t * sg] : Dg + k.e * sg; // the shared tasks come first
            float *od = shared ? &Sd[t * sd] : Dd + k.e * sd;
            transpose(D.data(), np, H, Tr.data());
            pack_n(A.data(), np, I, B.data());
            mm(H, I, np, Tr.data(), np, B.data(), od, I);
            transpose(dG.data(), np, 2 * I, Tr.data());
            pack_n(X.data(), np, H, B.data());
            mm(2 * I, H, np, Tr.data(), np, B.data(), og, H);
            narrow(pg + k.e * sg, W.data(), 2 * I * H);
            pack_n(W.data(), 2 * I, H, B.data());
            mm(k.n, H, 2 * I, dG.data(), 2 * I, B.data(), DX + (size_t)k.start * H, H);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < T; t++) {
            float *o = O + (size_t)t * H;
            memcpy(o, DX + (size_t)(T * K + t) * H, H * 4);
            for (int k = 0; k < K; k++) {
                const float *r = DX + (size_t)where[t * K + k] * H;
                for (int j = 0; j < H; j++)
                    o[j] += r[j];
            }
        }
    }
    sum_chunks(Sg, nsh, Dg + (E - 1) * sg, sg);
    sum_chunks(Sd, nsh, Dd + (E - 1) * sd, sd);
    return {dx, dw};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m)
{
    m.def("moe_fwd", &moe_fwd);
    m.def("moe_bwd", &moe_bwd);
}
