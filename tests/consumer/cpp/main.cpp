// The header in C++: every declaration parses, links with C linkage, and a sampler draws the largest logit.
#include <cstdio>
#include <memory>

#include <vkmoe.h>

int main()
{
    vkmoe_sampler_params params;
    vkmoe_sampler *raw = nullptr;
    vkmoe_err err{};
    const float logits[4] = {0.0f, 2.0f, 1.0f, -1.0f};
    int32_t token = -1;

    vkmoe_sampler_defaults(&params);
    params.temp = 0;
    if (vkmoe_sampler_create(&raw, &params, &err) != VKMOE_OK) {
        std::fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    std::unique_ptr<vkmoe_sampler, void (*)(vkmoe_sampler *)> sampler(raw, vkmoe_sampler_destroy);
    if (vkmoe_sample(sampler.get(), logits, 4, 4, &token, &err) != VKMOE_OK || token != 1) {
        std::fprintf(stderr, "greedy sampling drew %d\n", token);
        return 1;
    }
    std::printf("vkmoe %s\n", vkmoe_version());
    return 0;
}
